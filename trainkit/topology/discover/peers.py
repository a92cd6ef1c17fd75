"""The output of `nvidia-smi topo -p2p r`: which GPUs have access to each other's memory."""

import re

from trainkit.errors import TopologyError
from trainkit.topology.discover.matrices import PEER_CELL, Matrix, cells, error
from trainkit.topology.discover.parts import pair

_WHY = {
    "CNS": "chipset not supported",
    "GNS": "GPU not supported",
    "TNS": "topology not supported",
    "DR": "disabled",
    "NS": "not supported",
    "U": "unknown",
}
"""As its legend says, and in the words of `nvml`."""
_COMMAND = re.compile(r"-(?:p2p|-p2pstatus)\s+([a-z]+)")
_READ = ("r", "w", "rw")


def off(matrix: Matrix, where: str) -> dict[str, str]:
    """Reads a matrix of peer access.

    Args:
        matrix: of `nvidia-smi topo -p2p r` or `w`. Those of other capabilities look alike: they are refused where the
            command stands above them.
        where: the name of the text, for the message of an error.

    Returns:
        By pair (`gpu0 gpu1`), as in the facts of a host: why a GPU has no access to the memory of the other.

    Raises:
        TopologyError: with line and column, for an invalid matrix.
    """
    given = next((m[1] for line in reversed(matrix.above) if (m := _COMMAND.search(line))), "r")
    if given not in _READ:
        raise error(where, matrix.header[0], f"the matrix of `topo -p2p {given}`; give that of `topo -p2p r`")
    found: dict[str, str] = {}
    for (a, b), words in cells(matrix, where, PEER_CELL, ("X", "OK", *_WHY)).items():
        why = next((_WHY[word.text] for word in words if word.text != "OK"), None)
        if why is not None:
            found[" ".join(pair(f"gpu{a[3:]}", f"gpu{b[3:]}"))] = why
    return found


def require_gpus(matrix: Matrix, where: str, known: list[str]) -> None:
    """Checks that all GPUs of a matrix of peer access are those of its host.

    Args:
        matrix: of peer access.
        where: the name of its text, for the message of an error.
        known: ids of devices, such as `gpu0`.

    Raises:
        TopologyError: naming a GPU that the host does not have.
    """
    for word in matrix.header:
        if f"gpu{word.text[3:]}" not in known:
            raise error(where, word, f"{word.text} is not a GPU of this host, which has {', '.join(known)}")


def alone(matrix: Matrix, where: str) -> TopologyError:
    """The error for a matrix of peer access without one of distances."""
    return error(
        where,
        matrix.header[0],
        "a matrix of `nvidia-smi topo -p2p`, which says nothing about links: put the output of `nvidia-smi topo -m` of "
        "the same host before it, in this file or as the one given before",
    )
