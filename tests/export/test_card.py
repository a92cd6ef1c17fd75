"""The model card: read by huggingface_hub, with the verdict first, and safe from what a run directory holds."""

import json
import re
import shutil
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.recipes.finetuning import reviews
from trainkit.cli.main import main
from trainkit.export import RunFacts, model_card
from trainkit.export.markdown import block, code, escaped

SMALL = [
    "recipe.model.hidden_size=16", "recipe.model.num_layers=1", "recipe.model.num_heads=2", "evaluate_every=null",
    "recipe.model.feed_forward_size=32", "device=cpu", "tracking=none", "recipe.batch_size=8", "recipe.num_steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    given = [f"data.path={reviews(folder / 'a.csv', 200)}", "data.vocab_size=150", f"run_dir={folder / 'a_run'}"]
    assert main(["train", "recipe=bert_finetune", *given, *SMALL]) == 0
    return folder / "a_run"


def test_hugging_face_reads_the_results(run):
    assert main(["card", str(run)]) == 0
    text = (run / "README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    card: Any = ModelCard(text, ignore_metadata_errors=False)
    found = {one.metric_type: one for one in card.data.eval_results}
    assert {name: one.metric_value for name, one in found.items()} == result["metrics"]
    one = found["held_out_accuracy"]
    assert (one.task_type, one.dataset_name, one.dataset_type) == ("text-classification", "a.csv", "a-csv")
    assert card.data.model_name == "a_run" and card.data.library_name == "trainkit" and card.data.license is None
    again = yaml.safe_load(card.data.to_yaml())
    assert again["model-index"] == yaml.safe_load(text.split("---")[1])["model-index"], "a round trip loses nothing"


def test_the_card_says_what_the_result_says(run):
    assert main(["card", str(run), "--output", str(run.parent / "card.md")]) == 0
    text, result = (run.parent / "card.md").read_text(), json.loads((run / "result.json").read_text())
    verdict = result["verdict"]["text"]
    body = text.split("---", 2)[2].strip().splitlines()
    assert body[0] == "# a\\_run" and body[2] == f"**{escaped(verdict[:1].upper() + verdict[1:])}.**"
    low, high = result["intervals"]["held_out_accuracy"]
    assert f"| {low:.4g} to {high:.4g} |" in text and "majority class" in text
    assert escaped(result["audit"]["line"]) in text
    for part in ("TODO", "No license is stated", "| ranks | 1 |", "| strategy | ddp |", "fingerprint of held\\_out"):
        assert part in text, part
    assert f"trainkit evaluate {run.name}" in text and str(run.parent) not in text, "no path of this machine"
    assert [*run.parent.glob(".*")] == []


def test_what_a_manifest_knows_is_shown(run, tmp_path):
    copy = tmp_path / "a_run"
    shutil.copytree(run, copy)
    known = {"run": {}, "code": {"commit": "abc|1"}, "environment": {"python": "3.11.9"}}
    (copy / "manifest.json").write_text(json.dumps(known))
    assert main(["card", str(copy)]) == 0
    text = (copy / "README.md").read_text()
    assert "| code: commit | abc\\|1 |" in text and "| environment: python | 3.11.9 |" in text
    assert "`trainkit reproduce`" in text
    (copy / "manifest.json").write_text("{")
    assert main(["card", str(copy)]) == 2


def test_what_cannot_be_written_is_one_error(run, tmp_path, capsys):
    assert main(["card", str(tmp_path)]) == 2
    assert main(["card", str(run), "--output", str(tmp_path)]) == 2
    assert f"--output={tmp_path} is a directory: give a file" in capsys.readouterr().err
    assert main(["card", str(run), "--output", str(tmp_path / "none" / "a.md")]) == 2
    assert f"--output={tmp_path}/none/a.md cannot be written" in capsys.readouterr().err


def test_text_of_a_run_formats_nothing():
    hostile = "x`|**b** <script>alert(1)</script>\n# head [a](http://b)"
    facts = RunFacts(
        name=hostile, step=1, position=2, metrics={hostile: 0.5}, baselines={hostile: {hostile: 0.1}},
        data={hostile: hostile}, config={"data": {"path": "a/```\n---\n# x"}}, audit=hostile,
    )  # fmt: skip
    text = model_card(facts, title=hostile, text="", tags=["a"])
    card: Any = ModelCard(text)
    body = card.text
    assert "<script>" not in body and "\n# head" not in body and not re.search(r"(?<!\\)\[a\]", body)
    assert card.data.model_name == " ".join(hostile.split())
    assert "````yaml" in body
    assert code("a``b") == "``` a``b ```" and block("```").startswith("````\n")
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3, 4}


def test_a_value_that_is_not_finite_is_in_no_index():
    facts = RunFacts(name="a", step=1, position=2, metrics={"loss": float("nan"), "accuracy": 0.5})
    text = model_card(facts, title="a", text="", tags=[])
    card: Any = ModelCard(text)
    assert [one.metric_type for one in card.data.eval_results] == ["accuracy"]
    assert "model-index" not in model_card(RunFacts(name="a", step=1, position=2), title="a", text="", tags=[])
