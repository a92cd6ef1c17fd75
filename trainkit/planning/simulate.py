"""Predicts the step time of data-parallel training on any number of machines. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trainkit.errors import TopologyError, nearest
from trainkit.planning.accuracy import time_range_us
from trainkit.planning.cost import CostModel
from trainkit.planning.plan import plan_all_reduce
from trainkit.planning.reduce_plan import ReducePlan, WireDtype
from trainkit.topology.cards import Precision, card_of, nearest_card
from trainkit.topology.topology import GPU_LINKS, Device, Host, Link, Topology

BUCKET_BYTES = 25_000_000
"""Of DDP's buckets, except for its smaller first one."""
BACKWARD_SHARE = 2 / 3
MODEL_FLOPS_UTILISATION = 0.45
"""The share of the peak where no sustained rate is given: that of BERT on an A100 and on an H100."""
NVSWITCH_GB_PER_S, NVSWITCH_RATED_GB_PER_S = 230.4, 300.0
KNEE = 0.9


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The computation of one device in one step, between two reductions of its gradient.

    Args:
        name: of the model.
        num_parameters: of the model.
        flops_per_sample: of forward and backward passes together.
        samples_per_device: of all micro-batches of a step.
        tflops: sustained by one device; None: 45 % of its peak in this precision, for the GPUs whose peak is
            in the table of cards.
        precision: of the computation.
    """

    name: str
    num_parameters: int
    flops_per_sample: float
    samples_per_device: int
    tflops: float | None = None
    precision: Precision = "bf16"

    @property
    def gradient_bytes(self) -> int:
        """Bytes of all gradients, which are float32 under autocast, too."""
        return 4 * self.num_parameters


@dataclass(frozen=True, kw_only=True)
class Point:
    """The predicted step on a number of nodes.

    Args:
        num_nodes: nodes.
        num_devices: devices on all nodes.
        compute_us: of forward and backward passes.
        communication_us: of all buckets, one after another.
        exposed_us: of the communication after the end of the backward pass.
        fast_step_us: of a step whose all-reduces take the shorter time of `accuracy.time_range_us`.
        slow_step_us: the same with the longer time. Both are the time of the step over gloo.
        samples_per_s: of all devices.
        plan: of a full bucket.
    """

    num_nodes: int
    num_devices: int
    compute_us: float
    communication_us: float
    exposed_us: float
    fast_step_us: float
    slow_step_us: float
    samples_per_s: float
    plan: ReducePlan

    @property
    def step_us(self) -> float:
        """The time of a step: computation and exposed communication."""
        return self.compute_us + self.exposed_us

    @property
    def efficiency(self) -> float:
        """The share of the throughput that the same devices would have without communication."""
        return self.compute_us / self.step_us

    @property
    def fast_efficiency(self) -> float:
        """`efficiency` with `fast_step_us`."""
        return self.compute_us / self.fast_step_us

    @property
    def slow_efficiency(self) -> float:
        """`efficiency` with `slow_step_us`."""
        return self.compute_us / self.slow_step_us


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The predicted step on a changed machine, on the same number of nodes.

    Args:
        change: in words.
        point: the step.
        gain: share of the step time that is saved; negative where it is slower.
    """

    change: str
    point: Point
    gain: float


def workload(
    name: str, *, samples_per_device: int | None = None, tflops: float | None = None, precision: Precision = "bf16"
) -> Workload:
    """The workload of a recipe.

    Args:
        name: `bert-base` or `bert-large`, with sequences of 128 tokens of which 20 are masked.
        samples_per_device: in a step; None: 128 for bert-base, 64 for bert-large.
        tflops: sustained by one device; see `Workload`.
        precision: of the computation.

    Raises:
        TopologyError: for another name.

    Example:
        >>> workload("bert-base").num_parameters
        110111042
    """
    if name not in RECIPES:
        raise TopologyError(
            f"there is no recipe {name!r}: must be one of {', '.join(RECIPES)}.{nearest(name, RECIPES)}"
        )
    known = replace(RECIPES[name], tflops=tflops, precision=precision)
    return known if samples_per_device is None else replace(known, samples_per_device=samples_per_device)


