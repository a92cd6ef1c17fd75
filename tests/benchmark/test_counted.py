"""FLOPs, peaks, the largest batch, energy and steps, each against what is known."""

import math
import os
import random
import time
from typing import Any

import pytest
import torch

from tests.jobs import ROOT
from trainkit.benchmark import peak, steps
from trainkit.benchmark.batches import contents
from trainkit.benchmark.configuration import config_of, config_of_count, with_batch_size
from trainkit.benchmark.energy import EnergyMeter
from trainkit.benchmark.fitting import find_batch_size, largest_that_fits
from trainkit.benchmark.flops import FlopCounter, count_flops
from trainkit.benchmark.grid import Cell, Length, Model
from trainkit.benchmark.other_work import OtherWork
from trainkit.benchmark.peak import measure_peak
from trainkit.benchmark.peak_memory import ON_HOST, peak_memory
from trainkit.benchmark.steps import measure_steps
from trainkit.data.batch import Batch
from trainkit.errors import ConfigError
from trainkit.memory.probe import TooLittleMemoryError
from trainkit.precision import Precision

USER = ROOT / "tests" / "user" / "conf"
CPU = torch.device("cpu")


def _cell(*overrides, precision="fp32"):
    model = Model(name="toy", overrides=("recipe=toy", "device=cpu", *overrides))
    return Cell(model=model, precision=precision, strategy="ddp", processes=1)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Words enough for a vocabulary of 300."""
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghijklmnop", k=6)) for _ in range(4000)]
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("\n\n".join(" ".join(words[start : start + 200]) for start in range(0, 4000, 200)))
    return path


def _bert(text, *overrides):
    small = ("recipe=bert", "device=cpu", f"data.path={text}", "data.vocab_size=300", "recipe.model.num_layers=2")
    return Cell(model=Model(name="bert", overrides=small + overrides), precision="fp32", strategy="ddp", processes=1)


def test_the_flops_of_a_network_by_hand():
    forward = 2 * 4 * 16 + 2 * 16 * 1
    backward = 2 * 4 * 16 + 2 * (2 * 16 * 1)  # nothing needs the gradient of the input
    found = count_flops(with_batch_size(config_of_count(_cell(), USER), 8))
    assert found == {"flops_per_sample": forward + backward, "batch_size": 8, "stage": None}


def test_flops_do_not_depend_on_what_is_computed_twice(text):
    config = with_batch_size(config_of_count(_bert(text, "activation_checkpointing=[Layer]")), 2)
    assert count_flops(config)["flops_per_sample"] == _flops_of_bert()


def _flops_of_bert():
    """Of conf/recipe/bert.yaml with 2 layers, 64 tokens of which a quarter is masked, and 300 words."""
    width, inner, layers, tokens, masked = 128, 512, 2, 64, 16
    matrices = layers * (4 * width**2 + 2 * width * inner)
    attention = layers * 2 * tokens * width  # products of queries and keys, and of weights and values
    head = width**2 + 320 * width  # the vocabulary, padded to a multiple of 64
    return 6 * (tokens * (matrices + attention) + masked * head)


def test_a_gradient_of_a_gradient_is_counted():
    x = torch.ones(2, 3, requires_grad=True)
    weight = torch.ones(3, 5, requires_grad=True)
    with FlopCounter() as counter:
        (gradient,) = torch.autograd.grad((x @ weight).sum(), x, create_graph=True)
        gradient.square().sum().backward()
    assert counter.total == 3 * 2 * 2 * 3 * 5  # the product, its gradient, and that of the gradient


def test_steps_are_counted_and_timed():
    found = measure_steps(config_of(_cell("recipe.num_steps=9"), USER), Length(steps=3, warmup=2, repeats=2))
    assert [repeat["samples"] for repeat in found["repeats"]] == [24, 24]
    assert all(0 < repeat["seconds"] < 60 and "joules" not in repeat for repeat in found["repeats"])
    assert found["batch_size"] == 8 and found["energy"].startswith("there is no GPU")
    assert 0 <= found["other_cores"] < 1 + (os.cpu_count() or 1)
    assert found["memory"] == ON_HOST and 1e8 < found["peak_memory_bytes"] < 1e11


def test_a_run_that_is_too_short_says_so():
    class Short:
        length_key = "recipe.num_steps"

        def stages(self):
            return {}

        def batches(self, start):
            return iter("ab")

    recipe: Any = Short()
    with pytest.raises(
        ConfigError, match=r"ends after 2 steps, and 7 are .* \(recipe.num_steps\), or give fewer --steps"
    ):
        list(steps.limited(recipe, 7))
    assert len(list(steps.limited(recipe, 2))) == 2


def test_joules_of_all_ranks_are_in_a_repeat(monkeypatch):
    counter = iter(range(0, 1000, 5))
    monkeypatch.setattr(EnergyMeter, "joules", lambda meter: float(next(counter)))
    found = measure_steps(config_of(_cell(), USER), Length(steps=1, warmup=1, repeats=2))
    assert [repeat["joules"] for repeat in found["repeats"]] == [5, 5]


def test_tokens_of_text_and_images_of_the_last_stage(text):
    found = measure_steps(with_batch_size(config_of(_bert(text)), 2), Length(steps=2, warmup=1, repeats=1))
    assert found["repeats"][0]["tokens"] == 2 * 2 * 64
    gan = Model(name="gan", overrides=("experiment=glyphs", "device=cpu"))
    gan_config = config_of(Cell(model=gan, precision="fp32", strategy="ddp", processes=1))
    found = measure_steps(with_batch_size(gan_config, 4), Length(steps=1, warmup=1, repeats=1))
    assert found["stage"] == "16x16" and found["repeats"][0]["images"] == 4


def test_tokens_leave_padding_out():
    tokens = torch.tensor([[5, 6, 0], [7, 0, 0]])
    batch = Batch(data={"tokens": tokens}, position=0, size=2, positions=torch.arange(2), indices=torch.arange(2))
    assert contents(batch, 0) == {"tokens": 3} and contents(batch, None) == {"tokens": 6}


def test_the_peak_is_the_fastest_product(monkeypatch):
    monkeypatch.setattr(peak, "SECONDS", 0.05)
    found = measure_peak(Precision(name="bf16"), CPU, sizes=(32, 256))
    assert found["size"] == 256 and found["dtype"] == "bfloat16" and 1e6 < found["flops_per_s"] < 1e15
    monkeypatch.setitem(peak.PRODUCTS, "mm", lambda a, b: time.sleep(0.02))
    slow = measure_peak(Precision(name="fp32"), CPU, sizes=(32,))
    assert slow["by"] == "bmm"
    monkeypatch.setitem(peak.PRODUCTS, "bmm", lambda a, b: time.sleep(0.1))
    slow = measure_peak(Precision(name="fp32"), CPU, sizes=(32,))
    assert slow["by"] == "mm" and slow["flops_per_s"] <= 2 * 32**3 / 0.02, "a product and a sum for each element"
    with pytest.raises(ConfigError, match="precision=tf32: the CPU cannot"):
        measure_peak(Precision(name="tf32"), CPU, sizes=(32,))


@pytest.mark.parametrize("start", [1, 8, 64])
@pytest.mark.parametrize("most", [1, 3, 27, 100])
def test_the_largest_batch_is_found(start, most):
    tried = []

    def is_fitting(num):
        tried.append(num)
        return num <= most

    found = largest_that_fits(is_fitting, start)
    assert found <= most < found + max(1, 2 ** math.floor(math.log2(most)) / 4) * 1.01
    assert len(tried) == len(set(tried)) < 14
    with pytest.raises(TooLittleMemoryError, match="one sample"):
        largest_that_fits(lambda num: False, start)


def test_a_batch_is_searched_within_a_limit(text):
    config = with_batch_size(config_of(_bert(text)), 4)
    few, many = (find_batch_size(config, limit=limit)["batch_size"] for limit in (20_000_000, 40_000_000))
    assert 1 <= few < many
    with pytest.raises(TooLittleMemoryError):
        find_batch_size(config, limit=1_000_000)


class _Nvml:
    """A counter that goes up by 1500 mJ with each reading."""

    class NVMLError(Exception):
        pass

    def __init__(self, has_counter=True):
        self.asked, self.reading, self._has_counter = None, 0, has_counter

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, name):
        self.asked = name
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        assert handle == "handle"
        if not self._has_counter:
            raise self.NVMLError("Not Supported")
        self.reading += 1500
        return self.reading


def test_joules_are_those_of_the_counter():
    gpu, nvml = torch.device("cuda", 0), _Nvml()
    meter = EnergyMeter(gpu, nvml=nvml, uuid="GPU-12")
    assert meter.reason is None and nvml.asked == b"GPU-12"
    assert meter.joules() == 3.0 and meter.joules() == 4.5
    old = EnergyMeter(gpu, nvml=_Nvml(has_counter=False), uuid="GPU-12")
    assert old.joules() is None and "no energy counter" in str(old.reason)
    assert EnergyMeter(CPU).joules() is None


def test_cores_of_other_programs(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    stat.write_text("cpu  1000 200 300 99999 7 10 20 30 5 5\ncpu0 1 1 1 1\n")
    times = iter([100.0, 110.0])
    monkeypatch.setattr("trainkit.benchmark.other_work.time.monotonic", lambda: next(times))
    work = OtherWork(stat)
    ticks = 18 * os.sysconf("SC_CLK_TCK")
    stat.write_text(f"cpu  {1000 + ticks} 200 300 199999 7 10 20 30 5 5\n")
    assert work.cores(own_s=8.0) == pytest.approx(1.0), "18 s of processors in 10 s, of which 8 are our own"
    monkeypatch.undo()
    assert OtherWork(tmp_path / "none").cores(0.0) is None


def test_the_peak_of_this_process_grows():
    before, kind = peak_memory(CPU)
    assert before is not None and kind == ON_HOST
    kept = torch.ones(before // 4)  # as much again: what was freed since the peak is less
    after, _ = peak_memory(CPU)
    assert after is not None and after > before and after > 4 * kept.numel()
