"""Texts that describe hosts: a topology file (JSON), NCCL's XML, or the output of nvidia-smi. Told apart by content."""

import codecs
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from trainkit.errors import TopologyError
from trainkit.json_text import MAX_BYTES, read_bounded
from trainkit.topology.discover import build, nccl_xml, peers, smi
from trainkit.topology.discover.matrices import GPU, lines_of, matrices
from trainkit.topology.discover.merge import named_apart, with_network
from trainkit.topology.discover.parts import Parts
from trainkit.topology.topology import Topology

STANDARD_INPUT = "-"
FORMS = (
    "a topology file (JSON, of `trainkit topo show --json` or `topo probe --output`), NCCL's XML (of "
    "NCCL_TOPO_DUMP_FILE) or the output of `nvidia-smi topo -m`"
)
Form = Literal["json", "xml", "matrix"]

_OF_AMD = re.compile(
    r"ROCm System Management|(Weight|Hops|Link Type) between two GPUs|^(ACCESS|WEIGHT|HOPS) TABLE", re.M
)


def read_files(paths: Sequence[str | Path]) -> Topology:
    """Reads the topology that files describe.

    Args:
        paths: files, each with one host, or one topology file with several; `~` is expanded. `-` is standard input. The
            output of `nvidia-smi topo -p2p r` belongs to the host of the file before it.

    Returns:
        The topology, with one rank for each GPU unless a topology file places them.

    Raises:
        TopologyError: naming the file, for one that cannot be read or is of none of the forms.
    """
    return of_texts([_named(path) for path in paths])


def of_texts(named: Sequence[tuple[str, str]]) -> Topology:
    """Reads the topology that texts describe; see `read_files`.

    Args:
        named: pairs of a name and a text.

    Raises:
        TopologyError: naming the text.
    """
    found: list[Topology | tuple[str, Parts]] = []
    for name, text in named:
        form = form_of(text, name)
        if form == "json":
            topology = Topology.from_json(text, name)
            found.append(replace(topology, source=topology.source or name))
        elif form == "xml":
            found.append((name, nccl_xml.parts_of(text, name)))
        elif (last := _with_peers(found[-1] if found else None, text, name)) is not None:
            found[-1] = last
        else:
            found.append((name, smi.parts_of(text, name)))
    topologies = [part if isinstance(part, Topology) else _of_parts(*part) for part in found]
    return topologies[0] if len(topologies) == 1 else _together(topologies)


def form_of(text: str, where: str) -> Form:
    """Recognises the form of a text.

    Args:
        text: all of it.
        where: its name, for the message of an error.

    Raises:
        TopologyError: where it is of none of the forms.
    """
    begin = text.lstrip("\ufeff \t\r\n")
    if begin.startswith(("{", "[")):
        return "json"
    if begin.startswith("<"):
        return "xml"
    if _OF_AMD.search(text):
        raise TopologyError(
            f"{where}: it is the output of rocm-smi or amd-smi, which does not state the bandwidth of links between "
            f"AMD GPUs: {nccl_xml.INSTEAD}"
        )
    if any(GPU.match(word) for line in lines_of(text) for word in line.split()[:1]) or "GPU0GPU1" in text:
        return "matrix"
    first = begin.partition("\n")[0].strip()
    given = f"it begins with {first[:60]!r}" if first else "it is empty"
    raise TopologyError(f"{where}: {given}, and must be {FORMS}")


def _named(path: str | Path) -> tuple[str, str]:
    if str(path) == STANDARD_INPUT:
        content = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise TopologyError(f"standard input cannot be read: it is larger than {MAX_BYTES >> 20} MiB")
        return "standard input", _decoded(content, "standard input")
    path = Path(path).expanduser()
    try:
        return str(path), _decoded(read_bounded(path), str(path))
    except (OSError, ValueError) as error:
        if isinstance(error, TopologyError):
            raise
        raise TopologyError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decoded(content: bytes, name: str) -> str:
    """The text, also where PowerShell has written it: in UTF-16."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise TopologyError(f"{name} cannot be read: it is no text ({error})") from error


def _with_peers(last: Topology | tuple[str, Parts] | None, text: str, name: str) -> tuple[str, Parts] | None:
    """The host before, with the peer access that a text of this alone describes; None for other texts."""
    found = matrices(lines_of(text), name)
    if not all(matrix.is_of_peers for matrix in found) or not isinstance(last, tuple):
        return None
    before, parts = last
    if "p2p_off" in parts.facts or len(found) > 1:
        raise TopologyError(f"{name}: a second matrix of peer access of {before}: give that of `topo -p2p r` only")
    peers.require_gpus(found[0], name, [device.id for device in parts.devices])
    return before, replace(parts, facts={**parts.facts, "p2p_off": peers.off(found[0], name)})


def _of_parts(name: str, parts: Parts) -> Topology:
    return Topology(hosts=(build.host_of(parts, Path(name).stem),), source=name)


def _together(topologies: Sequence[Topology]) -> Topology:
    hosts = [host for topology in topologies for host in topology.hosts]
    places = []
    offset = 0
    for topology in topologies:
        places += [replace(place, host=place.host + offset) for place in topology.places]
        offset += len(topology.hosts)
    source = ", ".join(dict.fromkeys(topology.source for topology in topologies))
    return Topology(hosts=tuple(named_apart(with_network(hosts))), places=tuple(places), source=source)
