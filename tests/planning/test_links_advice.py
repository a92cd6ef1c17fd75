"""Oracles: a step composed by hand, the strategies' own traffic, and order: no change saves more than free links do."""

from dataclasses import replace

import pytest

from trainkit.distributed.cluster import Cluster
from trainkit.errors import TopologyError
from trainkit.planning.changes import TRAFFIC, Kind
from trainkit.planning.links_advice import advise_links, scaling
from trainkit.planning.workload import Workload, workload
from trainkit.strategy.ddp import DDP
from trainkit.strategy.fsdp import FSDP, HSDP
from trainkit.strategy.zero import Zero1, Zero2, Zero3
from trainkit.topology.gpus import gpus
from trainkit.topology.presets import preset

CHATTY = Workload(name="chatty", num_parameters=340_000_000, flops_per_sample=1e9, samples_per_device=64, tflops=100.0)
QUIET = replace(CHATTY, name="quiet", flops_per_sample=1e12)
STRATEGIES = (DDP(), FSDP(), HSDP(), Zero1(), Zero2(), Zero3())
MACHINES = ("2x3090", "4x3090", "4x3090+nvlink", "8xL40S", "8xA100-SXM")


def _changes(text, work=CHATTY, **options):
    return {change.what: change for change in advise_links(gpus(text), work, **options).changes}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda one: one.name)
def test_traffic_is_that_of_the_strategies(strategy):
    assert TRAFFIC[strategy.name] == strategy.traffic


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda one: one.name)
def test_state_is_that_of_the_strategies(strategy):
    advice = advise_links(preset("dgx-a100"), CHATTY, num_nodes=2, strategy=strategy.name)
    cluster = Cluster(world_size=16, local_world_size=8)
    memory = strategy.predict([CHATTY.num_parameters], [], 2, cluster)
    assert memory.optimizer is not None
    assert advice.state_bytes == pytest.approx(memory.parameters + memory.gradients + memory.optimizer)


@pytest.mark.parametrize("text", MACHINES)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_nothing_saves_more_than_links_that_take_no_time(text, strategy):
    changes = _changes(text, strategy=strategy).values()
    (bound,) = (change for change in changes if change.kind == "bound")
    assert 0 < bound.gain < 1
    assert all(change.gain <= bound.gain + 1e-9 for change in changes)
    assert [change.gain for change in changes] == sorted((change.gain for change in changes), reverse=True)
    assert all(change.gain <= 1e-9 for change in changes if change.kind == "worse")


def test_the_bound_is_what_a_step_waits():
    advice = advise_links(gpus("4x3090"), CHATTY)
    bound = next(change for change in advice.changes if change.kind == "bound")
    assert bound.gain == pytest.approx(advice.lost) == pytest.approx(1 - advice.point.compute_us / advice.point.step_us)


def test_accumulation_is_composed_by_hand():
    """Of four micro-batches three only compute."""
    advice = advise_links(gpus("4x3090"), CHATTY)
    four = next(change for change in advice.changes if change.what.startswith("4 times"))
    waiting = advice.point.step_us - advice.point.compute_us
    assert four.gain == pytest.approx(1 - (4 * advice.point.compute_us + waiting) / 4 / advice.point.step_us)
    assert "recipe.batch_size=1024 recipe.grad_accumulation_steps=4" in four.how


def test_each_machine_is_offered_what_it_can_have():
    assert "NVLink bridges, each for up to 2 cards" in _changes("4x3090")
    assert "an NVLink bridge" in _changes("2x3090")
    assert not any("bridge" in name for text in ("4x4090", "8xL40S", "2x3090+nvlink") for name in _changes(text))
    assert "peer access over PCIe" in _changes("4x4090") and "peer access over PCIe" not in _changes("8xL40S")
    assert "without NVLink" in _changes("8xA100-SXM") and "without NVLink" not in _changes("4x3090")
    assert not any("slot" in name for name in _changes("8xA100-SXM"))
    assert list(_changes("1x3090")) == []


def test_formats_between_groups_need_groups():
    assert not any("between" in name for name in _changes("4x3090"))
    assert _changes("8xA100-PCIe+nvlink")["gradients in int8 between 4 groups of cards"].how == "comm.wire_dtype=int8"
    assert not any("gradients in" in name for name in _changes("8xA100-PCIe+nvlink", strategy="fsdp"))


def test_a_slow_network_is_named():
    names = [change.what for change in advise_links(preset("dgx-a100"), CHATTY, num_nodes=4).changes]
    assert {"network cards 2 x as fast", "network cards 4 x as fast"} < set(names)


@pytest.mark.parametrize(
    ("text", "work", "begins"),
    [
        ("8xL40S", CHATTY, "Links decide: chatty"),
        ("8xA100-SXM", CHATTY, "NVLink earns its price: without it"),
        ("8xA100-SXM", replace(QUIET, flops_per_sample=1e14), "NVLink is hardly used: without it"),
        ("8xL40S", replace(QUIET, flops_per_sample=1e14), "NVLink is not needed: quiet"),
        ("1x3090", CHATTY, "One card waits for nobody"),
    ],
)
def test_the_verdict_follows_the_step(text, work, begins):
    assert advise_links(gpus(text), work).verdict().startswith(begins)


def test_the_verdict_names_the_best_change_of_each_kind():
    advice = advise_links(gpus("8xL40S"), CHATTY)
    kinds: tuple[Kind, ...] = ("links", "setting")
    for kind in kinds:
        best = advice.best(kind)
        assert best is not None and best.what in advice.verdict()
    assert advise_links(gpus("8xL40S"), replace(QUIET, flops_per_sample=1e15)).best("links") is None


@pytest.mark.parametrize(("text", "other"), [("4x3090", "with NVLink bridges"), ("8xA100-SXM", "without NVLink")])
def test_scaling_begins_at_one_card_and_ends_at_the_machine(text, other):
    advice = advise_links(gpus(text), CHATTY)
    series = scaling(advice)
    assert list(series) == ["as it is", other]
    for points in series.values():
        assert [point.num_devices for point in points] == [1, 2, 4, 8][: len(points)]
        assert points[0].efficiency == 1.0
    assert series["as it is"][-1].step_us == pytest.approx(advice.point.step_us)


def test_a_wrong_strategy_is_one_error():
    with pytest.raises(TopologyError, match=r"--strategy=fdsp: .*Did you mean 'fsdp'"):
        advise_links(gpus("2x3090"), workload("bert-base", tflops=1.0), strategy="fdsp")


def test_of_changes_that_save_as_much_the_simplest_is_named():
    advice = advise_links(gpus("2x3090"), CHATTY)
    saving = {change.what: change.gain for change in advice.changes}
    assert saving["NVLink through an NVSwitch (12 links of an A100)"] > saving["an NVLink bridge"] > 0.5
    best = advice.best("links")
    assert best is not None and best.what == "an NVLink bridge"


def test_a_setting_that_is_enough_comes_before_money():
    advice = advise_links(gpus("4x3090"), workload("bert-large", tflops=38.4))
    setting = advice.best("setting")
    assert setting is not None and setting.how == "export NCCL_SHM_USE_CUDA_MEMCPY=1"
    assert advice.verdict().startswith("NVLink is not needed, a setting is: export NCCL_SHM")
