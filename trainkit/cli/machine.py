"""The options of commands that describe machines, and the topology that they mean."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from trainkit.cli import amounts
from trainkit.cli.output import say
from trainkit.errors import ConfigError, require_above_zero

if TYPE_CHECKING:
    import torch

    from trainkit.topology.topology import Link, Topology

MOST_PROCESSES_SHOWN = 8


def add_machine(parser: argparse.ArgumentParser, nodes: str | None = None) -> None:
    """Adds --topology, --preset, --gpus, --nodes, --nic-gbit and --ranks-per-host; `nodes`: the default of --nodes."""
    parser.add_argument(
        "--topology",
        action="append",
        metavar="FILE",
        help="a topology file (JSON), NCCL's XML or the output of `nvidia-smi topo -m`; - for standard input; "
        "give it once for each host",
    )
    parser.add_argument("--preset", metavar="NAME", help="a common machine: dgx-1, dgx-h100 ...")
    parser.add_argument(
        "--gpus", metavar="NxCARD", help="a machine with these cards, such as 4x3090, 8xL40S or 2x3090+nvlink"
    )
    many = f"1..128, 1,2,4 or 8; default: {nodes}" if nodes else "default: the hosts of the file, or 1"
    parser.add_argument("--nodes", default=nodes, metavar="N", help=f"number of such machines; {many}")
    parser.add_argument(
        "--nic-gbit",
        type=float,
        metavar="N",
        help="Gb/s of the network cards whose speed is not stated; default: 10, as NCCL assumes",
    )
    parser.add_argument(
        "--ranks-per-host", type=int, metavar="N", help="processes on each host; default: one for each device"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds --device."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")


def check(arguments: argparse.Namespace) -> None:
    """Checks the options of `add_machine`.

    Raises:
        ConfigError: for options that contradict each other.
    """
    given = [f"--{name}" for name in ("gpus", "preset", "topology") if getattr(arguments, name)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: give only one of them")
    if arguments.gpus and arguments.ranks_per_host:
        raise ConfigError(f"--gpus={arguments.gpus} names the number of cards: leave out --ranks-per-host")
    require_above_zero("--", **{"nic-gbit": arguments.nic_gbit})


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
    nodes = amounts.counts(arguments.nodes, "--nodes") if arguments.nodes else [1]
    if len(nodes) > 1:
        raise ConfigError(f"--nodes={arguments.nodes}: must be one number for this command")
    with _read(arguments, is_joinable=nodes[0] > 1) as topology:
        if nodes[0] == 1:
            yield topology
            return
        if len(topology.hosts) > 1:
            raise ConfigError(
                f"--nodes={nodes[0]}: {_given(arguments)} has {len(topology.hosts)} hosts; give a file with one"
            )
        yield _with_ranks(topology.times(nodes[0]), arguments.ranks_per_host)


def one_node(arguments: argparse.Namespace) -> "Topology":
    """One machine, with only the devices that have a rank.

    Args:
        arguments: parsed options of `add_machine`; with more than one of --nodes, the machine has a network card.

    Raises:
        ConfigError: for a topology of several hosts.
        TopologyError: for a file or preset that cannot be used.
    """
    nodes = amounts.counts(arguments.nodes, "--nodes") if arguments.nodes else [1]
    with _read(arguments, is_joinable=max(nodes) > 1) as topology:
        if len(topology.hosts) > 1:
            raise ConfigError(f"--topology={_given(arguments)}: has {len(topology.hosts)} hosts; give a file with one")
        host, used = topology.hosts[0], {place.device for place in topology.places}
        gone = {device.id for device in host.devices} - used
        devices = tuple(device for device in host.devices if device.id in used)
        links = tuple(link for link in host.links if not gone & {link.a, link.b})
        return type(topology)(hosts=(replace(host, devices=devices, links=links),), source=topology.source)


def warn(topology: "Topology", num_nodes: int) -> None:
    """Prints a line for each problem of a topology, and for network cards whose speed is assumed.

    Args:
        topology: that a command predicts from.
        num_nodes: of which it predicts.
    """
    from trainkit.planning.advice import advise
    from trainkit.planning.readings import unknown_speed

    for advice in advise(topology):
        if advice.severity != "hint":
            say(str(advice))
    unknown = [str(advice) for host in topology.hosts for advice in unknown_speed(host)]
    for line in dict.fromkeys(unknown) if num_nodes > 1 else ():
        say(line)


@contextmanager
def _read(arguments: argparse.Namespace, *, is_joinable: bool) -> "Iterator[Topology]":
    """The topology of the options, without --nodes; a `is_joinable` one host has a network card."""
    from trainkit.topology.discover.merge import joinable

    check(arguments)

    def finished(topology: "Topology") -> "Topology":
        if is_joinable and len(topology.hosts) == 1:
            topology = replace(topology, hosts=(joinable(topology.hosts[0]),))
        return _with_speeds(topology, arguments.nic_gbit)

    if arguments.preset:
        from trainkit.topology.presets import preset

        yield finished(_with_ranks(preset(arguments.preset), arguments.ranks_per_host))
    elif arguments.gpus:
        from trainkit.topology.gpus import gpus

        yield finished(gpus(arguments.gpus))
    elif arguments.topology:
        from trainkit.topology.discover.texts import read_files

        yield finished(_with_ranks(read_files(arguments.topology), arguments.ranks_per_host))
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
        with job(argparse.Namespace(device="auto", topology=None)) as (topology, _):
            yield finished(topology)
    else:
        yield finished(_this_machine(arguments.ranks_per_host))


def _given(arguments: argparse.Namespace) -> str:
    """What the topology was read from, as it was typed."""
    return ", ".join(arguments.topology or [arguments.preset or "this job"])


def _with_speeds(topology: "Topology", nic_gbit: float | None) -> "Topology":
    """The topology with network cards of unknown speed at so many Gb/s."""
    from trainkit.topology.discover.nics import nic_link

    if nic_gbit is None:
        return topology
    if not any(link.kind == "nic" and link.source == "assumed" for host in topology.hosts for link in host.links):
        raise ConfigError(f"--nic-gbit={nic_gbit:g}: there is no network card of unknown speed; leave it out")

    def stated(link: "Link") -> "Link":
        if link.kind != "nic" or link.source != "assumed":
            return link
        return replace(link, bandwidth_gb_per_s=nic_link(link.a, nic_gbit).bandwidth_gb_per_s, source="nominal")

    hosts = (replace(host, links=tuple(stated(link) for link in host.links)) for host in topology.hosts)
    return replace(topology, hosts=tuple(hosts))


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