def _bert(name: str, layers: int, width: int, samples_per_device: int) -> Workload:
    tokens, masked, vocabulary, inner = 128, 20, 30_528, 4 * width
    matrices = layers * (4 * width**2 + 2 * width * inner)
    head = width**2 + vocabulary * width
    per_token = 6 * matrices + 12 * layers * width * tokens + 6 * masked / tokens * head
    vectors = layers * (9 * width + inner) + vocabulary + 2 * (width**2 + width) + 6 * width + 2
    return Workload(
        name=name,
        num_parameters=matrices + vectors + (vocabulary + 512 + 2) * width,
        flops_per_sample=per_token * tokens,
        samples_per_device=samples_per_device,
    )


RECIPES = {"bert-base": _bert("bert-base", 12, 768, 128), "bert-large": _bert("bert-large", 24, 1024, 64)}


def simulate(
    topology_of_one_node: Topology,
    num_nodes: Sequence[int],
    workload: Workload,
    *,
    wire_dtype: WireDtype = "exact",
    traffic: float = 1.0,
) -> list[Point]:
    """Predicts weak scaling: the batch of each device stays the same.

    Gradient buckets become ready at equal intervals of the backward pass, and are reduced one after another.

    Args:
        topology_of_one_node: of which all nodes are copies.
        num_nodes: numbers of nodes to predict.
        workload: of each device.
        wire_dtype: a format that is allowed between hosts in addition to `exact`.
        traffic: of a strategy, see `Strategy.traffic`.

    Returns:
        A point for each number of nodes.

    Raises:
        TopologyError: where no link leads from one rank to another, or the speed of the device is unknown.
    """
    device = topology_of_one_node.hosts[0].devices[0]
    rate = workload.tflops or _tflops(device, workload.precision)
    compute_us = workload.flops_per_sample * workload.samples_per_device / rate / 1e6
    points = []
    for count in num_nodes:
        topology = topology_of_one_node.times(count)
        num_buckets = max(1, round(workload.gradient_bytes / BUCKET_BYTES))
        bucket = workload.gradient_bytes // num_buckets
        plan = plan_all_reduce(topology, bucket, wire_dtype=wire_dtype)
        model = CostModel(topology)
        time_us = model.all_reduce_us(plan, bucket)
        fast_us, slow_us = time_range_us(model, plan, bucket) or (time_us, time_us)
        bucket_us = traffic * time_us
        step_us = _step_us(compute_us, num_buckets, bucket_us)
        points.append(
            Point(
                num_nodes=count,
                num_devices=topology.world_size,
                compute_us=compute_us,
                communication_us=num_buckets * bucket_us,
                exposed_us=step_us - compute_us,
                fast_step_us=_step_us(compute_us, num_buckets, traffic * fast_us),
                slow_step_us=_step_us(compute_us, num_buckets, traffic * slow_us),
                samples_per_s=topology.world_size * workload.samples_per_device / step_us * 1e6,
                plan=plan,
            )
        )
    return points


def _step_us(compute_us: float, num_buckets: int, bucket_us: float) -> float:
    end_us = 0.0
    for k in range(num_buckets):
        ready_us = compute_us * (1 - BACKWARD_SHARE * (1 - (k + 1) / num_buckets))
        end_us = max(ready_us, end_us) + bucket_us
    return max(compute_us, end_us)


def knee(points: Sequence[Point]) -> Point | None:
    """The first of the points with an efficiency below 90 %; None where there is none."""
    return next((point for point in points if point.efficiency < KNEE), None)


