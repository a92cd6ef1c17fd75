"""Changes: what other links or settings would save of a step. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from trainkit.errors import TopologyError, nearest
from trainkit.planning import changed_host
from trainkit.planning.reduce_plan import WireDtype
from trainkit.planning.simulate import Point, simulate
from trainkit.planning.workload import Workload
from trainkit.topology.cards import card_of
from trainkit.topology.topology import Host, Topology

TRAFFIC = {"ddp": 1.0, "zero1": 1.0, "zero2": 1.0, "hsdp": 1.0, "fsdp": 1.5, "zero3": 1.5}
"""What a step sends under a strategy, as a multiple of an all-reduce: `Strategy.traffic`."""
STATE_BYTES = {
    "ddp": (16, 0),
    "zero1": (8, 12),
    "zero2": (4, 16),
    "hsdp": (0, 16),
    "fsdp": (0, 16),
    "zero3": (0, 20),
}
"""Of a parameter, its gradient and Adam's state under a strategy: on every rank, and divided among the ranks (under
hsdp those of a host); `Strategy.predict`."""
Kind = Literal["links", "setting", "code", "bound", "worse"]
HALF = 0.5
WITHOUT = ("without NVLink", "without Infinity Fabric")
NVSWITCH = "NVLink through an NVSwitch (12 links of an A100)"
PATCHED_DRIVER = "github.com/tinygrad/open-gpu-kernel-modules"


def require_strategy(name: str) -> None:
    """Raises TopologyError for an unknown strategy."""
    if name not in TRAFFIC:
        raise TopologyError(f"--strategy={name}: must be one of {', '.join(TRAFFIC)}.{nearest(name, TRAFFIC)}")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change, and what it saves.

    Args:
        what: in a few words.
        kind: `links`: other hardware or its settings; `setting`: of the job; `code`: in a loop of one's own; `bound`:
            what the fastest imaginable links save; `worse`: what would cost time.
        gain: the share of the time of a sample that is saved; negative where it is slower.
        how: what to type, or to do.
        effort: of two changes that save about as much, one tries the one with less.
    """

    what: str
    kind: Kind
    gain: float
    how: str
    effort: int = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job on a machine, of which each change is predicted.

    Args:
        node: one machine, of which all are copies.
        work: of each device.
        num_nodes: machines.
        strategy: one of TRAFFIC.
        wire_dtype: a format that is allowed between groups of ranks in addition to `exact`.
    """

    node: Topology
    work: Workload
    num_nodes: int
    strategy: str
    wire_dtype: WireDtype

    @property
    def point(self) -> Point:
        """The step without a change."""
        return self.predicted()

    def predicted(
        self,
        host: Host | None = None,
        *,
        traffic: float = 1.0,
        work: Workload | None = None,
        wire_dtype: WireDtype | None = None,
    ) -> Point:
        """The step with a change.

        Args:
            host: in place of the machine.
            traffic: multiplies what is sent.
            work: in place of that of each device.
            wire_dtype: in place of that of the job.
        """
        node = self.node if host is None else Topology(hosts=(host,))
        return simulate(
            node,
            [self.num_nodes],
            work or self.work,
            wire_dtype=wire_dtype or self.wire_dtype,
            traffic=traffic * TRAFFIC[self.strategy],
        )[0]

    def changes(self) -> Iterator[Change]:
        """All changes that apply to the machine and the job, in no order."""
        if self.node.world_size * self.num_nodes == 1:
            return
        base = self.point
        yield Change(
            what="links that take no time",
            kind="bound",
            gain=base.exposed_us / base.step_us,
            how="no hardware does more",
        )
        for effort, (what, host, how) in enumerate((*self._cards(), *self._network(), *self._boards())):
            gain = self._gain(base, self.predicted(host))
            yield Change(what=what, kind="links", gain=gain, how=how, effort=effort)
        for what, host, how in self._poorer():
            yield Change(what=what, kind="worse", gain=self._gain(base, self.predicted(host)), how=how)
        yield from self._settings(base)

    @staticmethod
    def _gain(base: Point, point: Point) -> float:
        return 1 - point.step_us / base.step_us

    def _poorer(self) -> Iterator[tuple[str, Host, str]]:
        host = self.node.hosts[0]
        if len(host.devices) < 2:
            return
        plain = changed_host.without_nvlink(host)
        if plain is not None:
            yield without_links(host), plain, "cards in slots, without bridges or NVSwitch"
        narrow = changed_host.with_slots(host, HALF)
        if narrow is not None and not changed_host.has_links(host, ["nvswitch"]):
            yield (
                "8 lanes a slot in place of 16",
                narrow,
                "as most desktop boards run two cards: see LnkSta in lspci -vv",
            )

    def _cards(self) -> Iterator[tuple[str, Host, str]]:
        """Changes to cards and settings of the machine, the simplest first."""
        host = self.node.hosts[0]
        card = card_of(host.devices[0])
        redirected = changed_host.without_acs(host)
        if redirected is not None:
            yield "ACS off on PCIe bridges", redirected, "in the BIOS, or sudo setpci -s <bridge> ECAP_ACS+0x6.w=0000"
        bridged = changed_host.with_bridges(host)
        if bridged is not None and card is not None:
            size = card.bridge_size or 2
            which = f"NVLink bridges, each for up to {size} cards" if len(host.devices) > size else "an NVLink bridge"
            yield which, bridged, "of this card's kind, and as wide as your slots are apart"
        peers = changed_host.with_peer_access(host)
        if peers is not None and len(host.devices) > 1:
            yield "peer access over PCIe", peers, _how_peers(host.devices[0].name)

    def _boards(self) -> Iterator[tuple[str, Host, str]]:
        """Other machines, the cheaper one first."""
        host = self.node.hosts[0]
        if len(host.devices) < 2:
            return
        peers = changed_host.with_peer_access(host)
        switched = changed_host.behind_switches(peers or host)
        if switched is not None and not changed_host.has_links(host):
            yield (
                "peer access, and a PCIe switch for each socket" if peers else "a PCIe switch for each socket",
                switched,
                "another board, or a server whose block diagram shows PCIe switches",
            )
        if not changed_host.has_links(host, ["nvswitch", "xgmi"]):
            yield NVSWITCH, changed_host.with_nvswitch(host), "another machine: HGX or DGX, or a cloud's"

    def _network(self) -> Iterator[tuple[str, Host, str]]:
        for factor in (2, 4) if self.num_nodes > 1 else ():
            faster = changed_host.with_faster_nics(self.node.hosts[0], factor)
            yield f"network cards {factor} x as fast", faster, "the cards, their slots and the switch between hosts"

    def _settings(self, base: Point) -> Iterator[Change]:
        for factor in (2, 4):
            yield self._larger(base, factor)
        engines = changed_host.with_copy_engines(self.node.hosts[0])
        if engines is not None and (gain := self._gain(base, self.predicted(engines))):
            how = f"export {changed_host.COPY_ENGINES}=1"
            yield Change(what="copies by copy engines, not by NCCL's kernels", kind="setting", gain=gain, how=how)
        if self.strategy == "ddp":
            yield from self._formats(base)
        other = "fsdp" if TRAFFIC[self.strategy] == 1 else "ddp"
        gain = self._gain(base, self.predicted(traffic=TRAFFIC[other] / TRAFFIC[self.strategy]))
        how = (
            f"strategy={other}, {'where the model does not fit a card' if other == 'fsdp' else 'where it fits a card'}"
        )
        yield Change(what=f"strategy {other}", kind="worse" if other == "fsdp" else "setting", gain=gain, how=how)

    def _formats(self, base: Point) -> Iterator[Change]:
        dtype = "fp16" if self.work.precision == "fp16" else "bf16"
        yield Change(
            what=f"gradients in {dtype} on all links",
            kind="code",
            gain=self._gain(base, self.predicted(traffic=HALF)),
            how=f"in a loop of your own, PyTorch's hook: ddp.register_comm_hook(None, {dtype}_compress_hook)",
        )
        formats: tuple[WireDtype, ...] = ("bf16", "int8") if self.wire_dtype == "exact" else ()
        for wire_dtype in formats:
            point = self.predicted(wire_dtype=wire_dtype)
            if point.plan != base.plan:
                how = f"comm.wire_dtype={wire_dtype}"
                what = f"gradients in {wire_dtype} between {len(point.plan.groups)} groups of cards"
                yield Change(what=what, kind="setting", gain=self._gain(base, point), how=how)

    def _larger(self, base: Point, factor: int) -> Change:
        """More samples in a step: in micro-batches, of which the last alone hides communication."""
        samples = factor * self.work.samples_per_device
        if TRAFFIC[self.strategy] == 1:
            step_us = factor * base.compute_us + base.exposed_us
            how = f"recipe.batch_size={samples * base.num_devices} recipe.grad_accumulation_steps={factor}"
        else:  # parameters are gathered for each micro-batch
            step_us = self.predicted(work=replace(self.work, samples_per_device=samples)).step_us
            how = f"recipe.batch_size={samples * base.num_devices}, if {samples} samples fit a card"
        what = f"{factor} times the samples in a step"
        gain = 1 - step_us / factor / base.step_us
        return Change(what=what, kind="setting", gain=gain, how=how, effort=factor)  # it changes what is learned


def without_links(host: Host) -> str:
    """The name of the change that takes the links between GPUs away: one of WITHOUT."""
    return WITHOUT[changed_host.has_links(host, ["xgmi"])]


def _how_peers(name: str) -> str:
    if "RTX 4090" in name:
        return f"NVIDIA's driver has none for this card; a patched one, without warranty: {PATCHED_DRIVER}"
    if "GeForce" in name:
        return "NVIDIA's driver has none for this card: cards for workstations have it"
    return "see why with nvidia-smi topo -p2p r; IOMMU and ACS off in the BIOS, or iommu=pt"
