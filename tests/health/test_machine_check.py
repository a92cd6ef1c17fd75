"""The check of machines names the rank, the link or the host that is slow or wrong, and nothing else."""

from types import SimpleNamespace

import pytest

from trainkit.health.gpu_state import gpu_problems
from trainkit.health.machine_check import expected, pairs_across, pairs_within
from trainkit.health.machine_report import LinkFigure, MachineReport, RankFigure
from trainkit.testing import run_ranks
from trainkit.topology import NETWORK, preset
from trainkit.topology.measure import Timing


def _measured(slow=None, wrong=None):
    """The report of gloo ranks, two on each host, of which one multiplies slowly or wrongly."""
    import time

    import torch
    import torch.distributed as dist

    from trainkit.health.machine_check import check_machines

    rank = dist.get_rank()

    def multiply(a, b):
        product = torch.mm(a, b)
        if rank == slow:
            time.sleep(0.5)  # the stand-in for a slow GPU: a product takes a hundredth of that
        if rank == wrong:
            product[3, 4] += 1
        return product

    return check_machines(torch.device("cpu"), multiply=multiply, host=f"node{rank // 2}")


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_slow_rank_and_a_wrong_one_are_named(world_size):
    *_, report = same = run_ranks(_measured, world_size, 1, 0)
    assert same == [report] * world_size
    wrong, slow, *_ = report.findings()
    assert wrong.text.startswith("rank 0 on node0 multiplies wrongly: ") and wrong.is_wrong
    assert [figure.num_wrong > 0 for figure in report.ranks] == [rank == 0 for rank in range(world_size)]
    assert slow.text.startswith("rank 1 on node0 is slow: 0.") and slow.share < 0.5
    assert report.refusal() == wrong.text


def test_sound_ranks_compute_rightly_and_reach_each_other():
    (report, *_) = run_ranks(_measured, 4)
    assert [figure.num_wrong for figure in report.ranks] == [0] * 4 and report.all_reduce.num_wrong == 0
    assert {(link.a, link.b) for link in report.links} == {
        *((0, 1), (1, 0), (2, 3), (3, 2)),
        *((0, 2), (2, 0), (1, 3), (3, 1)),
    }
    assert all(link.gb_per_s > 0 and link.latency_us > 0 for link in report.links)
    assert report.refusal() is None
    text = "\n".join(report.lines())
    for part in ("4 ranks on 2 hosts: CPU", "links within hosts: ", "links between hosts: ", "all-reduce of 4 MB: "):
        assert part in text


# -- pairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [2, 3, 4, 7, 8])
def test_all_pairs_meet_once(num):
    for phases in (pairs_within(["a"] * num, 99), pairs_across([str(i) for i in range(num)], 99)):
        pairs = [pair for phase in phases for pair in phase.items() if pair[0] < pair[1]]
        assert sorted(pairs) == [(i, j) for i in range(num) for j in range(i + 1, num)]
        assert all(phase[phase[rank]] == rank != phase[rank] for phase in phases for rank in phase)


def test_many_hosts_have_a_few_partners_each():
    hosts = [f"node{rank // 8}" for rank in range(1024)]
    within, across = pairs_within(hosts, 4), pairs_across(hosts, 4)
    assert [len(phase) for phase in (*within, *across)] == [1024] * 8
    assert all(hosts[rank] == hosts[other] for phase in within for rank, other in phase.items())
    assert all(hosts[rank] != hosts[other] for phase in across for rank, other in phase.items())
    assert len({phase[0] for phase in across}) == 4


def test_hosts_with_different_numbers_of_ranks():
    assert pairs_within(["a", "a", "a", "b"], 9) == [{1: 2, 2: 1}, {0: 2, 2: 0}, {0: 1, 1: 0}]
    assert pairs_across(["a", "a", "a", "b"], 9) == [{0: 3, 3: 0}]


# -- the report --------------------------------------------------------------------------------------------------------


def figures(*slow_ranks, num_hosts=4, per_host=2):
    return tuple(
        RankFigure(rank, f"node{rank // per_host}", "H100", 100.0 if rank in slow_ranks else 600.0)
        for rank in range(num_hosts * per_host)
    )


def links(hosts, is_slow, num_phases=9):
    phases = [*pairs_within(hosts, num_phases), *pairs_across(hosts, num_phases)]
    return tuple(LinkFigure(a, b, 2.0 if is_slow(a, b) else 10.0, 5.0) for phase in phases for a, b in phase.items())


HOSTS = [figure.host for figure in figures()]


