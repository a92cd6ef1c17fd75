"""Oracles: published throughputs, the peaks of data sheets, and a price list that is a sum by hand."""

import pytest

from trainkit.benchmark.published import published
from trainkit.errors import ConfigError, TopologyError
from trainkit.forecast.published_scaling import published_scaling
from trainkit.forecast.purchase import Prices, Task, options, prices_of
from trainkit.forecast.speed import speed_of
from trainkit.planning.workload import bert_flops
from trainkit.topology.cards import cards
from trainkit.topology.topology import Device

TASK = Task(recipe="bert-large")


def _speed(name, precision="bf16", model="bert-large"):
    return speed_of(Device(id="gpu0", name=name), precision, model)


@pytest.mark.parametrize("card", [card for card in cards() if "fp16" in card.tflops], ids=lambda card: card.name)
def test_published_and_nominal_speeds_are_below_the_peak(card):
    assert 0.1 * card.tflops["fp16"] < _speed(card.name, "fp16").tflops < 0.65 * card.tflops["fp16"]


@pytest.mark.parametrize(
    ("name", "precision", "sequences", "machine"),
    [
        ("NVIDIA GeForce RTX 3090", "bf16", 52, "RTX 3090"),
        ("NVIDIA GeForce RTX 3090", "tf32", 24, "RTX 3090"),
        ("NVIDIA A100-SXM4-80GB", "fp16", 152, "A100 80GB SXM4"),
        ("NVIDIA A100-PCIE-40GB", "fp16", 117, "A100 40GB PCIe"),
        ("NVIDIA H100 PCIe", "bf16", 204, "H100 80GB PCIe"),
        ("NVIDIA H100 80GB HBM3", "bf16", 311, "H100 80GB SXM5"),
        ("Tesla V100-SXM2-16GB", "fp32", 12, "V100 16GB"),
    ],
)
def test_the_published_rate_is_that_of_the_very_card(name, precision, sequences, machine):
    found = _speed(name, precision)
    assert found.why.endswith(f"for one {machine}")
    assert found.tflops * 1e12 / bert_flops("bert-large", tokens=384, masked=0) == pytest.approx(sequences)


def test_bert_base_has_its_own_rate():
    assert "bert-base" in _speed("NVIDIA A10", model="bert-base").why
    assert "bert-large" in _speed("NVIDIA A10", model="progressive_gan-256").why


def test_published_fp32_of_an_a100_is_above_its_peak():
    """Which is why it is taken for TF32."""
    assert 19.5 < _speed("NVIDIA A100-SXM4-80GB", "tf32").tflops < 156
    assert _speed("NVIDIA A100-SXM4-80GB", "fp32").tflops == pytest.approx(0.45 * 19.5)


@pytest.mark.parametrize(
    ("name", "alike"),
    [("NVIDIA L40S", "RTX 6000 Ada Generation"), ("NVIDIA H200", "H100 80GB HBM3"), ("NVIDIA A40", "RTX A6000")],
)
def test_a_card_without_a_figure_is_like_the_most_similar_one(name, alike):
    found, other = _speed(name), _speed(f"NVIDIA {alike}")
    assert f"as for {alike}: Lambda published" in found.why
    assert found.tflops == pytest.approx(other.tflops, rel=0.05)
    assert _speed("NVIDIA GeForce RTX 5090").tflops == pytest.approx(0.45 * 209.5)


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 3090 Ti", "", "NVIDIA GeForce RTX 4090 D"])
def test_another_card_of_a_similar_name_is_not_taken(name):
    try:
        assert "as for" in _speed(name).why
    except TopologyError as error:
        assert "give --tflops" in str(error)


def test_a_precision_that_a_card_lacks_names_the_others():
    with pytest.raises(TopologyError, match=r"--precision=bf16: known for Tesla V100-SXM2-16GB are fp16, fp32"):
        _speed("Tesla V100-SXM2-16GB")


def test_published_scaling_is_a_quotient_of_two_rows():
    rows = {(row.machine, row.num_devices, row.precision): row for row in published_scaling() if row.source == "Lambda"}
    assert rows["RTX 3090", 2, "fp16"].published == pytest.approx(89 / 52 / 2)
    assert rows["H100 80GB SXM5", 8, "fp32"].published == pytest.approx(1067 / 145 / 8)
    assert all(0 < row.unhidden <= row.predicted <= 1 for row in rows.values())


def test_every_published_row_of_several_devices_is_compared():
    several = [row for source in published() for row in source.rows if row.num_gpus > 1]
    assert len(published_scaling()) == len(several)


# -- a budget ----------------------------------------------------------------------------------------------------------


def test_prices_add_up():
    found = options(3100, prices_of(["3090=700", "4090=1700", "bridge=150"]), TASK)
    usd = {option.topology.source: option.usd for option in found}
    assert usd["4x GeForce RTX 3090, bridged"] == 4 * 700 + 2 * 150
    assert usd["2x GeForce RTX 3090"] == 1400 and usd["1x GeForce RTX 4090"] == 1700
    assert "2x GeForce RTX 4090" not in usd and not any("4090, bridged" in name for name in usd)
    rates = [option.point.samples_per_s for option in found]
    assert rates == sorted(rates, reverse=True)
    assert found[0].samples_per_s_per_1000_usd == pytest.approx(rates[0] / found[0].usd * 1000)


def test_a_setting_is_tried_where_messages_are_staged():
    found = {one.topology.source: one for one in options(3100, prices_of(["3090=700", "A6000=1500"]), TASK)}
    four = found["4x GeForce RTX 3090"]
    assert four.tuned is not None and four.tuned.efficiency > four.point.efficiency
    assert found["1x GeForce RTX 3090"].tuned is None and found["2x RTX A6000"].tuned is None


def test_the_host_is_paid_once():
    with_host = options(2500, Prices(cards={"GeForce RTX 3090": 700.0}, host=1000.0), TASK)
    assert {option.usd for option in with_host} == {1700.0, 2400.0}


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "needs the price of a card, which trainkit does not know"),
        (["bridge=100"], "needs the price of a card"),
        (["3090=5000"], "buys none of these cards: one GeForce RTX 3090 costs 5000"),
        (["3090"], "must be NAME=USD"),
        (["3090=cheap"], "must be NAME=USD"),
        (["3090=-1"], "must be NAME=USD"),
        (["=5"], "must be NAME=USD"),
    ],
)
def test_what_a_budget_needs(texts, says):
    with pytest.raises(ConfigError, match=says):
        options(1000, prices_of(texts), TASK)
