"""Forecast: the memory of a rank and the time of a step on a number of hosts. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from trainkit.distributed.cluster import Cluster
from trainkit.forecast.measured import Measured
from trainkit.memory.memory import Memory
from trainkit.planning.reduce_plan import WireDtype
from trainkit.planning.simulate import Point, Workload, simulate
from trainkit.topology.cards import card_of
from trainkit.topology.topology import Device, Topology

WORTH = 0.5
"""The share of its speed that an added host must bring."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a job does on a number of hosts. The global batch is the same on all numbers.

    Args:
        num_hosts: hosts.
        num_ranks: processes.
        num_samples: of the largest share of a step, those of a rank.
        num_micro_batches: of the share; of `auto`, one.
        state: what a rank holds of parameters, gradients and optimizer state.
        beside: bytes of the peak beside them, activations first of all.
        step: computation and communication.
        samples_per_s: of all ranks.
        run_s: seconds of the whole run; None: not known.
    """

    num_hosts: int
    num_ranks: int
    num_samples: int
    num_micro_batches: int
    state: Memory
    beside: int
    step: Point
    samples_per_s: float
    run_s: float | None

    @property
    def peak_bytes(self) -> int:
        """The most memory of a rank, as far as it is known."""
        return self.state.parameters + self.state.gradients + (self.state.optimizer or 0) + self.beside


def forecast(
    measured: Measured,
    node: Topology,
    num_hosts: Sequence[int],
    *,
    tflops: float | None = None,
    wire_dtype: WireDtype = "exact",
) -> list[Forecast]:
    """Predicts strong scaling: the global batch stays, and the share of each rank shrinks.

    Args:
        measured: of the configuration.
        node: one host, of which all are copies.
        num_hosts: numbers of hosts; those with more ranks than the global batch has samples are left out.
        tflops: sustained by one device; None: 45 % of its peak, for devices that are known by name.
        wire_dtype: a format that is allowed between hosts in addition to `exact`.

    Raises:
        TopologyError: the speed of the device is not known, or no link leads from one rank to another.
    """
    found = []
    for count in num_hosts:
        ranks = node.world_size * count
        if ranks > measured.batch_size:
            break
        share = -(-measured.batch_size // ranks)
        work = Workload(
            name="",
            num_parameters=measured.num_trained,
            flops_per_sample=measured.flops_per_sample,
            samples_per_device=share,
            tflops=tflops,
            precision="fp32" if measured.precision == "fp64" else measured.precision,  # type: ignore[arg-type]
        )
        step = simulate(node, [count], work, wire_dtype=wire_dtype, traffic=measured.strategy.traffic)[0]
        micro = min(share, measured.num_micro_batches or 1)
        rate = measured.batch_size / step.step_us * 1e6
        found.append(
            Forecast(
                num_hosts=count,
                num_ranks=ranks,
                num_samples=share,
                num_micro_batches=micro,
                state=_state(measured, Cluster(world_size=ranks, local_world_size=node.world_size)),
                beside=round(measured.bytes_beside + measured.bytes_per_sample * -(-share // micro)),
                step=step,
                samples_per_s=rate,
                run_s=measured.num_samples / rate if measured.num_samples else None,
            )
        )
    return found


def _state(measured: Measured, cluster: Cluster) -> Memory:
    each = [
        measured.strategy.predict(sizes.trained, sizes.frozen, sizes.state_tensors, cluster)
        for sizes in measured.engines.values()
    ]
    optimizer = [memory.optimizer for memory in each]
    total = Memory(
        parameters=sum(memory.parameters for memory in each),
        gradients=sum(memory.gradients for memory in each),
        optimizer=None if None in optimizer else sum(num or 0 for num in optimizer),
    )
    return total.twice() if measured.precision == "fp64" else total


def worthwhile(found: Sequence[Forecast]) -> Forecast:
    """The most hosts that pay off: each one that was added up to there brought at least half of its speed.

    Args:
        found: of one number of hosts or more, in ascending order.
    """
    last = found[0]
    for before, after in pairwise(found):
        gained = after.samples_per_s / before.samples_per_s - 1
        if gained < WORTH * (after.num_hosts / before.num_hosts - 1):
            break
        last = after
    return last


def memory_of(device: Device) -> int | None:
    """Bytes of a device, from the table of cards, otherwise by its name, such as `A100-SXM4-40GB`; None: unknown.

    Example:
        >>> memory_of(Device(id="gpu0", name="NVIDIA GeForce RTX 4090")), memory_of(Device(id="cpu0", kind="cpu"))
        (24000000000, None)
    """
    card = card_of(device)
    if card is not None and card.memory_bytes is not None:
        return card.memory_bytes
    said = re.search(r"(\d+) ?GB", device.name)
    return int(said[1]) * 10**9 if said else None
