"""NCCL's topology XML, which it reads from $NCCL_TOPO_FILE and writes to $NCCL_TOPO_DUMP_FILE."""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any
from xml.parsers import expat

from trainkit.errors import TopologyError
from trainkit.topology.discover import build, nominal
from trainkit.topology.discover.nics import kind_of
from trainkit.topology.discover.parts import NVSWITCH, Nearness, Pair, Parts, bus_id, nearness, pair
from trainkit.topology.topology import Device, Host, Nic

_GPU_CLASSES = ("0x0302", "0x0300")
_NIC_CLASSES = ("0x0200", "0x0207")
_NVSWITCH_CLASS = "0x0680"
INSTEAD = "measure them (trainkit topo probe --output links.json), or take --preset mi300x or a topology file"
"""Of links of AMD GPUs."""
_UNKNOWN_LANES = 16
"""Of a link_width 0, which guests show; NCCL takes it for 16 too."""
Node = ElementTree.Element


def parse_nccl_xml(text: str, where: str = "NCCL's topology file") -> Host:
    """Parses NCCL's topology XML.

    Args:
        text: of the file.
        where: its name, for the message of an error.

    Raises:
        TopologyError: with line and column, for an invalid file.
    """
    return build.host_of(parts_of(text, where), name=where)


def parts_of(text: str, where: str = "NCCL's topology file", *, of: Parts | None = None) -> Parts:
    """Parses NCCL's topology XML into parts; see `parse_nccl_xml`.

    Files of cloud providers contain only the PCI tree, in which GPUs and network cards are found by their PCI classes,
    only network cards, or only the bus ids of both.

    Args:
        text: of the file.
        where: its name, for the message of an error.
        of: the parts of this host, whose bus ids are looked for, and without which there need not be any GPU.
    """
    return _Reader(text, where, of).read()


def _pci_id(node: Node) -> str | None:
    """Vendor and device of a <pci>; older versions of NCCL do not write them."""
    vendor, device = (node.get(key, "").removeprefix("0x") for key in ("vendor", "device"))
    return f"{vendor}:{device}".lower() if vendor and device else None


