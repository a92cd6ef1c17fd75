"""Presets: topology files of common machines, one host each."""

from dataclasses import replace
from pathlib import Path

from trainkit.errors import TopologyError, nearest
from trainkit.topology.topology import Topology

DIRECTORY = Path(__file__).parent / "preset_files"


def preset_names() -> tuple[str, ...]:
    """The names of all presets, sorted."""
    return tuple(sorted(path.stem for path in DIRECTORY.glob("*.json")))


def preset(name: str, num_nodes: int = 1) -> Topology:
    """The topology of several machines of one kind.

    Args:
        name: of a preset, or the path of a topology file with one host.
        num_nodes: machines.

    Raises:
        TopologyError: for an unknown name, an invalid file or one with several hosts, and fewer than one node.

    Example:
        >>> preset("dgx-h100", 2).world_size
        16
    """
    if num_nodes < 1:
        raise TopologyError(f"num_nodes={num_nodes}: must be at least 1")
    if name in preset_names():
        found = replace(Topology.read(DIRECTORY / f"{name}.json"), source=f"preset {name}")
    elif name.endswith(".json") or Path(name).expanduser().is_file():
        found = Topology.read(name)
    else:
        raise TopologyError(
            f"there is no preset {name!r}: must be one of {', '.join(preset_names())}, or the path of a .json file."
            f"{_nearest(name)}"
        )
    if len(found.hosts) > 1:
        raise TopologyError(f"{name}: has {len(found.hosts)} hosts; give a file with one, which num_nodes repeats")
    return found.times(num_nodes)


def _nearest(name: str) -> str:
    """The end of an error message: presets that have `name` as a word, otherwise one that is spelled like it."""
    same = [repr(known) for known in preset_names() if name.lower() in known.split("-")]
    return f" Did you mean {' or '.join(same)}?" if same else nearest(name.lower(), preset_names())
