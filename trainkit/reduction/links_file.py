"""LinksFile: which ranks are on which hosts, and the plan of their all-reduce, as links.json in the run directory."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainkit.distributed.cluster import Cluster
from trainkit.planning.choice import Choice
from trainkit.topology.topology import Topology

FILE_NAME = "links.json"


class LinksFile:
    """Writes links.json when a plan was chosen, for the report of the run. Rank 0 has one.

    Args:
        run_dir: the run directory.
        cluster: the processes of the job.
        device: of this process.
        report: called with a line where it cannot be written.
    """

    def __init__(self, run_dir: Path, cluster: Cluster, device: torch.device, report: Callable[[str], None]) -> None:
        self._path, self._cluster, self._device, self._report = run_dir / FILE_NAME, cluster, device, report
        self._num_bytes = -1

    def chosen(self, num_bytes: int, choice: Choice, topology: Topology | None) -> None:
        """Writes the choice for the largest buckets so far.

        Args:
            num_bytes: of a bucket.
            choice: the plan, and why.
            topology: of the machines; None where it was not read.
        """
        if num_bytes <= self._num_bytes:
            return
        self._num_bytes = num_bytes
        links = {
            "format": 1,
            "transport": "NCCL" if self._device.type == "cuda" else "gloo",
            "hosts": _hosts(self._cluster, topology),
            "plan": choice.plan.to_dict(),
            "why": [*choice.why],
            "bucket_bytes": num_bytes,
        }
        temporary = self._path.with_name(f".{FILE_NAME}.tmp")
        try:
            temporary.write_text(json.dumps(links, indent=2) + "\n")
            temporary.replace(self._path)
        except OSError as error:
            self._report(f"{FILE_NAME} could not be written: {error.strerror or error}; training continues")


def _hosts(cluster: Cluster, topology: Topology | None) -> list[dict[str, Any]]:
    """Hosts and their ranks; where the machines were not read, ranks are taken to be numbered host after host."""
    if topology is not None:
        by_host = topology.ranks_by_host()
        return [{"name": topology.hosts[topology.places[ranks[0]].host].name, "ranks": [*ranks]} for ranks in by_host]
    ranks, size = range(cluster.world_size), cluster.local_world_size
    if size >= len(ranks):
        return [{"name": socket.gethostname(), "ranks": [*ranks]}]
    return [{"name": f"host {i // size}", "ranks": [*ranks[i : i + size]]} for i in range(0, len(ranks), size)]
