"""Reducer: reads the links of a job, chooses the plan of its all-reduces, and reports the choice and its reason."""

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
from trainkit.planning.advice import advise
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
_NUM_REPEATS = {1e6: 5, 4e6: 2}  # microseconds, an upper bound of the predicted time -> measurements of each plan


class Reducer:
    """Reduces the gradients of a job's engines, which share process groups and threads. There is one in a Runtime.

    Args:
        comm: the options.
        cluster: the processes of the job.
        device: of this process.
        deterministic: whether every start of a run must choose the same plan: by nominal figures or the topology
            file, without measuring.
        group: a gloo group of all ranks; None for one process.
        report: called on every rank with lines about the choice and its reason.
        during: a context manager around work that takes a while, called with a name for it.
        chosen: called on every rank with the bytes of a bucket, the choice for it, and the topology where it was read.
        waited: called with the seconds for which a backward pass waited for the other ranks' gradients; None: where
            that cannot be seen, as on a GPU, whose queue waits in the place of this process.
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
        chosen: Callable[[int, Choice, Topology | None], None] = lambda num_bytes, choice, topology: None,
        waited: Callable[[float], None] | None = None,
    ) -> None:
        self.comm, self.waited, self._chosen = comm, waited, chosen
        self._cluster, self._device, self._group = cluster, device, group
        self._deterministic, self._report, self._during = deterministic, report, during
        self._topology: Topology | None = None
        self._fingerprint = ""
        self._is_probed = self._is_disabled = False
        self._choices: dict[int, Choice] = {}
        self._routes: dict[str, Route] = {}

    def install(
        self,
        wrapped: DistributedDataParallel,
        names: Mapping[torch.Tensor, str],
        num_bytes: int,
        known: Mapping[str, Any] | None = None,
    ) -> tuple[Choice | None, Hook | None]:
        """Chooses how the buckets of `wrapped` are reduced, and registers a hook where that needs one.

        Collective: every rank must call, before the first backward pass.

        Args:
            wrapped: the module.
            names: of its parameters.
            num_bytes: of its largest bucket.
            known: `Choice.to_dict` of an earlier start, which is used again on the same machines.

        Returns:
            The choice, and the hook; None for what is not ours (PowerSGD, `disabled`, the all-reduce of DDP itself).

        Raises:
            ConfigError: where the configured plan is not possible; on all ranks.
            TopologyError: where a topology file is invalid; on all ranks.
        """
        if self._is_disabled:
            return None, None
        if self.comm.plan == "powersgd":
            state = PowerSGDState(
                process_group=None,
                matrix_approximation_rank=self.comm.matrix_rank,
                start_powerSGD_iter=self.comm.start_after,
            )
            wrapped.register_comm_hook(state, powerSGD_hook if self._device.type == "cuda" else _power_sgd_in_order)
            self._report(
                f"gradients are reduced by PyTorch's PowerSGD of rank {self.comm.matrix_rank} after "
                f"{self.comm.start_after} exact steps; a resumed run starts with these steps again"
            )
            return None, None
        choice = self.choose(num_bytes, known)
        if choice.plan.kind == "flat":
            return choice, None  # the all-reduce of DDP itself
        hook = Hook(self.route(choice.plan), names, self._report)
        hook.register(wrapped)
        return choice, hook

    def choose(self, num_bytes: int, known: Mapping[str, Any] | None = None) -> Choice:
        """Chooses the plan for buckets of `num_bytes`. Collective: every rank must call.

        Rank 0 decides. The arguments and errors are those of `install`.
        """
        if num_bytes not in self._choices:
            with self._during("choosing a plan for all-reduces"):
                choice = self._choose(num_bytes, known)
            for line in choice.why:
                self._report(line)
            self._choices[num_bytes] = choice
            self._chosen(num_bytes, choice, self._topology)
            self._close_others()
        return self._choices[num_bytes]

    def describe(self) -> dict[str, Any]:
        """Returns the fingerprint of the links, where they were read, and the plan of each size of bucket, in words."""
        plans = {str(num_bytes): choice.plan.describe() for num_bytes, choice in self._choices.items()}
        return {"topology": self._fingerprint or None, "plans": plans}

    def route(self, plan: ReducePlan) -> Route:
        """The route along `plan`; one is kept for each plan. Collective: every rank must call."""
        digest = plan.digest()
        if digest not in self._routes:
            self._routes[digest] = Route(plan, rank=self._cluster.rank, device=self._device)
        return self._routes[digest]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """A context in which `install` leaves gradients to DDP: for attempts that may fail on some ranks only."""
        self._is_disabled = True
        try:
            yield
        finally:
            self._is_disabled = False

    def check(self) -> None:
        """Checks before any work that the plan asked for is possible. Collective: every rank must call.

        Raises:
            ConfigError: where it is not; on all ranks.
            TopologyError: where a topology file is invalid; on all ranks.
        """
        if self._cluster.world_size == 1:
            return
        is_given = self.comm.plan not in ("auto", "flat", "powersgd")
        if is_given or self.comm.topology is not None:
            self._read()
        if is_given:
            self._as_given(_SOME_BYTES)

    def close(self) -> None:
        """Ends the threads and process groups."""
        self._choices.clear()
        self._close_others()

    # -- choosing ----------------------------------------------------------------------------------------------------

    def _choose(self, num_bytes: int, known: Mapping[str, Any] | None) -> Choice:
        comm = self.comm
        # The ranks of one host without GPUs share one link: there is nothing to choose.
        is_plain = self._cluster.is_one_host and self._device.type == "cpu" and comm.topology is None
        if comm.plan == "flat" or (comm.plan == "auto" and is_plain):
            return Choice(plan=flat(self._cluster.world_size))
        self._read()
        before = self._as_before(known)
        if before is not None:
            return self._agreed(before)
        if comm.plan != "auto":
            self._probe()
            return self._agreed(self._as_given(num_bytes))
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
            self._fingerprint = self._topology.fingerprint()  # before the probe, whose figures vary
            for advice in advise(self._topology):
                if advice.severity != "hint":
                    self._report(str(advice))

    def _probe(self) -> None:
        """Measures the links, unless a file gives them or all starts must choose the same plan."""
        if not self._is_probed and self.comm.topology is None and not self._deterministic:
            assert self._topology is not None
            self._topology, self._is_probed = probe(self._topology), True

    def _as_before(self, known: Mapping[str, Any] | None) -> Choice | None:
        """The plan of a checkpoint, where it was chosen for these machines and fits the present options."""
        if known is None or known["fingerprint"] != self._fingerprint:
            return None
        plan, comm = ReducePlan.from_dict(known["plan"]), self.comm
        is_kind = comm.plan in ("auto", plan.kind)
        is_wire_dtype = plan.wire_dtype == comm.wire_dtype or (comm.plan == "auto" and plan.wire_dtype == "exact")
        has_no_chunks = plan.kind in ("flat", "ring")
        if not (is_kind and is_wire_dtype and (has_no_chunks or comm.chunk_bytes in (None, plan.chunk_bytes))):
            return None
        why = (f"all-reduce plan: {plan.describe()}, as in the checkpoint, on the same machines",)
        return Choice(plan=plan, fingerprint=self._fingerprint, why=why)

    def _close_others(self) -> None:
        """Closes the routes of plans that were benchmarked and not chosen."""
        used = {choice.plan.digest() for choice in self._choices.values()}
        for digest in [digest for digest in self._routes if digest not in used]:
            self._routes.pop(digest).close()

    def _agreed(self, choice: T) -> T:
        """Rank 0's choice; ConfigError where this rank's version of trainkit reads it differently. Collective."""
        box: list[Any] = [(choice, choice.plan.digest() if isinstance(choice, Choice) else None)]
        if self._group is not None:
            dist.broadcast_object_list(box, group=self._group, group_src=0)
        agreed: T
        agreed, digest = box[0]
        if isinstance(agreed, Choice) and agreed.plan.digest() != digest:
            raise ConfigError(
                f"rank {self._cluster.rank} reads the plan of rank 0 differently: "
                f"install the same trainkit on all hosts"
            )
        return agreed

    def _predicted(self, num_bytes: int) -> list[Predicted]:
        """The possible plans, fastest first."""
        assert self._topology is not None
        return candidates(self._topology, num_bytes, wire_dtype=self.comm.wire_dtype, chunk_bytes=self.comm.chunk_bytes)

    def _as_given(self, num_bytes: int) -> Choice:
        kind, wire_dtype = self.comm.plan, self.comm.wire_dtype
        for entry in self._predicted(num_bytes):
            if entry.plan.kind == kind and entry.plan.wire_dtype == wire_dtype:
                why = (f"all-reduce plan: {entry.plan.describe()}, as configured",)
                return Choice(plan=entry.plan, fingerprint=self._fingerprint, why=why)
        assert self._topology is not None
        sizes = [len(ranks) for ranks in self._topology.ranks_by_host()]
        reason = {
            "ring": "the ranks are in the order of their hosts already, or NCCL orders its rings itself",
            "hierarchical": "it needs several hosts with equally many ranks, and with wire_dtype=exact several on each",
            "leader": "it needs several hosts, and several ranks on one of them",
        }[str(kind)]
        raise ConfigError(
            f"comm={kind}: {reason}; the hosts of this job have {', '.join(map(str, sizes))} ranks. "
            f"Use comm=auto, which chooses among the possible plans"
        )

    def _by_prediction(self, num_bytes: int) -> Choice:
        """The plan that is predicted to be fastest; flat unless it saves more than 5 %."""
        size = f"{num_bytes / 1e6:.3g} MB"
        try:
            predicted = self._predicted(num_bytes)
        except TopologyError as error:  # some links could not be read
            why = f"all-reduce plan: flat: {error}. `trainkit topo show` prints what could be read"
            return Choice(plan=flat(self._cluster.world_size), fingerprint=self._fingerprint, why=(why,))
        best, plain = predicted[0], _flat_of(predicted)
        if best.time_us < (1 - MIN_GAIN) * plain.time_us:
            why = f"all-reduce plan: {best.plan.describe()}: predicted {_s(best)} for {size}, flat {_s(plain)}"
            return Choice(plan=best.plan, fingerprint=self._fingerprint, why=(why,))
        why = f"all-reduce plan: flat: no other is predicted to save more than 5 % of {_s(plain)} for {size}"
        return Choice(plan=plain.plan, fingerprint=self._fingerprint, why=(why,))

    def _measured(self, num_bytes: int) -> Choice:
        """Flat where no plan is predicted to be faster; else the fastest measured one, with its best chunk size."""
        expected = self._by_prediction(num_bytes)
        if expected.plan.kind == "flat":
            return expected
        predicted = self._predicted(num_bytes)
        best, plain = shortlist(predicted, _NUM_TIMED), _flat_of(predicted)
        if plain not in best:
            best[-1] = plain
        timed = self._time(best, num_bytes)
        # The cost of chunks is in latencies, which are measured least accurately.
        fastest = timed[0][1].plan
        alike = [entry for entry in predicted if replace(entry.plan, chunk_bytes=fastest.chunk_bytes) == fastest]
        if len(alike) > 1:
            timed = sorted([*timed[1:], *self._time(alike, num_bytes)], key=lambda pair: pair[0])
        chosen = timed[0][1].plan
        size = f"{num_bytes / 1e6:.3g} MB"
        lines = [f"all-reduce plan: {chosen.describe()}, the fastest of {len(timed)} that were measured with {size}"]
        lines += [
            f"  {seconds:.3g} s (predicted {_s(entry)}), {seconds / timed[0][0]:.2f}x: {entry.plan.describe()}"
            for seconds, entry in timed
        ]
        return Choice(plan=chosen, fingerprint=self._fingerprint, why=tuple(lines))

    def _time(self, entries: Sequence[Predicted], num_bytes: int) -> list[tuple[float, Predicted]]:
        """The median of the seconds that each plan takes on the slowest rank; fastest first. Collective."""
        routes = [self.route(entry.plan) for entry in entries]
        gradient = torch.ones(num_bytes // 4, device=self._device)
        seconds: list[list[float]] = [[] for _ in routes]
        for route in routes:
            route.all_reduce(gradient[: len(gradient) // 16 + 1]).wait()  # opens the connections
        longest_us = max(entry.time_us for entry in entries)
        for number in range(next((num for limit, num in _NUM_REPEATS.items() if longest_us < limit), 1)):
            pairs = list(zip(routes, seconds, strict=True))
            for route, times in pairs[:: -1 if number % 2 else 1]:
                chunks = route.chunks(len(gradient), 4) if route.plan.wire_dtype == "int8" else []
                errors = [gradient.new_zeros(chunk.num_own) for chunk in chunks]
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
    """PyTorch's hook, one bucket after the other.

    It starts each collective when the previous one is done. With two buckets at once on gloo, the order would differ
    between ranks, and the job would fail.
    """
    future = powerSGD_hook(state, bucket)
    future.wait()
    return future


def _flat_of(predicted: Sequence[Predicted]) -> Predicted:
    return next(entry for entry in predicted if entry.plan.kind == "flat")


def _s(predicted: Predicted) -> str:
    return f"{predicted.time_us / 1e6:.3g} s"
