"""The options of commands that describe machines, and the topology that they mean."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.cli import amounts
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from trainkit.topology.topology import Topology

MOST_PROCESSES_SHOWN = 8


def add_machine(parser: argparse.ArgumentParser, nodes: str | None = None) -> None:
    """Adds --topology, --preset, --nodes and --ranks-per-host; `nodes` is the default of --nodes."""
    parser.add_argument("--topology", type=Path, metavar="FILE", help="a topology file (JSON)")
    parser.add_argument("--preset", metavar="NAME", help="a common machine: dgx-1, dgx-h100 ...")
    many = f"1..128, 1,2,4 or 8; default: {nodes}" if nodes else "default: the hosts of the file, or 1"
    parser.add_argument("--nodes", default=nodes, metavar="N", help=f"number of such machines; {many}")
    parser.add_argument(
        "--ranks-per-host", type=int, metavar="N", help="processes on each host; default: one for each device"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds --device."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")


@contextmanager
def described(arguments: argparse.Namespace) -> "Iterator[Topology]":
    """The topology that the options of `add_machine` describe.

    Args:
        arguments: parsed; without these options: this machine, or under torchrun those of the job.

    Yields:
        The topology.

    Raises:
        ConfigError: for options that contradict each other.
        TopologyError: for a file or preset that cannot be used.
    """
    from trainkit.topology.presets import preset
    from trainkit.topology.topology import Topology

    if arguments.topology and arguments.preset:
        raise ConfigError("--topology and --preset: give only one of them")
    nodes = amounts.counts(arguments.nodes, "--nodes") if arguments.nodes else [1]
    if len(nodes) > 1:
        raise ConfigError(f"--nodes={arguments.nodes}: must be one number for this command")
    if arguments.preset:
        yield _with_ranks(preset(arguments.preset, nodes[0]), arguments.ranks_per_host)
    elif arguments.topology:
        known = Topology.read(arguments.topology)
        if nodes[0] > 1 and len(known.hosts) > 1:
            raise ConfigError(
                f"--nodes={nodes[0]}: {arguments.topology} has {len(known.hosts)} hosts; give a file with one"
            )
        yield _with_ranks(known.times(nodes[0]) if nodes[0] > 1 else known, arguments.ranks_per_host)
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
        with job(argparse.Namespace(device="auto", topology=None)) as (topology, _):
            yield topology
    else:
        yield _with_ranks(_this_machine(arguments.ranks_per_host).times(nodes[0]), None)


def one_node(arguments: argparse.Namespace) -> "Topology":
    """One machine, with only the devices that have a rank.

    Args:
        arguments: parsed options of `add_machine`.

    Raises:
        ConfigError: for a topology of several hosts.
        TopologyError: for a file or preset that cannot be used.
    """
    with described(argparse.Namespace(**{**vars(arguments), "nodes": None})) as topology:
        if len(topology.hosts) > 1:
            raise ConfigError(f"--topology={arguments.topology}: has {len(topology.hosts)} hosts; give a file with one")
        host, used = topology.hosts[0], {place.device for place in topology.places}
        gone = {device.id for device in host.devices} - used
        devices = tuple(device for device in host.devices if device.id in used)
        links = tuple(link for link in host.links if not gone & {link.a, link.b})
        return type(topology)(hosts=(replace(host, devices=devices, links=links),), source=topology.source)


def _this_machine(ranks_per_host: int | None) -> "Topology":
    import torch

    from trainkit.topology.discover import discover_host
    from trainkit.topology.topology import Topology

    if torch.cuda.is_available():
        host = discover_host("cuda", torch.cuda.device_count())
        return _with_ranks(Topology(hosts=(host,)), ranks_per_host)
    few = min(os.cpu_count() or 1, MOST_PROCESSES_SHOWN)
    return Topology(hosts=(discover_host("cpu", ranks_per_host or few),))


def _with_ranks(topology: "Topology", ranks_per_host: int | None) -> "Topology":
    """`topology` with ranks on the first `ranks_per_host` devices of each host."""
    from trainkit.topology.topology import RankPlacement

    if ranks_per_host is None:
        return topology
    fewest = min(len(host.devices) for host in topology.hosts)
    if not 1 <= ranks_per_host <= fewest:
        raise ConfigError(f"--ranks-per-host={ranks_per_host}: must be from 1 to {fewest}, the devices of a host")
    places = tuple(
        RankPlacement(host=i, device=device.id)
        for i, host in enumerate(topology.hosts)
        for device in host.devices[:ranks_per_host]
    )
    return replace(topology, places=places)


@contextmanager
def job(arguments: argparse.Namespace) -> "Iterator[tuple[Topology, torch.device]]":
    """Initializes the process group of the processes that torchrun started, and reads their topology.

    Args:
        arguments: with `device`, and `topology`: a file that is used in place of reading the machines.

    Yields:
        The topology and the device of this process.
    """
    import torch.distributed as dist

    from trainkit.distributed.cluster import Cluster, join
    from trainkit.distributed.device import choose_device
    from trainkit.topology.discover import discover

    cluster = Cluster.from_environment()
    device = choose_device(arguments.device, cluster)
    made = join(cluster, device)
    try:
        yield discover(device, cluster, group=dist.group.WORLD, path=arguments.topology), device
    finally:
        if made:
            dist.destroy_process_group()
