"""Reducer: reads the links of a job, chooses how its gradients are summed, and says what it chose and why."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from trainkit.distributed.cluster import Cluster
from trainkit.errors import ConfigError, TopologyError
from trainkit.planning import choice as choice_file
from trainkit.planning.choice import Choice, cache_path
from trainkit.planning.plan import MIN_GAIN, Predicted, candidates, shortlist
from trainkit.planning.reduce_plan import ReducePlan, flat
from trainkit.reduction.collectives import Route
from trainkit.reduction.comm import Comm
from trainkit.reduction.hook import Hook
from trainkit.topology.discover import discover
from trainkit.topology.measure import probe
from trainkit.topology.topology import Topology

T = TypeVar("T")
_SOME_BYTES = 25 * 2**20
_NUM_TIMED = 3
_TURNS = {1e6: 5, 4e6: 2}  # of each, of which the median counts: where one is predicted to take less; else one


class Reducer:
    """How the gradients of a job's engines are summed. One a Runtime; engines share process groups and threads.

    deterministic: whether two starts must choose alike: by nominal figures or the user's alone, without timing.
    group: of all ranks, gloo, for what they tell one another.  report: is told, on every rank, what was chosen and why.
    during: a context for what takes a while, by its name.
    """

    def __init__(
        self,
        comm: Comm,
        *,
        cluster: Cluster,
        device: torch.device,
        deterministic: bool,
        group: dist.ProcessGroup | None,
        report: Callable[[str], None],
        during: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.comm = comm
        self._cluster, self._device, self._group = cluster, device, group
        self._deterministic, self._report, self._during = deterministic, report, during
        self._topology: Topology | None = None
        self._fingerprint = ""
        self._is_probed = self._is_aside = False
        self._choices: dict[int, Choice] = {}
        self._routes: dict[str, Route] = {}

    def install(
        self,
        wrapped: DistributedDataParallel,
        names: Mapping[torch.Tensor, str],
        num_bytes: int,
        known: Mapping[str, Any] | None = None,
    ) -> tuple[Choice | None, Hook | None]:
        """Has the buckets of `wrapped`, `num_bytes` the largest, summed as is best; the hook where there is one.

        known: what `Choice.to_dict` of another start was; it stands where the machines are the same.
        Raises ConfigError and TopologyError on all ranks. Collective: every rank calls, before a first backward.
        """
        if self._is_aside:
            return None, None
        if self.comm.plan == "powersgd":
            state = PowerSGDState(
                process_group=None,
                matrix_approximation_rank=self.comm.matrix_rank,
                start_powerSGD_iter=self.comm.start_after,
            )
            wrapped.register_comm_hook(state, powerSGD_hook if self._device.type == "cuda" else _power_sgd_in_order)
            self._report(
                f"gradients are summed by PowerSGD of rank {self.comm.matrix_rank}, torch's own, after "
                f"{self.comm.start_after} exact steps; a resume begins with these again"
            )
            return None, None
        choice = self.choose(num_bytes, known)
        if choice.plan.kind == "flat":
            return choice, None  # what DDP does by itself
        hook = Hook(self.route(choice.plan), names, self._report)
        hook.register(wrapped)
        return choice, hook

    def choose(self, num_bytes: int, known: Mapping[str, Any] | None = None) -> Choice:
        """The plan for buckets of `num_bytes`; rank 0 decides. Collective: every rank calls."""
        if num_bytes not in self._choices:
            with self._during("choosing how to sum gradients"):
                choice = self._choose(num_bytes, known)
            for line in choice.why:
                self._report(line)
            self._choices[num_bytes] = choice
            self._close_others()
        return self._choices[num_bytes]

    def route(self, plan: ReducePlan) -> Route:
        """What runs `plan`, made once. Collective: every rank calls."""
        digest = plan.digest()
        if digest not in self._routes:
            self._routes[digest] = Route(plan, rank=self._cluster.rank, device=self._device)
        return self._routes[digest]

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Meanwhile gradients are summed by torch: for attempts in which ranks may fail, each at a place of its own."""
        self._is_aside = True
        try:
            yield
        finally:
            self._is_aside = False

    def check(self) -> None:
        """Finds out before any work what cannot be chosen. Raises ConfigError and TopologyError on all ranks.

        Collective: every rank calls.
        """
        if self._cluster.world_size == 1:
            return
        is_asked = self.comm.plan not in ("auto", "flat", "powersgd")
        if is_asked or self.comm.topology is not None:
            self._read()
        if is_asked:
            self._asked_for(_SOME_BYTES)

    def close(self) -> None:
        """Lets go of threads and process groups."""
        self._choices.clear()
        self._close_others()

    # -- choosing ----------------------------------------------------------------------------------------------------

    def _choose(self, num_bytes: int, known: Mapping[str, Any] | None) -> Choice:
        comm = self.comm
        # Ranks of one host without GPUs have one link, and nothing to choose.
        is_plain = self._cluster.is_one_host and self._device.type == "cpu" and comm.topology is None
        if comm.plan == "flat" or (comm.plan == "auto" and is_plain):
            return Choice(plan=flat(self._cluster.world_size))
        self._read()
        before = self._as_before(known)
        if before is not None:
            return self._agreed(before)
        if comm.plan != "auto":
            self._probe()
            return self._agreed(self._asked_for(num_bytes))
        if self._deterministic:
            return self._agreed(self._by_prediction(num_bytes))
        path = cache_path(self._fingerprint, num_bytes, comm.wire_dtype, comm.chunk_mb, torch.__version__)
        cached = self._agreed(choice_file.read(path, self._fingerprint))
        if cached is not None:
            return cached
        self._probe()
        choice = self._agreed(self._measured(num_bytes))
        if self._cluster.rank == 0:
            choice_file.write(path, choice)
        return choice

    def _read(self) -> None:
        if self._topology is None:
            self._topology = discover(self._device, self._cluster, group=self._group, path=self.comm.topology)
            self._fingerprint = self._topology.fingerprint()  # of what was read: probes never find the same twice

    def _probe(self) -> None:
        """Measures links, unless the user gives them, or two starts must find the same."""
        if not self._is_probed and self.comm.topology is None and not self._deterministic:
            assert self._topology is not None
            self._topology, self._is_probed = probe(self._topology), True

    def _as_before(self, known: Mapping[str, Any] | None) -> Choice | None:
        """The plan of a checkpoint, where it is of these machines, and what the user asks for now."""
        if known is None or known["fingerprint"] != self._fingerprint:
            return None
        plan, comm = ReducePlan.from_dict(known["plan"]), self.comm
        is_kind = comm.plan in ("auto", plan.kind)
        is_format = plan.format == comm.wire_dtype or (comm.plan == "auto" and plan.format == "exact")
        has_no_chunks = plan.kind in ("flat", "ring")
        if not (is_kind and is_format and (has_no_chunks or comm.chunk_bytes in (None, plan.chunk_bytes))):
            return None
        why = (f"gradients are summed {plan.describe()}: as before the checkpoint, on the same machines",)
        return Choice(plan=plan, fingerprint=self._fingerprint, why=why)

    def _close_others(self) -> None:
        """Closes the routes of plans that were timed, and not chosen."""
        used = {choice.plan.digest() for choice in self._choices.values()}
        for digest in [digest for digest in self._routes if digest not in used]:
            self._routes.pop(digest).close()

    def _agreed(self, choice: T) -> T:
        """Rank 0's. Raises ConfigError where this rank's trainkit takes it for another plan. Collective."""
        told: list[Any] = [(choice, choice.plan.digest() if isinstance(choice, Choice) else None)]
        if self._group is not None:
            dist.broadcast_object_list(told, group=self._group, group_src=0)
        agreed: T
        agreed, digest = told[0]
        if isinstance(agreed, Choice) and agreed.plan.digest() != digest:
            raise ConfigError(
                f"rank {self._cluster.rank} reads the plan of rank 0 otherwise: is trainkit the same there?"
            )
        return agreed

    def _predicted(self, num_bytes: int) -> list[Predicted]:
        """Every plan that is allowed, the fastest first."""
        assert self._topology is not None
        return candidates(self._topology, num_bytes, wire_dtype=self.comm.wire_dtype, chunk_bytes=self.comm.chunk_bytes)

    def _asked_for(self, num_bytes: int) -> Choice:
        kind, format = self.comm.plan, self.comm.wire_dtype
        for entry in self._predicted(num_bytes):
            if entry.plan.kind == kind and entry.plan.format == format:
                why = (f"gradients are summed {entry.plan.describe()}, as asked",)
                return Choice(plan=entry.plan, fingerprint=self._fingerprint, why=why)
        assert self._topology is not None
        sizes = [len(ranks) for ranks in self._topology.ranks_by_host()]
        reason = {
            "ring": "the ranks are in the order of their hosts already, or NCCL orders its rings itself",
            "hierarchical": "it needs several hosts with equally many ranks; exact, with more than one each",
            "leader": "it needs several hosts, of which one has several ranks",
        }[str(kind)]
        raise ConfigError(
            f"comm={kind}: {reason}; here are hosts of {', '.join(map(str, sizes))}. "
            f"Use comm=auto, which chooses among all that is possible"
        )

    def _by_prediction(self, num_bytes: int) -> Choice:
        """What is predicted to be fastest; flat unless that gains over 5 %."""
        size = f"{num_bytes / 1e6:.3g} MB"
        try:
            predicted = self._predicted(num_bytes)
        except TopologyError as error:  # the links could not all be read; torch finds its own way
            why = f"gradients are summed flat: {error}. `trainkit topo show` has what could be read"
            return Choice(plan=flat(self._cluster.world_size), fingerprint=self._fingerprint, why=(why,))
        best, plain = predicted[0], _flat_of(predicted)
        if best.time_us < (1 - MIN_GAIN) * plain.time_us:
            why = f"gradients are summed {best.plan.describe()}: predicted {_s(best)} for {size}, flat {_s(plain)}"
            return Choice(plan=best.plan, fingerprint=self._fingerprint, why=(why,))
        why = f"gradients are summed flat: no other plan is predicted to save over 5 % of {_s(plain)} for {size}"
        return Choice(plan=plain.plan, fingerprint=self._fingerprint, why=(why,))

    def _measured(self, num_bytes: int) -> Choice:
        """Flat where nothing is predicted to gain; else the fastest of the best three, with the best of its chunks."""
        expected = self._by_prediction(num_bytes)
        if expected.plan.kind == "flat":
            return expected
        predicted = self._predicted(num_bytes)
        best, plain = shortlist(predicted, _NUM_TIMED), _flat_of(predicted)
        if plain not in best:
            best[-1] = plain
        timed = self._time(best, num_bytes)
        # Latencies, which chunks cost, are what is measured worst.
        fastest = timed[0][1].plan
        alike = [entry for entry in predicted if replace(entry.plan, chunk_bytes=fastest.chunk_bytes) == fastest]
        if len(alike) > 1:
            timed = sorted([*timed[1:], *self._time(alike, num_bytes)], key=lambda pair: pair[0])
        chosen = timed[0][1].plan
        size = f"{num_bytes / 1e6:.3g} MB"
        lines = [f"gradients are summed {chosen.describe()}, the fastest of {len(timed)} plans timed with {size}"]
        lines += [
            f"  {seconds:.3g} s (predicted {_s(entry)}), {seconds / timed[0][0]:.2f}x: {entry.plan.describe()}"
            for seconds, entry in timed
        ]
        return Choice(plan=chosen, fingerprint=self._fingerprint, why=tuple(lines))

    def _time(self, entries: Sequence[Predicted], num_bytes: int) -> list[tuple[float, Predicted]]:
        """Seconds that each plan takes on the slowest rank, the median of turns; the fastest first. Collective."""
        routes = [self.route(entry.plan) for entry in entries]
        gradient = torch.ones(num_bytes // 4, device=self._device)
        seconds: list[list[float]] = [[] for _ in routes]
        for route in routes:
            route.all_reduce(gradient[: len(gradient) // 16 + 1]).wait()  # connects
        longest_us = max(entry.time_us for entry in entries)
        for number in range(next((num for limit, num in _TURNS.items() if longest_us < limit), 1)):
            pairs = list(zip(routes, seconds, strict=True))
            for route, times in pairs[:: -1 if number % 2 else 1]:
                spans = route.spans(len(gradient), 4) if route.plan.format == "int8" else []
                errors = [gradient.new_zeros(span.high - span.low) for span in spans]
                dist.barrier(group=self._group)
                self._wait_for_device()
                start = time.perf_counter()
                route.all_reduce(gradient, factor=1 / self._cluster.world_size, errors=errors).wait()
                self._wait_for_device()
                longest = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
                dist.all_reduce(longest, dist.ReduceOp.MAX, group=self._group)
                times.append(longest.item())
        # All ranks have the same figures, and so the same order.
        medians = [statistics.median(times) for times in seconds]
        return sorted(zip(medians, entries, strict=True), key=lambda pair: pair[0])

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _power_sgd_in_order(state: PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """torch's hook, one bucket after the other.

    It goes on from one collective to the next when that is done; for two buckets at once, on gloo, that is in another
    order on every rank, which ends the job.
    """
    future = powerSGD_hook(state, bucket)
    future.wait()
    return future


def _flat_of(predicted: Sequence[Predicted]) -> Predicted:
    return next(entry for entry in predicted if entry.plan.kind == "flat")


def _s(predicted: Predicted) -> str:
    return f"{predicted.time_us / 1e6:.3g} s"
