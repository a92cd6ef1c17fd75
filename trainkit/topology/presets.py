"""Presets: machines that many people have, as files of one host each."""

from dataclasses import replace
from pathlib import Path

from trainkit.errors import TopologyError, nearest
from trainkit.topology.topology import Topology

DIRECTORY = Path(__file__).parent / "preset_files"


def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in DIRECTORY.glob("*.json")))


def preset(name: str, num_nodes: int = 1) -> Topology:
    """`num_nodes` machines like the preset of that name, or like the one host of the file at that path.

    Raises TopologyError for an unknown name, a file that is wrong or has several hosts, and fewer than one node.
    """
    if num_nodes < 1:
        raise TopologyError(f"num_nodes={num_nodes}: at least one is needed")
    if name in preset_names():
        found = replace(Topology.read(DIRECTORY / f"{name}.json"), source=f"preset {name}")
    elif name.endswith(".json") or Path(name).expanduser().is_file():
        found = Topology.read(name)
    else:
        raise TopologyError(
            f"there is no preset {name!r}: there are {', '.join(preset_names())}; a path to a file of your own ends in "
            f".json.{nearest(name, preset_names())}"
        )
    if len(found.hosts) > 1:
        raise TopologyError(f"{name}: has {len(found.hosts)} hosts; a preset is one, taken num_nodes times")
    return found.times(num_nodes)
