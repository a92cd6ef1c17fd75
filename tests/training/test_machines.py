"""A run on several hosts starts with a check of its machines, and does not start on wrong or, if asked, slow ones."""

import os
from typing import Any

import pytest

from trainkit.errors import ConfigError
from trainkit.health.machine_report import MachineReport, RankFigure
from trainkit.testing import run_ranks
from trainkit.training.machines import look_at_machines


def _looked(report, machine_check, is_one_host=False):
    """What a run of two hosts with such a report says, or why it does not start; the report is real where None."""
    from types import SimpleNamespace

    import torch

    from trainkit.distributed.cluster import Cluster
    from trainkit.health.machine_check import check_machines

    rank, measured = int(os.environ["RANK"]), []
    said: list[str] = []

    def check(*given, **named):
        measured.append(check_machines(*given, **named) if report is None else report)
        return measured[-1]

    cluster = Cluster(rank, 2, rank if is_one_host else 0, 2 if is_one_host else 1)
    runtime: Any = SimpleNamespace(
        ranks=SimpleNamespace(cluster=cluster, group=None),
        device=torch.device("cpu"),
        tracker=SimpleNamespace(message=said.append),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainkit.training.machines.check_machines", check)
        try:
            look_at_machines(runtime, machine_check=machine_check)
        except ConfigError as error:
            said.append(f"refused: {error}")
    return said, len(measured)


def figures(rate, num_wrong=0):
    return MachineReport((RankFigure(0, "node1", "CPU", 100.0), RankFigure(1, "node2", "CPU", rate, num_wrong)))


SLOW = "rank 1 on node2 is slow: 0.60 of the median rank's matrix products (60 of 100 GFLOP/s)"


@pytest.mark.parametrize(
    ("report", "machine_check", "says"),
    [
        (figures(100.0), "report", ["machines: no rank or link stands out"]),
        (figures(60.0), "report", [f"machines: {SLOW}"]),
        (figures(60.0), 0.5, ["machines: " + SLOW]),
        (
            figures(60.0),
            0.65,
            [f"refused: machine_check=0.65: {SLOW}: leave that machine out, or see `trainkit launch --check`"],
        ),
    ],
)
def test_what_a_run_says_of_its_machines(report, machine_check, says):
    assert run_ranks(_looked, 2, report, machine_check) == [(says, 1)] * 2


def test_a_rank_that_multiplies_wrongly_is_always_refused():
    for said, _ in run_ranks(_looked, 2, figures(100.0, num_wrong=3), "report"):
        assert said[0].startswith("refused: machine_check=report: rank 1 on node2 multiplies wrongly: 3 rows")


def test_it_measures_on_several_hosts_unless_turned_off():
    for said, num in run_ranks(_looked, 2, None, "report"):
        assert num == 1 and said[0].startswith("machines: ")
    assert run_ranks(_looked, 2, None, "report", True) == [([], 0)] * 2
    assert run_ranks(_looked, 2, None, "never") == [([], 0)] * 2


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_is_none(share):
    runtime: Any = None
    with pytest.raises(ConfigError, match=r"machine_check=.*: must be report, never, or a share above 0"):
        look_at_machines(runtime, machine_check=share)