def what_if(
    topology_of_one_node: Topology, workload: Workload, num_nodes: int, *, wire_dtype: WireDtype = "exact"
) -> list[WhatIf]:
    """Predicts the step on machines with one change: without or with NVLink, and with faster network cards.

    Args:
        topology_of_one_node: of which all nodes are copies.
        workload: of each device.
        num_nodes: nodes.
        wire_dtype: a format that is allowed between hosts in addition to `exact`.

    Returns:
        The changes that apply to the machine.

    Raises:
        TopologyError: as `simulate`.
    """
    host = topology_of_one_node.hosts[0]
    base = simulate(topology_of_one_node, [num_nodes], workload, wire_dtype=wire_dtype)[0]
    changes: list[tuple[str, Host]] = []
    if len(host.devices) > 1:
        without = _without_nvlink(host)
        amd = any(link.kind == "xgmi" for link in host.links)
        if without is not None:
            changes.append((f"without {'Infinity Fabric' if amd else 'NVLink'}", without))
        if not amd and not any(link.kind == "nvswitch" for link in host.links):
            changes.append(("with NVLink through an NVSwitch, 12 links a device", _with_nvswitch(host)))
    if num_nodes > 1:
        changes += [(f"network cards {factor} x as fast", _with_faster_nics(host, factor)) for factor in (2, 4)]
    found = []
    for change, other in changes:
        point = simulate(Topology(hosts=(other,)), [num_nodes], workload, wire_dtype=wire_dtype)[0]
        found.append(WhatIf(change=change, point=point, gain=1 - point.step_us / base.step_us))
    return found


def peaks(device: Device) -> Mapping[Precision, float]:
    """The dense peaks of a GPU in TFLOPS, from the table of cards.

    Raises:
        TopologyError: for a device whose peaks are not known.
    """
    card = card_of(device)
    if card is not None and card.tflops:
        return card.tflops
    what = f"{device.name or 'this device'!r}" + (
        f", which may be {card.name}," if card and " or " in card.name else ""
    )
    near = nearest_card(device.name) if card is None else ""
    raise TopologyError(
        f"the speed of {what} is not known: give --tflops (tflops=), what it sustains; "
        f"`trainkit benchmark` measures it.{near}"
    )


def _tflops(device: Device, precision: Precision) -> float:
    known = peaks(device)
    if precision not in known:
        raise TopologyError(
            f"precision={precision}: {device.name} must use one of {', '.join(known)}; or set tflops= (--tflops)"
        )
    return MODEL_FLOPS_UTILISATION * known[precision]


def _without_nvlink(host: Host) -> Host | None:
    """The host without NVLink or Infinity Fabric; None where it has none, or no other links."""
    others = tuple(link for link in host.links if link.kind not in GPU_LINKS)
    joined = {end for link in others for end in (link.a, link.b)}
    if len(others) == len(host.links) or not all(device.id in joined for device in host.devices):
        return None
    facts = {key: value for key, value in host.facts.items() if not key.startswith("nvlink_domain")}
    return replace(host, links=others, facts=facts)


def _with_nvswitch(host: Host) -> Host:
    added = tuple(
        Link(
            a=device.id,
            b="nvswitch",
            kind="nvswitch",
            bandwidth_gb_per_s=NVSWITCH_GB_PER_S,
            latency_us=0.5,
            rated_gb_per_s=NVSWITCH_RATED_GB_PER_S,
        )
        for device in host.devices
    )
    kept = tuple(link for link in host.links if link.kind != "nvlink")
    return replace(host, switches=(*host.switches, "nvswitch"), links=(*kept, *added))


def _with_faster_nics(host: Host, factor: int) -> Host:
    """The host with faster network cards in faster slots."""
    nics = {nic.id for nic in host.nics}

    def faster(link: Link) -> Link:
        if link.kind != "nic" and not nics & {link.a, link.b}:
            return link
        rated = link.rated_gb_per_s * factor if link.rated_gb_per_s else None
        return replace(link, bandwidth_gb_per_s=link.bandwidth_gb_per_s * factor, rated_gb_per_s=rated)

    return replace(host, links=tuple(faster(link) for link in host.links))
