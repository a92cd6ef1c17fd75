"""`trainkit plan`: memory against a count of the whole batch, times against the FLOPs, and what pays off."""

import json
from dataclasses import replace

import pytest
import torch

from trainkit.cli.main import main
from trainkit.config import compose_unresolved
from trainkit.distributed.cluster import Cluster
from trainkit.errors import ConfigError
from trainkit.forecast.forecast import forecast, memory_of, worthwhile
from trainkit.forecast.measured import _ALONE, _peak, measure
from trainkit.memory.memory import Memory
from trainkit.strategy import FSDP, HSDP, Zero3
from trainkit.topology.presets import preset
from trainkit.topology.topology import Device

BERT = [
    *("recipe=bert", "recipe.model.num_layers=1", "data.vocab_size=1024", "data.sequence_length=64"),
    *("recipe.batch_size=48", "recipe.num_steps=200", "precision=bf16"),
]


@pytest.fixture(scope="module")
def measured():
    return measure(BERT)


def test_memory_is_that_of_the_whole_batch(measured):
    """Counted with 4 and 8 samples; the oracle is a step of all 48."""
    alone = sum(sizes.held() for sizes in measured.engines.values())
    predicted = alone + measured.bytes_beside + measured.bytes_per_sample * measured.batch_size
    counted = _peak(compose_unresolved([*BERT, *_ALONE, "precision=bf16"]), measured.batch_size)
    assert predicted == pytest.approx(counted, rel=0.05)
    assert measured.bytes_per_sample * measured.batch_size > 0.5 * counted  # or the test shows nothing


def test_the_global_batch_is_shared_out(measured):
    node = preset("workstation-2", 1)
    found = forecast(measured, node, [1, 2, 4, 64], tflops=1e-3)
    assert [(one.num_ranks, one.num_samples) for one in found] == [(2, 24), (4, 12), (8, 6)]
    for one in found:
        assert one.step.compute_us == pytest.approx(measured.flops_per_sample * one.num_samples / 1e-3 / 1e6)
        assert one.samples_per_s == pytest.approx(48 / one.step.step_us * 1e6)
        assert one.run_s == pytest.approx(200 * one.step.step_us / 1e6)
        assert one.beside == pytest.approx(measured.bytes_beside + measured.bytes_per_sample * one.num_samples, abs=1)
    assert found[-1].samples_per_s / found[0].samples_per_s == pytest.approx(4, rel=0.01)  # computation is all
    assert worthwhile(found) is found[-1]


def test_micro_batches_hold_fewer_samples(measured):
    whole, parts = (
        forecast(replace(measured, num_micro_batches=num), preset("workstation-2", 1), [1], tflops=1.0)[0]
        for num in (1, 5)
    )
    assert whole.num_samples == parts.num_samples == 24 and parts.num_micro_batches == 5
    assert whole.beside - parts.beside == pytest.approx(measured.bytes_per_sample * (24 - 5), abs=1)
    assert parts.step == whole.step


def test_sharding_divides_what_is_held_and_sends_more(measured):
    node = preset("workstation-2", 1)
    plain = forecast(measured, node, [2], tflops=1.0)[0]
    sharded = forecast(replace(measured, strategy=FSDP()), node, [2], tflops=1.0)[0]
    num = measured.num_parameters
    assert plain.state == Memory(parameters=4 * num, gradients=4 * num, optimizer=8 * num)
    assert sharded.state == Memory(parameters=num, gradients=num, optimizer=2 * num)
    assert sharded.step.communication_us == pytest.approx(1.5 * plain.step.communication_us)
    assert [s.traffic for s in (FSDP(reshard_after_forward=False), HSDP(), Zero3())] == [1.0, 1.0, 1.5]


def test_hosts_that_bring_little_do_not_pay_off(measured):
    one, two, four = forecast(measured, preset("workstation-2", 1), [1, 2, 4], tflops=1.0)

    def at(rate, of):
        return replace(of, samples_per_s=rate)

    assert worthwhile([at(100.0, one), at(151.0, two), at(200.0, four)]).num_hosts == 2
    assert worthwhile([at(100.0, one), at(149.0, two), at(400.0, four)]).num_hosts == 1


def test_devices_say_what_they_hold():
    names = (
        "NVIDIA H100 80GB HBM3",
        "NVIDIA GeForce RTX 4090",
        "NVIDIA H900 96GB",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    )
    held = [memory_of(Device(id="gpu0", name=name)) for name in names]
    assert held == [80 * 10**9, 24 * 10**9, 96 * 10**9, None]


@pytest.mark.parametrize(
    ("overrides", "cluster", "message"),
    [
        (["recipe=bert", "recipe.batch_siz=3"], None, "recipe.batch_siz"),
        (["recipe=bert", "strategy=single"], Cluster(world_size=2, local_world_size=2), "strategy=single"),
        (["recipe=bert", "recipe.batch_size=4"], Cluster(world_size=8, local_world_size=8), "recipe.batch_size=4"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_counted(overrides, cluster, message):
    said: list[str] = []
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        measure(overrides, cluster=cluster, report=said.append)
    assert not said


def test_the_command_says_what_fits_and_what_pays_off(measured, monkeypatch, capsys):
    monkeypatch.setattr("trainkit.forecast.measured.measure", lambda *_, **__: measured)
    place = ["plan", "--preset", "dgx-h100", "--nodes", "1,2,64"]
    assert main([*place, "--memory", "8MB", *BERT]) == 0
    said = capsys.readouterr().out
    assert "pays off up to 1 host; beyond" in said and "a device has 8.0 MB" in said
    assert "from 64 hosts on there are more ranks than samples in recipe.batch_size=48" in said
    assert main([*place, "--json", *BERT]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["device_bytes"] == 80 * 10**9 and [row["num_ranks"] for row in facts["hosts"]] == [8, 16]
    assert main(["plan", "--tflops", "-1", *BERT]) == 2
    assert "--tflops=-1.0: must be above 0" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["plan", *BERT]) == 2
        assert "give --tflops" in capsys.readouterr().err
