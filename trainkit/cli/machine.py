"""Which machine, and how many of them, a command's options mean."""

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
    parser.add_argument("--topology", type=Path, metavar="FILE", help="a machine's JSON")
    parser.add_argument("--preset", metavar="NAME", help="a machine that is known: dgx-1, dgx-h100 ...")
    many = f"1..128, 1,2,4 or 8; default: {nodes}" if nodes else "default: those of the file, or 1"
    parser.add_argument("--nodes", default=nodes, metavar="N", help=f"so many like it; {many}")
    parser.add_argument("--ranks-per-host", type=int, metavar="N", help="processes on each; default: one a device")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")


@contextmanager
def described(arguments: argparse.Namespace) -> "Iterator[Topology]":
    """What --topology, --preset and --nodes describe; else this machine, or all of the job's under torchrun."""
    from trainkit.topology.presets import preset
    from trainkit.topology.topology import Topology

    if arguments.topology and arguments.preset:
        raise ConfigError("--topology and --preset: give one of them")
    nodes = amounts.counts(arguments.nodes, "--nodes") if arguments.nodes else [1]
    if len(nodes) > 1:
        raise ConfigError(f"--nodes={arguments.nodes}: allowed is one number here")
    if arguments.preset:
        yield _with_ranks(preset(arguments.preset, nodes[0]), arguments.ranks_per_host)
    elif arguments.topology:
        known = Topology.read(arguments.topology)
        if nodes[0] > 1 and len(known.hosts) > 1:
            raise ConfigError(f"--nodes={nodes[0]}: {arguments.topology} has {len(known.hosts)} hosts already")
        yield _with_ranks(known.times(nodes[0]) if nodes[0] > 1 else known, arguments.ranks_per_host)
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
        with job(argparse.Namespace(device="auto", topology=None)) as (topology, _):
            yield topology
    else:
        yield _with_ranks(_this_machine(arguments.ranks_per_host).times(nodes[0]), None)


def one_node(arguments: argparse.Namespace) -> "Topology":
    """One machine with no more devices than ranks."""
    with described(argparse.Namespace(**{**vars(arguments), "nodes": None})) as topology:
        if len(topology.hosts) > 1:
            raise ConfigError(f"--topology={arguments.topology}: has {len(topology.hosts)} hosts; give the file of one")
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
    """`topology` with ranks on the first so many devices of each host."""
    from trainkit.topology.topology import RankPlacement

    if ranks_per_host is None:
        return topology
    fewest = min(len(host.devices) for host in topology.hosts)
    if not 1 <= ranks_per_host <= fewest:
        raise ConfigError(f"--ranks-per-host={ranks_per_host}: allowed is 1 to {fewest}, the devices of a host")
    places = tuple(
        RankPlacement(host=i, device=device.id)
        for i, host in enumerate(topology.hosts)
        for device in host.devices[:ranks_per_host]
    )
    return replace(topology, places=places)


@contextmanager
def job(arguments: argparse.Namespace) -> "Iterator[tuple[Topology, torch.device]]":
    """The topology of the processes that torchrun started, in a process group, and this process's device."""
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
