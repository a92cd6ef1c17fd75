"""Machines: the check of ranks and links with which a run on several hosts starts."""

from typing import Literal

import torch.distributed as dist

from trainkit.errors import ConfigError
from trainkit.health.machine_check import check_machines
from trainkit.runtime import Runtime
from trainkit.topology.discover import discover


def look_at_machines(runtime: Runtime, *, machine_check: Literal["report", "never"] | float = "report") -> None:
    """Measures each rank and link of a run on several hosts, and says what is slow. Collective: every rank must call.

    Does nothing on one host. The processes of the job meet in a group of their own for it, which is gone afterwards.

    Args:
        runtime: of the run.
        machine_check: `report` names ranks and links below 0.7 of the median one; a share such as 0.7 refuses to
            train below it; `never` does not measure. Wrong results are always refused.

    Raises:
        ConfigError: on all ranks, for a share that is none, and where the machines are refused.
    """
    if isinstance(machine_check, str):
        at_least = None
    elif 0 < machine_check <= 1:
        at_least = float(machine_check)
    else:
        raise ConfigError(f"machine_check={machine_check}: must be report, never, or a share above 0 and at most 1")
    if machine_check == "never" or runtime.ranks.cluster.is_one_host:
        return
    group = dist.new_group()
    topology = discover(runtime.device, runtime.ranks.cluster, group=group)
    report = check_machines(runtime.device, group=group, topology=topology)
    dist.barrier(runtime.ranks.group)  # a rank that is slower would lose its connections
    dist.destroy_process_group(group)
    refusal = report.refusal(at_least)
    if refusal is not None:
        raise ConfigError(
            f"machine_check={machine_check}: {refusal}: leave that machine out, or see `trainkit launch --check`"
        )
    for finding in report.findings():
        runtime.tracker.message(f"machines: {finding.text}")
    if not report.findings():
        runtime.tracker.message("machines: no rank or link stands out")
