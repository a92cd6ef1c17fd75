"""LinksAdvice: what a job waits for on a machine, and what other links or settings would save of a step. Pure."""

from dataclasses import dataclass

from trainkit.planning import changed_host
from trainkit.planning.changes import STATE_BYTES, TRAFFIC, WITHOUT, Change, Job, Kind, require_strategy, without_links
from trainkit.planning.reduce_plan import WireDtype
from trainkit.planning.simulate import Point, simulate
from trainkit.planning.workload import Workload
from trainkit.topology.cards import card_of
from trainkit.topology.gpus import has_bridges
from trainkit.topology.topology import Host, Topology

HARDLY, MUCH = 0.05, 0.2
"""The shares of a step below which faster links are not worth money, and above which they decide."""
LEAST = 0.01
NEARLY = 0.8
"""The share of the most that can be saved with which one is content."""


@dataclass(frozen=True, kw_only=True)
class LinksAdvice:
    """What is known of a job on a machine.

    Args:
        topology: of one machine.
        work: of each device.
        strategy: of the job.
        point: the predicted step.
        changes: the one that saves most comes first.
    """

    topology: Topology
    work: Workload
    strategy: str
    point: Point
    changes: tuple[Change, ...]

    @property
    def lost(self) -> float:
        """The share of a step that waits for gradients."""
        return 1 - self.point.efficiency

    @property
    def state_bytes(self) -> int:
        """Of parameters, gradients and Adam's state on a device. Activations come on top."""
        whole, shared = STATE_BYTES[self.strategy]
        ranks = len(self.topology.hosts[0].devices) if self.strategy == "hsdp" else self.point.num_devices
        return round(self.work.num_parameters * (whole + shared / ranks))

    def best(self, kind: Kind) -> Change | None:
        """The change of a kind with the least effort of those that save about as much as the best.

        None where none saves a hundredth of a step.
        """
        found = [change for change in self.changes if change.kind == kind and change.gain >= LEAST]
        most = max((change.gain for change in found), default=0.0)
        return min((c for c in found if c.gain >= NEARLY * most), key=lambda change: change.effort, default=None)

    def verdict(self) -> str:
        """The answer in a few sentences."""
        point, host = self.point, self.topology.hosts[0]
        if point.num_devices == 1:
            return "One card waits for nobody: links do not matter."
        speed = (
            f"{self.work.name} trains {point.num_devices * point.efficiency:.3g} times as fast as on one card "
            f"({100 * point.efficiency:.0f} % of {point.num_devices} times)"
        )
        setting = self.best("setting")
        without = next((change for change in self.changes if change.what in WITHOUT), None)
        if changed_host.has_links(host) and without is not None:
            text = f"{_worth_of_nvlink(without)} With it, {speed}."
        elif self.lost < HARDLY:
            text = self._not_needed(speed)
        elif setting is not None and setting.gain >= NEARLY * self.lost:
            text = f"NVLink is not needed, a setting is: {setting.how}. Without it, {speed}."
        else:
            text = f"{'Links decide' if self.lost >= MUCH else 'Faster links help a little'}: {speed}."
        return text if self.lost < HARDLY else f"{text} {self._what_first()}"

    def _not_needed(self, speed: str) -> str:
        most = 1 - self.point.unhidden_efficiency
        saves = f"{speed}; no link would save more than {100 * self.lost:.2g} % of a step."
        if most < 2 * HARDLY:
            return f"NVLink is not needed: {saves}"
        return (
            f"NVLink is not needed where the backward pass hides the all-reduces, as under DDP: {saves} Where it hides "
            f"nothing, {100 * most:.0f} % of a step would be lost."
        )

    def _what_first(self) -> str:
        text = f"{100 * self.lost:.0f} % of a step waits for gradients."
        links, setting = self.best("links"), self.best("setting")
        if links is not None:
            text += f" Of hardware, {links.what} would save {100 * links.gain:.0f} %."
        if setting is not None:
            text += f" For nothing, {setting.what} saves {100 * setting.gain:.0f} %."
        return text


def _worth_of_nvlink(without: Change) -> str:
    links, longer = without.what.removeprefix("without "), 100 * -without.gain
    if -without.gain < HARDLY:
        return f"{links} is hardly used: without it, a step would take {longer:.2g} % longer."
    word = "earns its price" if -without.gain >= MUCH else "helps"
    return f"{links} {word}: without it, a step would take {longer:.0f} % longer."


def advise_links(
    node: Topology,
    work: Workload,
    *,
    num_nodes: int = 1,
    strategy: str = "ddp",
    wire_dtype: WireDtype = "exact",
) -> LinksAdvice:
    """Predicts a step, and the same step after each change that applies to the machine and the job.

    Args:
        node: one machine, of which all are copies.
        work: of each device.
        num_nodes: machines.
        strategy: one of TRAFFIC.
        wire_dtype: a format that is allowed between groups of ranks in addition to `exact`.

    Raises:
        TopologyError: for an unknown strategy, and as `simulate`.
    """
    require_strategy(strategy)
    job = Job(node=node, work=work, num_nodes=num_nodes, strategy=strategy, wire_dtype=wire_dtype)
    changes = sorted(job.changes(), key=lambda change: -change.gain)
    return LinksAdvice(topology=node, work=work, strategy=strategy, point=job.point, changes=tuple(changes))


def scaling(advice: LinksAdvice) -> dict[str, list[Point]]:
    """The step on 1, 2, 4 ... of the machine's devices, as they are linked, and linked otherwise.

    Args:
        advice: of the machine.

    Returns:
        Points by a name of the links. The machine's own come first.
    """
    host, num = advice.topology.hosts[0], len(advice.topology.hosts[0].devices)
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count < num] + [num]
    series: dict[str, list[Point]] = {}
    for count in counts:
        few = changed_host.part(host, count)
        for name, one in {"as it is": few, **_otherwise(few)}.items():
            found = simulate(Topology(hosts=(one,)), [1], advice.work, traffic=TRAFFIC[advice.strategy])
            series.setdefault(name, []).append(found[0])
    return {name: points for name, points in series.items() if len(points) == len(counts)}


def _otherwise(host: Host) -> dict[str, Host]:
    if changed_host.has_links(host):
        plain = changed_host.without_nvlink(host)
        return {} if plain is None else {without_links(host): plain}
    card = card_of(host.devices[0])
    if card is not None and has_bridges(card):
        return {"with NVLink bridges": changed_host.with_bridges(host) or host}  # a single device needs none
    return {"with an NVSwitch": changed_host.with_nvswitch(host)}
