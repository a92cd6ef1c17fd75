"""`trainkit topo advise`: the verdict first, changes sorted by what they save, prices only from the user."""

import json
import re

import pytest

from trainkit.cli.main import main
from trainkit.topology.presets import preset


def _run(capsys, *arguments):
    code = main(["topo", "advise", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_verdict_comes_first(capsys):
    code, out, _ = _run(capsys, "--gpus", "8xL40S")
    title, _, verdict = out.splitlines()[:3]
    assert code == 0 and title.startswith("bert-large on 8x L40S, bf16, ddp, 64 samples a card")
    assert re.match(r"(Links decide|Faster links|NVLink)", verdict)
    shares = [float(share) for share in re.findall(r"^ *([+-]?\d[\d.]*) %  ", out, re.MULTILINE) if share[0] in "+-"]
    assert len(shares) > 4 and shares == sorted(shares)
    assert "next:" in out and "topo bench" in out


def test_published_figures_stand_beside_predicted_ones(capsys):
    _, out, _ = _run(capsys, "--gpus", "4x3090")
    assert re.search(r"2 x RTX 3090, fp16, 384 tokens: 86 % \(Lambda\); predicted \d+ % to \d+ %", out)
    assert "Lambda published 52 sequences" in out
    assert "Published" not in _run(capsys, "--gpus", "4x3090", "--recipe", "progressive_gan-64")[1]


def test_json_holds_all_that_is_said(capsys):
    code, out, _ = _run(capsys, "--gpus", "4x3090", "--strategy", "fsdp", "--tflops", 40, "--json")
    found = json.loads(out)
    assert code == 0 and found["num_devices"] == 4 and found["tflops"] == 40 and found["tflops_from"] == "--tflops"
    assert found["step_us"] == pytest.approx(found["compute_us"] + found["exposed_us"])
    assert {"what", "kind", "gain", "how", "effort"} == set(found["changes"][0])
    assert [point["num_devices"] for point in found["scaling"]["as it is"]] == [1, 2, 4]
    assert found["verdict"] and found["published"] and found["options"] == []


def test_a_budget_without_a_machine_takes_the_fastest(capsys):
    code, out, _ = _run(capsys, "--budget", 3100, "--price", "3090=700", "--price", "bridge=150", "--json")
    found = json.loads(out)
    names = [option["machine"] for option in found["options"]]
    assert code == 0 and found["machine"] == names[0] and len(found["options"]) == 6
    assert {option["usd"] for option in found["options"]} == {700, 1400, 1550, 2100, 2800, 3100}
    _, out, _ = _run(capsys, "--budget", 3100, "--price", "3090=700", "--gpus", "2x3090")
    assert out.startswith("bert-large on 2x GeForce RTX 3090,") and "within the budget" in out and "2,800" in out


def test_presets_and_files_are_machines_too(capsys, tmp_path):
    assert main(["topo", "show", "--preset", "pcie-8", "--json"]) == 0
    (tmp_path / "links.json").write_text(capsys.readouterr().out)
    _, of_preset, _ = _run(capsys, "--preset", "pcie-8", "--nodes", 2, "--ranks-per-host", 4, "--json")
    _, of_file, _ = _run(capsys, "--topology", tmp_path / "links.json", "--nodes", 2, "--ranks-per-host", 4, "--json")
    assert json.loads(of_preset) == json.loads(of_file)
    assert json.loads(of_file)["num_devices"] == 8


def test_the_picture_names_both_kinds_of_links(capsys, tmp_path):
    code, _, err = _run(capsys, "--gpus", "4x3090", "--output", tmp_path / "scaling.svg")
    drawn = (tmp_path / "scaling.svg").read_text()
    assert code == 0 and "drawn into" in err
    assert "with NVLink bridges" in drawn and "as it is" in drawn and "bert-large on 4x GeForce RTX 3090" in drawn


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "this machine has no GPU: give --gpus 4x3090, --preset NAME or --topology FILE"),
        (["--gpus", "4x3900"], "Did you mean '3090'?"),
        (["--gpus", "2x3090", "--preset", "dgx-1"], "--gpus and --preset: give only one of them"),
        (["--gpus", "2x3090", "--nodes", "2"], "say which network"),
        (["--gpus", "2x3090", "--ranks-per-host", "1"], "leave out --ranks-per-host"),
        (["--gpus", "2x3090", "--strategy", "fdsp"], "Did you mean 'fsdp'?"),
        (["--gpus", "2x3090", "--recipe", "bert-larg"], "Did you mean 'bert-large'?"),
        (["--gpus", "2x3090", "--samples", "0"], "--samples=0: must be a number above 0"),
        (["--gpus", "2x3090", "--tflops", "nan"], "--tflops=nan: must be a number above 0"),
        (["--gpus", "2x3090", "--wire-dtype", "fp8"], "--wire-dtype=fp8: must be one of exact"),
        (["--gpus", "2x3090", "--output", "x.jpg"], "--output=x.jpg: must end in .svg"),
        (["--gpus", "2x3090", "--output", "nowhere/x.svg"], "--output=nowhere/x.svg cannot be written"),
        (["--gpus", "2x3090", "--price", "3090=1"], "needs --budget=USD"),
        (["--gpus", "2x3090", "--budget", "1000"], "needs the price of a card, which trainkit does not know"),
        (["--budget", "1000", "--price", "3090=2000"], "buys none of these cards"),
        (["--budget", "1000", "--price", "3090=700", "--tflops", "9"], "each card has its own speed"),
        (["--preset", "dgx-1"], "--precision=bf16: known for Tesla V100"),
        (["--preset", "dgx-h100", "--nodes", "1..4"], "--nodes=1..4: must be one number"),
    ],
)
def test_errors_are_one_line(capsys, monkeypatch, arguments, says):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = _run(capsys, *arguments)
    assert code == 2 and says in err and err.count("\n") == 1 and err.startswith("trainkit: error: ")


def test_what_is_wrong_with_a_machine_is_said_too(capsys, tmp_path):
    slow = preset("pcie-8").to_dict()
    slow["hosts"][0]["facts"]["environment"] = {"NCCL_P2P_DISABLE": "1"}
    (tmp_path / "links.json").write_text(json.dumps(slow))
    _, out, _ = _run(capsys, "--topology", tmp_path / "links.json")
    assert "warning: NCCL_P2P_DISABLE" in out and "unset NCCL_P2P_DISABLE" in out
    _, out, _ = _run(capsys, "--topology", tmp_path / "links.json", "--json")
    assert [finding["subject"] for finding in json.loads(out)["findings"]] == ["NCCL_P2P_DISABLE"]
