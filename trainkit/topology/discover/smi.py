"""Parses the output of `nvidia-smi topo -m` of any driver: a matrix of distances."""

import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from trainkit.topology.discover import build, peers
from trainkit.topology.discover.matrices import CELL, GPU, Matrix, Word, cells, error, lines_of, matrices
from trainkit.topology.discover.parts import NEARNESS, Nearness, Pair, Parts, pair
from trainkit.topology.topology import Device, Host, Nic

_LEGEND = re.compile(r"\s*(NIC\d+)\s*:\s*(\S+)\s*$")
_LISTED = re.compile(r"\s*GPU (\d+): (.+?)(?:\s*\(UUID: .*\))?\s*$")
_SLICE = re.compile(r"\s*MIG \S+\s+Device\s+\d+:")
_OLD_WORDS = {"SOC": "SYS"}  # drivers before 390


def parse_topo_matrix(
    text: str, where: str = "nvidia-smi topo -m", *, gpu_name: str = "", nvlink_gb_per_s: float | None = None
) -> Host:
    """Parses the output of `nvidia-smi topo -m`.

    It does not contain the rates of network cards and the generations of PCIe links; nominal ones are used.

    Args:
        text: the matrix, optionally with the output of `nvidia-smi -L`, which names GPUs and MIG slices, and of
            `nvidia-smi topo -p2p r`; colours, tabs, a truncated legend and other text around them are ignored.
        where: the name of the text, for the message of an error.
        gpu_name: of all GPUs, where the text does not contain it.
        nvlink_gb_per_s: of one NVLink; None: by the name of the GPU.

    Raises:
        TopologyError: with line and column, counted from 1 and without colours, for an invalid matrix.
    """
    return build.host_of(parts_of(text, where, gpu_name=gpu_name, nvlink_gb_per_s=nvlink_gb_per_s), name=where)


def parts_of(
    text: str, where: str = "nvidia-smi topo -m", *, gpu_name: str = "", nvlink_gb_per_s: float | None = None
) -> Parts:
    """Parses the output into parts; see `parse_topo_matrix`."""
    lines = lines_of(text)
    matrix, of_peers = _only(matrices(lines, where), where)
    listed, slices = _listed(lines)
    legend = {m[1]: m[2] for line in lines if (m := _LEGEND.match(line))}
    names = matrix.names
    gpus = [name for name in names if GPU.match(name)]
    cards = [name for name in names if not GPU.match(name)]
    numa = {row[0].text: _numa(lines, matrix.header, row) for row in matrix.rows}
    ids = {name: f"gpu{name[3:]}" for name in gpus} | {name: f"nic{i}" for i, name in enumerate(cards)}
    near: dict[Pair, Nearness] = {}
    nvlinks: dict[Pair, int] = {}
    for (a, b), cell in _between(matrix, where).items():
        if cell.startswith("NV"):
            nvlinks[pair(ids[a], ids[b])] = int(cell[2:])
        else:
            near[pair(ids[a], ids[b])] = cast(Nearness, cell)
    facts: dict[str, Any] = {"sources": ["nvidia-smi"]}
    if slices:
        facts["mig"] = slices
    if of_peers is not None:
        peers.require_gpus(of_peers, where, [ids[name] for name in gpus])
        facts["p2p_off"] = peers.off(of_peers, where)
    return Parts(
        devices=tuple(Device(id=ids[n], name=listed.get(n, gpu_name), numa=numa.get(n)) for n in gpus),
        nics=tuple(Nic(id=ids[n], name=legend.get(n, n), kind="infiniband", numa=numa.get(n)) for n in cards),
        near=near,
        nvlinks=nvlinks,
        nvlinks_known=True,
        nvlink_gb_per_s=nvlink_gb_per_s,
        facts=facts,
    )


def run(timeout_s: float = 20.0) -> str | None:
    """Runs `nvidia-smi -L` and `nvidia-smi topo -m`; None where there is no such command, or it fails."""
    texts = []
    for arguments in (["-L"], ["topo", "-m"]):
        try:
            done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=timeout_s)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode != 0:
            return None
        texts.append(done.stdout)
    return "\n".join(texts)


def _only(found: list[Matrix], where: str) -> tuple[Matrix, Matrix | None]:
    """The matrix of distances, and that of peer access; an error where there are several."""
    of_peers = [matrix for matrix in found if matrix.is_of_peers]
    of_links = [matrix for matrix in found if not matrix.is_of_peers]
    if not of_links:
        raise peers.alone(of_peers[0], where)
    for several in (of_links, of_peers):
        if len(several) > 1:
            raise error(where, several[1].header[0], "a second matrix of this kind: give one text for each host")
    return of_links[0], of_peers[0] if of_peers else None


def _between(matrix: Matrix, where: str) -> dict[tuple[str, str], str]:
    """The cell of each pair of parts, by their names in the order of the header."""
    found: dict[tuple[str, str], str] = {}
    for (a, b), both in cells(matrix, where, CELL, ("X", "NV#", *NEARNESS)).items():
        words = [_OLD_WORDS.get(word.text, word.text) for word in both]
        if len(set(words)) > 1:
            above = both[0]
            problem = f"{words[1]} between {b} and {a}, and {words[0]} at {above.line}:{above.column}"
            raise error(where, both[1], problem)
        found[a, b] = words[0]
    return found


def _numa(lines: Sequence[str], header: list[Word], row: list[Word]) -> int | None:
    """The NUMA node of a row, where the header has that column and the row has all columns."""
    columns = re.findall(r"CPU Affinity|NUMA Affinity|GPU NUMA ID", lines[header[0].line - 1])
    words = row[len(header) + 1 :]
    if "NUMA Affinity" not in columns or len(words) != len(columns):
        return None
    with suppress(ValueError):  # `0-1`, `N/A`
        return int(words[columns.index("NUMA Affinity")].text)
    return None


def _listed(lines: Sequence[str]) -> tuple[dict[str, str], dict[str, int]]:
    """From `nvidia-smi -L`: names by `GPU0`, and numbers of MIG slices by `gpu0`."""
    names: dict[str, str] = {}
    slices: dict[str, int] = {}
    last = ""
    for line in lines:
        if match := _LISTED.match(line):
            last = match[1]
            names[f"GPU{last}"] = match[2]
        elif last and _SLICE.match(line):
            slices[f"gpu{last}"] = slices.get(f"gpu{last}", 0) + 1
    return names, slices
