"""Parses the output of `nvidia-smi topo -m` of any driver: a matrix of distances."""

import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast

from trainkit.errors import TopologyError, nearest
from trainkit.topology.discover import build
from trainkit.topology.discover.parts import NEARNESS, Nearness, Pair, Parts, pair
from trainkit.topology.topology import Device, Host, Nic

_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_GPU = re.compile(r"GPU\d+$")
_CELL = re.compile(r"(X|NV[1-9]\d*|PIX|PXB|PHB|NODE|SYS|SOC)$")
_GLUED = re.compile(r"((GPU|NIC)\d+){2,}$")
_LEGEND = re.compile(r"\s*(NIC\d+)\s*:\s*(\S+)\s*$")
_LISTED = re.compile(r"\s*GPU (\d+): (.+?)(?:\s*\(UUID: .*\))?\s*$")
_SLICE = re.compile(r"\s*MIG \S+\s+Device\s+\d+:")
_OLD_WORDS = {"SOC": "SYS"}  # drivers before 390


@dataclass(frozen=True)
class _Word:
    text: str
    line: int
    column: int


def parse_topo_matrix(
    text: str, where: str = "nvidia-smi topo -m", *, gpu_name: str = "", nvlink_gb_per_s: float | None = None
) -> Host:
    """Parses the output of `nvidia-smi topo -m`.

    It does not contain the rates of network cards and the generations of PCIe links; nominal ones are used.

    Args:
        text: the matrix, optionally after the output of `nvidia-smi -L`, which names GPUs and MIG slices; colours,
            tabs, a truncated legend and other text around the matrix are ignored.
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
    lines = [_ESCAPE.sub("", line) for line in text.splitlines()]
    header, rows = _matrix(lines, where)
    cells = _cells(header, rows, where)
    listed, slices = _listed(lines)
    legend = {m[1]: m[2] for line in lines if (m := _LEGEND.match(line))}
    names = [word.text for word in header]
    gpus = [name for name in names if _GPU.match(name)]
    cards = [name for name in names if not _GPU.match(name)]
    numa = {row[0].text: _numa(lines, header, row) for row in rows}
    ids = {name: f"gpu{name[3:]}" for name in gpus} | {name: f"nic{i}" for i, name in enumerate(cards)}
    near: dict[Pair, Nearness] = {}
    nvlinks: dict[Pair, int] = {}
    for (a, b), cell in cells.items():
        if cell.startswith("NV"):
            nvlinks[pair(ids[a], ids[b])] = int(cell[2:])
        else:
            near[pair(ids[a], ids[b])] = cast(Nearness, cell)
    facts: dict[str, Any] = {"sources": ["nvidia-smi"]}
    if slices:
        facts["mig"] = slices
    return Parts(
        devices=tuple(Device(id=ids[n], name=listed.get(n, gpu_name), numa=numa.get(n)) for n in gpus),
        nics=tuple(Nic(id=ids[n], name=legend.get(n, n), kind="infiniband", numa=numa.get(n)) for n in cards),
        near=near,
        nvlinks=nvlinks,
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


def _matrix(lines: Sequence[str], where: str) -> tuple[list[_Word], list[list[_Word]]]:
    """The names of the header, and the rows, each with its name first."""
    header: list[_Word] = []
    rows: list[list[_Word]] = []
    for number, line in enumerate(lines, 1):
        words = [_Word(m[0], number, m.start() + 1) for m in re.finditer(r"\S+", line)]
        if not header:
            if words and (_GPU.match(words[0].text) or _GLUED.match(words[0].text)):
                header = _header(words, where)
        elif words and not words[0].text.startswith("Legend"):
            rows.append(words)
        elif rows:
            break
    if not header:
        raise TopologyError(f"{where}:1:1: there is no matrix in it: no line starts with GPU0")
    return header, rows


def _header(words: list[_Word], where: str) -> list[_Word]:
    ends = [i for i, word in enumerate(words) if word.text in ("CPU", "NUMA")]
    names = words[: ends[0]] if ends else words
    for word in names:
        if _GLUED.match(word.text):
            raise _error(where, word, f"{word.text!r}: two columns without a space between them")
    if len(words) > 1 and _CELL.match(words[1].text):
        raise _error(where, words[0], f"the row of {words[0].text} comes before any header that names the columns")
    twice = next((w for i, w in enumerate(names) if w.text in [other.text for other in names[:i]]), None)
    if twice is not None:
        raise _error(where, twice, f"two columns are called {twice.text!r}")
    return names


def _cells(header: list[_Word], rows: list[list[_Word]], where: str) -> dict[tuple[str, str], str]:
    """The cell of each pair of parts, by their names in the order of the header."""
    names = [word.text for word in header]
    by_name: dict[str, list[_Word]] = {}
    for row in rows:
        name = row[0]
        if name.text not in names:
            raise _error(where, name, f"a row of {name.text!r}; the header has {', '.join(names)}", names)
        if name.text in by_name:
            raise _error(where, name, f"a second row of {name.text}")
        by_name[name.text] = row[1 : len(names) + 1]
        _check_row(row, names, where)
    # The rows of network cards repeat the rows of GPUs, and some users paste only the latter.
    needed = names if any(not _GPU.match(name) for name in by_name) else [n for n in names if _GPU.match(n)]
    for word in header:
        if word.text in needed and word.text not in by_name:
            raise _error(where, word, f"the column of {word.text} has no row")
    for mine, cells in by_name.items():
        for other, word in zip(names, cells, strict=True):
            if (word.text == "X") != (other == mine):
                raise _error(where, word, f"{word.text!r} between {mine} and {other}: X marks a part's own cell")
    return _between(names, by_name, where)


def _check_row(row: list[_Word], names: list[str], where: str) -> None:
    for word in row[1 : len(names) + 1]:
        if not _CELL.match(word.text):
            allowed = ("X", "NV1", *NEARNESS)
            raise _error(where, word, f"{word.text!r}: must be one of X, NV#, {', '.join(NEARNESS)}", allowed)
    if len(row) <= len(names):
        end = _Word("", row[-1].line, row[-1].column + len(row[-1].text))
        raise _error(where, end, f"the row of {row[0].text} has {len(row) - 1} of {len(names)} cells")


def _between(names: list[str], rows: dict[str, list[_Word]], where: str) -> dict[tuple[str, str], str]:
    cells: dict[tuple[str, str], str] = {}
    for a, b in combinations(names, 2):
        found = [rows[x][names.index(y)] for x, y in ((a, b), (b, a)) if x in rows]
        words = [_OLD_WORDS.get(word.text, word.text) for word in found]
        if len(set(words)) > 1:
            above = found[0]
            raise _error(
                where, found[1], f"{words[1]} between {b} and {a}, and {words[0]} at {above.line}:{above.column}"
            )
        if words:
            cells[a, b] = words[0]
    return cells


def _numa(lines: Sequence[str], header: list[_Word], row: list[_Word]) -> int | None:
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


def _error(where: str, word: _Word, problem: str, allowed: Sequence[str] = ()) -> TopologyError:
    return TopologyError(f"{where}:{word.line}:{word.column}: {problem}.{nearest(word.text, allowed)}")