@pytest.mark.parametrize(
    ("is_slow", "names"),
    [
        (lambda a, b: False, []),
        (lambda a, b: {a, b} == {1, 5}, ["rank 1 on node0 - rank 5 on node2 is a slow link"]),
        (lambda a, b: (a, b) == (5, 1), ["rank 1 on node0 - rank 5 on node2 is a slow link"]),
        (lambda a, b: {a, b} == {2, 3}, ["rank 2 on node1 - rank 3 on node1 is a slow link"]),
        (lambda a, b: (HOSTS[a] == "node2") != (HOSTS[b] == "node2"), ["node2 is slow to all others"]),
        (lambda a, b: HOSTS[a] != HOSTS[b] and 3 in (a, b), ["rank 3 on node1 is slow to all others"]),
    ],
)
def test_a_slow_link_a_slow_card_and_a_slow_host(is_slow, names):
    report = MachineReport(figures(), links(HOSTS, is_slow))
    assert [finding.text.partition(":")[0] for finding in report.findings()] == names
    assert (report.refusal() is None) and (report.refusal(0.7) is None) == (not names)


def test_links_are_held_against_their_hardware():
    topology = preset("dgx-h100", 2)
    hosts = [f"node{rank // 8}" for rank in range(16)]
    (within,), (across,) = pairs_within(hosts, 1), pairs_across(hosts, 9)
    nvswitch, card = expected(topology, within), expected(topology, across)
    assert set(nvswitch) == set(card) == set(range(16))
    assert set(nvswitch.values()) == {370.8} and set(card.values()) == {48.0}
    one_card = preset("workstation-2", 2)  # both GPUs of a host send over it
    (shared,) = pairs_across(["a", "a", "b", "b"], 9)
    every = [link for host in one_card.hosts for link in host.links]
    (rate,) = {link.bandwidth_gb_per_s for link in every if NETWORK in (link.a, link.b)}
    assert set(expected(one_card, shared).values()) == {rate / 2}


def test_links_that_are_all_slow_are_named():
    ethernet = tuple(LinkFigure(a, b, 1.2, 50.0, 48.0) for a, b in ((0, 2), (2, 0), (1, 3), (3, 1)))
    report = MachineReport(figures(num_hosts=2), ethernet)
    text = "links between hosts are slow: 0.02 of their hardware (1.2 of 48 GB/s, medians)"
    assert [finding.text for finding in report.findings()] == [text] == [report.refusal(0.7)]
    assert "; 48 by the hardware" in "".join(report.lines()) and report.refusal() is None
    fast = tuple(LinkFigure(link.a, link.b, 24.0, 50.0, 48.0) for link in ethernet)
    assert MachineReport(figures(num_hosts=2), fast).findings() == []
    assert MachineReport(figures(num_hosts=2), fast).refusal(0.7) is not None


def test_a_share_refuses_what_is_below_it():
    report = MachineReport(figures(5))
    assert report.refusal() is None and report.refusal(0.1) is None
    assert report.refusal(0.9) == (
        "rank 5 on node2 is slow: 0.17 of the median rank's matrix products (100 of 600 GFLOP/s)"
    )


def test_wrong_sums_refuse_always():
    report = MachineReport(figures(), (), Timing(8, 1.0, 8, num_wrong=2))
    assert report.refusal() == "2 elements of an all-reduce over all ranks are not the sum"


# -- the state of a GPU ------------------------------------------------------------------------------------------------


class Nvml(SimpleNamespace):
    """A stand-in for pynvml with one GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, **values):
        super().__init__(nvmlClocksEventReasonSwPowerCap=4, nvmlClocksThrottleReasonHwThermalSlowdown=64)
        values = {
            **{"CurrPcieLinkGeneration": 5, "MaxPcieLinkGeneration": 5},
            **{"CurrPcieLinkWidth": 16, "MaxPcieLinkWidth": 16},
            **{"ClockInfo": 1900, "MaxClockInfo": 1980, "CurrentClocksThrottleReasons": 0},
            **values,
        }
        for name, value in values.items():
            setattr(self, f"nvmlDeviceGet{name}", lambda handle, *_, value=value: value)

    def nvmlInit(self):
        pass

    nvmlShutdown = nvmlInit

    def nvmlDeviceGetHandleByPciBusId(self, bus_id):
        return bus_id


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({}, []),
        ({"CurrPcieLinkGeneration": 3}, ["PCIe runs at generation 3 of 5"]),
        ({"CurrPcieLinkWidth": 8}, ["PCIe has 8 of 16 lanes"]),
        (
            {"ClockInfo": 900, "CurrentClocksThrottleReasons": 64},
            ["its clock is 900 of 1980 MHz, slowed down by its temperature (by the hardware)"],
        ),
        ({"ClockInfo": None}, []),
    ],
)
def test_what_slows_a_gpu_down(values, problems):
    assert gpu_problems("0000:3b:00.0", Nvml(**values)) == problems


def test_a_machine_without_nvml():
    nvml = Nvml()

    def fail():
        raise nvml.NVMLError("driver not loaded")

    nvml.__dict__["nvmlInit"] = fail
    assert gpu_problems("0000:3b:00.0", nvml) == []
