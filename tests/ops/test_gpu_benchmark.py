"""benchmarks/gpu.py at toy size on the CPU, so that it works when a GPU is there."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, op_table, steps
from benchmarks.op_table import ENTRIES, Entry, Inputs
from benchmarks.op_timing import check, measure
from trainkit.ops.dropout import Dropout
from trainkit_recipes.bert.model import Architecture, MaskedLanguageModel


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(exit status, the results, the tables) of the command."""
    out = tmp_path_factory.mktemp("results")
    status = gpu.main(["--toy", "--out", str(out)])
    (file,) = out.glob("gpu-toy_*_20??-??-??.json")
    return status, json.loads(file.read_text()), file.with_suffix(".md").read_text()


def test_every_op_is_right_and_timed(done):
    status, found, _ = done
    of_kind = {kind: [r for r in found["results"] if r["kind"] == kind] for kind in ("check", "time", "copy")}
    present = [entry.name for entry in ENTRIES if not entry.absent]
    assert status == 0
    assert found["machine"]["sizes"] == "toy"
    assert found["machine"]["gpu"] is None
    for name in present:
        checks = [r for r in of_kind["check"] if r["op"] == name]
        assert {r["dtype"] for r in checks} == {"float64", "float32", "bfloat16", "float16"}
        assert all(r["holds"] for r in checks)
        (timed,) = (r for r in of_kind["time"] if r["op"] == name)
        assert timed["both"]["num_bytes"] > timed["forward"]["num_bytes"] > 0
        assert timed["both"]["us"].keys() == {"fused", "reference", "compiled"}
    assert of_kind["copy"][0]["gb_per_s"] > 0


def test_every_model_and_optimizer_is_timed_or_has_a_reason(done):
    _, found, _ = done
    timed = {
        (r["model"], r["precision"], r.get("dropout"), r["ops"])
        for r in found["results"]
        if r["kind"] == "step" and r["step_ms"] > 0
    }
    precisions, compared = ("fp32", "bf16"), "fp32"
    assert timed == {
        *(("bert-tiny", precision, 0.1, "fused") for precision in precisions),
        *(("bert-tiny", compared, 0.0, kernels) for kernels in gpu.KERNELS),
        *(("gan-8", precision, None, kernels) for precision in precisions for kernels in ("fused", "reference")),
    }
    optimizers = {r["optimizer"]: r for r in found["results"] if r["kind"] == "optimizer"}
    assert optimizers.keys() == steps.optimizers("cpu").keys()
    assert all(r.get("step_ms", 0) > 0 or r["skipped"] for r in optimizers.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, *gpu.LOW], ids=str)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_op_is_right_on_a_gpu(entry, dtype):
    with op_table.EveryOpFused():
        for size in ("toy", "check"):
            found = check(entry, size, dtype, "cuda")
            assert found["holds"], found


def test_the_tables_are_printed(done):
    _, found, tables = done
    assert "that it runs, not how fast" in tables
    for r in found["results"]:
        assert r["kind"] in ("check", "copy") or r.get("skipped", "") in tables or r.get("op", r.get("model")) in tables
    assert "| cross_entropy | float32 | [6, 101] |" in tables
    assert "| bert-tiny | 16 | 2 | bf16 | 0.1 | fused |" in tables


def test_a_wrong_op_is_found(monkeypatch, tmp_path, capsys):
    entry = next(entry for entry in ENTRIES if entry.name == "gather_rows")
    right = entry.fused
    monkeypatch.setattr(Entry, "fused", property(lambda self: lambda **inputs: 1.02 * right(**inputs)))
    found = check(entry, "toy", torch.float32, "cpu")
    assert not found["holds"]
    assert found["errors"]["forward"] == pytest.approx(0.02, rel=1e-3)
    assert gpu.main(["--toy", "--ops", "gather_rows", "--out", str(tmp_path)]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_what_cannot_be_compiled_is_named_the_rest_timed():
    entry = next(entry for entry in ENTRIES if entry.name == "gather_rows")

    def broken(graph, inputs):
        raise NotImplementedError("Scalar 3528531795 is out of range")

    found = measure(entry, "toy", torch.float32, "cpu", 2, broken)
    assert "Scalar 3528531795 is out of range" in found["failed"]["compiled"]
    assert found["both"]["us"].keys() == {"fused", "reference"}
    told = {"kind": "time", "op": "gather_rows", **found}
    for part in ("forward", "both"):
        told[part]["share_of_copy"] = 0.5
    assert "compiled failed" in gpu.line(told)
    assert "| failed |" in gpu.markdown(
        {"cpu": "a", "sizes": "toy", "torch": "2"}, [{"kind": "copy", "gb_per_s": 1.0}, told]
    )


def test_what_there_is_no_time_for_is_named():
    bench = gpu.Bench(**gpu.TOY)
    bench.until = 0.0
    gpu.models(bench)
    assert {r["skipped"] for r in bench.results} == {"no time was left"}


def test_an_op_of_another_checkout_is_skipped_a_renamed_one_not():
    entry = ENTRIES[0]
    fields = {name: getattr(entry, name) for name in ("name", "make", "sizes", "num_bytes")}
    assert Entry(function="nowhere:nothing", **fields).absent == "there is no trainkit.ops.nowhere"
    renamed = Entry(function="dropout:renamed", **fields)
    assert renamed.absent is None
    with pytest.raises(AttributeError, match="renamed"):
        _ = renamed.fused


def test_sizes_are_there_and_buffers_differ_in_storage_only():
    for entry in ENTRIES:
        assert entry.sizes.keys() == set(op_table.SIZES)
        first = Inputs(entry, "toy", torch.float32, "cpu")
        second = first.to()
        for name, x in first.differentiated.items():
            assert torch.equal(x, second.all[name])
            assert x.data_ptr() != second.all[name].data_ptr()


def test_flops_are_those_that_pytorch_counts():
    length, num_slots, batch, vocab_size = 24, 6, 3, 128
    model = Architecture(hidden_size=32, num_layers=2, num_heads=4, feed_forward_size=80, max_length=length)
    module = MaskedLanguageModel(model, vocab_size)
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.see(1, torch.arange(batch))
    with FlopCounterMode(display=False) as counted:
        chosen = torch.arange(num_slots).expand(batch, num_slots)
        module(torch.randint(vocab_size, (batch, length)), chosen).sum().backward()
    expected = steps.flops_per_token(model, vocab_size, length, num_slots / length) * batch * length
    assert counted.get_total_flops() == pytest.approx(expected, rel=1e-9)


def test_a_gpu_is_asked_for_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "use --toy or --cpu" in capsys.readouterr().err