class _Reader:
    def __init__(self, text: str, where: str, of: Parts | None) -> None:
        self.where, self.of = where, of
        self.at: dict[int, tuple[int, int]] = {}
        self.root = self._parse(text)
        self.above = {id(child): parent for parent in self.root.iter() for child in parent}

    def read(self) -> Parts:
        if self.root.tag != "system":
            raise self._error(self.root, f"the outermost element is <{self.root.tag}>; NCCL writes <system>")
        gpus = self._devices()
        if self.of is None and not gpus:
            raise self._error(self.root, "there is no <gpu> in it, and no <pci> of a GPU's class")
        cards = self._cards()
        nodes = {device.id: node for device, node in gpus} | {nic.id: node for nic, node in cards}
        near = {pair(a, b): self._nearness(nodes[a], nodes[b]) for a, b in combinations(nodes, 2)}
        nets = {nic.id: net for nic, node in cards if (net := self._net(node, nic.name)) is not None}
        rates = {nic: self._number(net, "speed") / 1000 for nic, net in nets.items()}
        pcie = {name: figures for name, node in nodes.items() if (figures := self._pcie(node)) is not None}
        cpu = next(self.root.iter("cpu"), None)
        facts: dict[str, Any] = {"sources": ["nccl xml"]}
        if cpu is not None and (vendor := cpu.get("vendor")):
            facts["cpu"] = vendor
        if any(node.get("link_width") == "0" for node in nodes.values()):
            facts["pcie_lanes"] = "unknown"
        direct = [n.get("gdr") for n in self.root.iter("net") if n.get("gdr") in ("0", "1")]
        if direct:
            facts["gpudirect"] = "1" in direct
        return Parts(
            devices=tuple(device for device, _ in gpus),
            nics=tuple(nic for nic, _ in cards),
            near=near,
            nvlinks=(nvlinks := self._nvlinks(gpus)),
            nvlinks_known=bool(nvlinks),
            pcie_gb_per_s=pcie,
            nic_gbit_per_s={nic: rate for nic, rate in rates.items() if rate > 0},
            socket_gb_per_s=None if cpu is None else self._socket(cpu),
            facts=facts,
        )

    # -- parts -------------------------------------------------------------------------------------------------------

    def _devices(self) -> list[tuple[Device, Node]]:
        """The GPUs with their <pci>, in the order of `dev`, or of the file."""
        named = list(self.root.iter("gpu"))
        nodes = [self._pci_of(gpu) for gpu in named] or list(self._of_class(_GPU_CLASSES))
        nodes += self._at([] if self.of is None else [device.bus_id for device in self.of.devices], nodes)
        numbers = [int(self._number(gpu, "dev", -1)) for gpu in named]
        if len(set(numbers)) != len(nodes) or min(numbers, default=0) < 0:
            numbers = list(range(len(nodes)))
        capabilities = [gpu.get("sm", "") for gpu in named] + [""] * (len(nodes) - len(named))
        found = [
            (
                Device(
                    id=f"gpu{number}",
                    bus_id=bus_id(self._attribute(node, "busid")),
                    numa=self._numa(node),
                    compute_capability=f"{sm[:-1]}.{sm[-1]}" if len(sm) > 1 and sm.isdecimal() else None,
                    pci_id=_pci_id(node),
                ),
                node,
            )
            for number, sm, node in zip(numbers, capabilities, nodes, strict=True)
        ]
        return sorted(found, key=lambda entry: int(entry[0].id[3:]))

    def _cards(self) -> list[tuple[Nic, Node]]:
        nets = [net for net in self.root.iter("net") if net.get("name")]
        found = [(net.get("name", ""), self._place_of(net)) for net in nets]
        if not found:
            nodes = list(self._of_class(_NIC_CLASSES))
            nodes += self._at([] if self.of is None else [nic.bus_id for nic in self.of.nics], nodes)
            found = [("", node) for node in nodes]
        cards = []
        for i, (name, node) in enumerate(found):
            busid = bus_id(node.get("busid", "")) or None
            kind = kind_of(name, pci_class=node.get("class", ""), pci_id=_pci_id(node))
            cards.append((Nic(id=f"nic{i}", name=name, kind=kind, bus_id=busid, numa=self._numa(node)), node))
        return cards

    def _nvlinks(self, gpus: list[tuple[Device, Node]]) -> dict[Pair, int]:
        ids = {device.bus_id: device.id for device, _ in gpus}
        links: dict[Pair, int] = {}
        for device, node in gpus:
            if (amd := next(node.iter("xgmi"), None)) is not None:
                raise self._error(amd, f"<xgmi>: a file of RCCL: links of AMD GPUs are not read; {INSTEAD}")
            for link in node.iter("nvlink"):
                target = bus_id(self._attribute(link, "target"))
                count = int(self._number(link, "count"))
                if count < 1:
                    raise self._error(link, f"<nvlink count={link.get('count')!r}>: must be at least 1")
                if target in ids:
                    key = pair(device.id, ids[target])
                    links[key] = min(count, links.get(key, count))  # a link is up where both of its ends are
                elif link.get("tclass", "").startswith(_NVSWITCH_CLASS):
                    key = pair(device.id, NVSWITCH)
                    links[key] = links.get(key, 0) + count
        return links

    # -- the tree ----------------------------------------------------------------------------------------------------

    def _up(self, node: Node) -> Iterator[Node]:
        while (parent := self.above.get(id(node))) is not None:
            yield parent
            node = parent

    def _pci_of(self, node: Node) -> Node:
        parent = self.above.get(id(node))
        if parent is None or parent.tag != "pci":
            raise self._error(node, f"<{node.tag}> stands in <{'' if parent is None else parent.tag}>, not in a <pci>")
        return parent

    def _place_of(self, net: Node) -> Node:
        """The <pci> above a <net>, or the <cpu> for one that is not on PCI."""
        return next((node for node in self._up(net) if node.tag in ("pci", "cpu")), self.root)

    def _of_class(self, classes: tuple[str, ...]) -> Iterator[Node]:
        return (node for node in self.root.iter("pci") if node.get("class", "").startswith(classes))

    def _at(self, bus_ids: Iterable[str | None], found: list[Node]) -> list[Node]:
        """The <pci> at these bus ids that are not found yet: the class may be left out."""
        wanted = set(bus_ids) - {None, *(bus_id(node.get("busid", "")) for node in found)}
        return [node for node in self.root.iter("pci") if bus_id(node.get("busid", "")) in wanted]

    def _nearness(self, a: Node, b: Node) -> Nearness:
        if a is b:
            return "PIX"  # two ports of one card
        switches_a, switches_b = self._switches(a), self._switches(b)
        one_cpu = self._cpu(a) is self._cpu(b)
        return nearness(switches_a, switches_b, one_bridge=one_cpu, one_numa=one_cpu)

    def _switches(self, node: Node) -> tuple[str, ...]:
        return tuple(reversed([f"{id(up)}" for up in self._up(node) if up.tag == "pci"]))

    def _cpu(self, node: Node) -> Node | None:
        return next((up for up in [node, *self._up(node)] if up.tag == "cpu"), None)

    def _numa(self, node: Node) -> int | None:
        cpu = self._cpu(node)
        numa = -1 if cpu is None else int(self._number(cpu, "numaid", -1))
        return numa if numa >= 0 else None

    def _pcie(self, node: Node) -> tuple[float, float] | None:
        chip = node.find("gpu/c2c")  # Grace and its GPU do not meet over PCIe
        if chip is not None:
            figure = self._number(chip, "bw") * self._number(chip, "count") / 1000
            return (figure, figure) if figure > 0 else None
        generation = nominal.pcie_generation_of(node.get("link_speed", ""))
        if generation is None:
            return None
        lanes = int(self._number(node, "link_width", 0))
        lanes = lanes if lanes > 0 else _UNKNOWN_LANES
        figure = nominal.pcie_gb_per_s(generation, lanes)
        return figure, figure

    def _socket(self, cpu: Node) -> float:
        family, model = (int(self._number(cpu, key, 0)) for key in ("familyid", "modelid"))
        return nominal.socket_gb_per_s(cpu.get("vendor", ""), family, model)

    def _net(self, place: Node, name: str) -> Node | None:
        return next((net for net in place.iter("net") if net.get("name") == name and net.get("speed")), None)

    # -- text --------------------------------------------------------------------------------------------------------

    def _parse(self, text: str) -> Node:
        """The tree, with the line and column of each element."""
        builder = ElementTree.TreeBuilder()
        parser = expat.ParserCreate()

        def refuse(*doctype: Any) -> None:
            # A few lines of entities may expand to gigabytes, and NCCL writes none.
            raise TopologyError(f"{self.where}:{parser.CurrentLineNumber}: a document type is not read: remove it")

        def start(tag: str, attributes: dict[str, str]) -> None:
            node = builder.start(tag, attributes)
            self.at[id(node)] = (parser.CurrentLineNumber, parser.CurrentColumnNumber + 1)

        parser.StartDoctypeDeclHandler = refuse
        parser.StartElementHandler = start
        parser.EndElementHandler = lambda tag: builder.end(tag)
        try:
            parser.Parse(text, True)
        except expat.ExpatError as error:
            reason = expat.errors.messages[error.code]
            raise TopologyError(f"{self.where}:{error.lineno}:{error.offset + 1}: invalid XML: {reason}") from error
        return builder.close()

    def _attribute(self, node: Node, name: str) -> str:
        value = node.get(name)
        if not value:
            raise self._error(node, f"<{node.tag}> has no {name}")
        return value

    def _number(self, node: Node, name: str, default: float | None = None) -> float:
        text = node.get(name)
        if text is None and default is not None:
            return default
        text = self._attribute(node, name)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self._error(node, f"<{node.tag} {name}={text!r}>: must be a number")
        return number

    def _error(self, node: Node, problem: str) -> TopologyError:
        line, column = self.at.get(id(node), (1, 1))
        return TopologyError(f"{self.where}:{line}:{column}: {problem}")
