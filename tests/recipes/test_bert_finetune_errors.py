"""What recipe=bert_finetune and its data refuse, in one line that says where and what to do."""

import json
import re
from dataclasses import replace

import pytest

from tests.recipes.finetuning import SHAPE, make, questions, reviews
from trainkit.data import Example, Examples
from trainkit.errors import ConfigError, DataError, TrainkitError
from trainkit_recipes.bert.finetuning.answers import answers_of

HEADER = "text,label\n"
BODY = "a fine film,good\na dull film,bad\n" * 4


def load(folder, content, name="a.csv", **settings):
    (folder / name).write_text(content)
    return Examples(path=folder / name, **settings).load()


@pytest.mark.parametrize(
    ("content", "name", "settings", "says"),
    [
        ("review,label\na,b\n", "a.csv", {"text": "reviews"},
         r"a\.csv, line 2: no column 'reviews', found 'review', 'label'; set data\.text=NAME\. Did you mean 'review'"),
        ("text,stars\na,b\n", "a.csv", {}, r"no column 'label', found 'text', 'stars'; set data\.label=NAME"),
        (HEADER + "fine,good\n  ,bad\n", "a.csv", {}, r"a\.csv, line 3: column 'text' holds no text; remove the row"),
        (HEADER + "fine\n", "a.csv", {}, r"line 2: 1 cells under a header of 2; .*data\.quotes=false"),
        ('text\tlabel\n"fine\tgood\n', "a.tsv", {}, r"a\.tsv, line \d: not a table .*set data\.quotes=false"),
        ("{\n", "a.jsonl", {}, r"a\.jsonl, line 1: not a JSON object"),
        ('{"text": 3, "label": 1}', "a.jsonl", {}, r"line 1: column 'text' holds int, not text"),
        ("Anna\n", "a.conll", {}, r"a\.conll, line 1: one column, 'Anna'"),
        ('{"data": [{}]}', "a.json", {}, r"a\.json is not a SQuAD file .*'paragraphs'"),
        ("x", "a.pdf", {}, r"a\.pdf is a \.pdf file; it takes \.csv"),
        (HEADER + "same,good\n" * 4, "a.csv", {}, r"1 different texts, too few to hold one out"),
        ("text,label,part\nfine,good,trian\n", "a.csv", {"split": "part"},
         r"line 2: data\.split=part is 'trian'; it must be train"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_read(tmp_path, content, name, settings, says):
    with pytest.raises(DataError, match=says):
        load(tmp_path, content, name, **settings)


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"data\.path is not set: give \.csv"):
        Examples().load()
    with pytest.raises(DataError, match=r"nowhere\.csv does not exist; set data\.path"):
        Examples(path=tmp_path / "nowhere.csv")


def refused(folder, content, task="classification", held_out=None, name="b.csv", data=None, **settings):
    """The error of a recipe on a file of its own, with all other data for evaluation."""
    (folder / name).write_text(content)
    (folder / f"held_{name}").write_text(held_out or content)
    paths = {"path": folder / name, "held_out_path": folder / f"held_{name}", "pair": None, "label": "label"}
    with pytest.raises(TrainkitError) as raised:
        make(folder, task, data={**paths, **(data or {})}, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_labels_that_cannot_be_learnt(tmp_path):
    said = refused(tmp_path, HEADER + BODY, held_out=HEADER + "a plot,godo\n")
    assert re.search(r"held_b\.csv, line 2: label 'godo' is not one of the 2 classes, bad, good; .*mean 'good'", said)
    said = refused(tmp_path, HEADER + BODY, classes=("bad", "good", "great"))
    assert said.startswith("class 'great' of recipe.classes has no training example")
    assert "have 1 class (good); a classification needs 2" in refused(tmp_path, HEADER + "a,good\n" * 3)
    assert re.search(r"b\.csv, line 3: no label; give it one", refused(tmp_path, HEADER + "a,good\nb,\n"))
    said = refused(tmp_path, HEADER + BODY, class_weights={"good": 1.0, "bda": 2.0})
    assert "recipe.class_weights names good, bda; it must name every class once: bad, good." in said


@pytest.mark.parametrize("target", ["nan", "inf", "", "many"])
def test_targets_that_are_no_numbers(tmp_path, target):
    said = refused(tmp_path, f"{HEADER}fine,1\ndull,{target}\n", task="regression")
    assert re.search(rf"b\.csv, line 3: the target is '{target}', not a finite number; correct or remove", said)
    assert "all training targets are 1, so there is nothing to learn" in refused(
        tmp_path, HEADER + "fine,1\ndull,1\n", task="regression"
    )


def test_other_examples_that_a_task_cannot_use(tmp_path):
    rows = [{"text": "a b", "label": "O B-X O"}]
    said = refused(tmp_path, json.dumps(rows[0]), task="token_classification", name="b.jsonl")
    assert "b.jsonl, line 1: 3 tags for 2 words" in said
    questions(tmp_path / "a.json")
    content = (tmp_path / "a.json").read_text().replace('"answer_start": ', '"answer_start": 1')
    said = refused(tmp_path, content, task="question_answering", name="b.json")
    assert re.search(r"b\.json, question q1: the answer 'Paris1' is not at character 1\d* of the context", said)
    said = refused(tmp_path, HEADER + "a,1\n", task="sentence_embeddings", positive_from=None)
    assert "training pairs have scores: set recipe.positive_from" in said
    assert "no second text; set data.pair=COLUMN" in refused(tmp_path, HEADER + "a,4\n", task="sentence_embeddings")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_length": 65}, r"recipe\.max_length=65: must be 8 to 64, the length that the model takes"),
        ({"num_layers_frozen": 3}, r"recipe\.num_layers_frozen=3: must be 0 to 2"),
        ({"num_steps": 3, "num_epochs": 2.0}, r"num_steps=3 and recipe\.num_epochs=2 are two lengths"),
        ({"layer_decay": 0.0}, r"recipe\.layer_decay=0\.0: must be a number above 0"),
        ({"model": None}, r"recipe\.weights=null trains from scratch, which needs a recipe\.model"),
        (
            {"positive_from": 3.0},
            r"positive_from=3\.0 is of recipe\.task=sentence_embeddings, and this is classification",
        ),
        ({"stride": 8}, r"recipe\.stride=8 is of recipe\.task=question_answering, and this is classification"),
        ({"temperature": 0.1}, r"recipe\.temperature=0\.1 is of recipe\.task=sentence_embeddings"),
        (
            {"unfreeze_every": 2},
            r"unfreeze_every=2 with recipe\.num_layers_frozen=0: nothing is frozen; set num_layers",
        ),
        ({"weights": "/nowhere"}, r"recipe\.weights=/nowhere does not exist: give a run directory"),
    ],
)
def test_settings_that_do_not_match(tmp_path, settings, says):
    with pytest.raises(TrainkitError, match=says):
        make(tmp_path, "classification", **settings)


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_a_pooling_of_tokens_that_are_not_pooled(tmp_path, task):
    with pytest.raises(
        ConfigError, match=rf"pooling=mean is of .*task=classification or .*, and this is {task}: leave"
    ):
        make(tmp_path, task, pooling="mean")


def test_groups_that_would_be_divided(tmp_path):
    with pytest.raises(ConfigError, match=r"group_size=2: .*batch_size=8 a multiple of group_size x 3 .* as 6"):
        make(tmp_path, "sentence_embeddings", grad_accumulation_steps=3)


def test_a_window_without_room(tmp_path):
    with pytest.raises(ConfigError, match=r"max_length=20 leaves 1\d tokens for the context .*recipe\.stride=16"):
        make(tmp_path, "question_answering", max_length=20)


def test_long_texts_are_cut_and_counted(tmp_path):
    reviews(tmp_path / "a.csv")
    facts = make(tmp_path, "classification", max_length=16).datasets.facts
    assert re.fullmatch(r"\d\d of 70", facts["texts cut to recipe.max_length=16"])
    assert make(tmp_path, "classification", model=SHAPE).datasets.facts == {}


def test_long_questions_and_answers_are_counted(tmp_path):
    content = json.loads(questions(tmp_path / "a.json").read_text())
    first, second = (article for article in content["data"][0]["paragraphs"][1:3])
    first["qas"][0]["question"] = "Which city? " * 40
    second["context"] = " ".join([second["context"]] * 2)
    second["qas"][0]["answers"] = [{"text": second["context"], "answer_start": 0}]
    (tmp_path / "b.json").write_text(json.dumps(content))
    data = {"path": tmp_path / "b.json", "held_out_path": tmp_path / "a.json"}
    shape = replace(SHAPE, max_length=100)
    facts = make(tmp_path, "question_answering", data=data, model=shape, max_length=None).datasets.facts
    assert facts["questions cut to 64 tokens"] == "1 of 48"
    assert facts["answers that no window holds whole"] == "1 of 32"


def test_texts_without_a_token(tmp_path):
    content = questions(tmp_path / "a.json").read_text()
    paragraphs = json.loads(content)["data"][0]["paragraphs"]
    blank = content.replace(json.dumps(paragraphs[0]["context"]), '" \\u200b "')
    said = refused(tmp_path, blank, task="question_answering", name="b.json", held_out=content)
    assert said.endswith("b.json, question q0: the context has no token of the vocabulary; remove the row")


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ([{"text": "b", "answer_start": 2}], [("b", 2)]),
        ({"text": ["b"], "answer_start": [2]}, [("b", 2)]),
        ([["b", 2]], [("b", 2)]),
        ([], []),
        ({"text": ["b"], "answer_start": []}, None),
        ({"text": "b", "answer_start": 2}, None),
        (["b"], None),
        ([("b", None)], None),
        ("b", None),
    ],
)
def test_answers_in_every_form(label, found):
    example = Example.given("which?", "a b c", label)
    if found is not None:
        assert answers_of(example) == found
    else:
        with pytest.raises(DataError, match=r"line 1: the answers must be a list of texts with their answer_start"):
            answers_of(example)
