"""What a BERT says about texts, beside the model called on one window at a time; and the rules that ask it."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.data.curate.corpora import read_rows, write_rows
from trainkit import Runtime, Schedule
from trainkit.cli.main import main
from trainkit.data import Text
from trainkit_recipes.bert.data import IGNORED
from trainkit_recipes.bert.model import TINY
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling
from trainkit_recipes.bert.text_model import MIN_MASKED, Window

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@pytest.fixture(scope="module")
def texts():
    draw = np.random.default_rng(0)
    lengths = [1, 3, 10, 40, 200, 2000, *draw.integers(2, 60, 20).tolist()]
    return [" ".join(draw.choice(WORDS, length)) for length in lengths]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, texts):
    path = write_rows(tmp_path_factory.mktemp("bert") / "a.jsonl", texts)
    made = MaskedLanguageModelling(
        Runtime(seed=3),
        data=Text(path=path, vocab_size=120, sequence_length=24, held_out=0.1),
        model=TINY,
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=Schedule(warmup=1, total=20),
        num_steps=2,
        batch_size=2,
    )
    yield made
    made.runtime.close()


def test_losses_are_those_of_single_windows(recipe, texts):
    model = recipe.text_model()
    found = model.losses(texts)
    windows, owners = model._windows(texts, repeated=True)
    recipe.model.module.eval()
    for number in range(len(texts)):
        losses = []
        for window in (window for window, owner in zip(windows, owners, strict=True) if owner == number):
            masked = model._masked(window)
            with torch.no_grad():
                logits = recipe.model.module(masked.tokens_BT)[0]
            for place, label in zip(masked.chosen_BK[0].tolist(), masked.labels_BK[0].tolist(), strict=True):
                if label != IGNORED:
                    assert label == window.tokens[place]
                    losses.append(float(F.cross_entropy(logits[place][None].double(), torch.tensor([label]))))
        assert found[number] == pytest.approx(np.mean(losses), rel=1e-5)
        assert len(losses) >= min(MIN_MASKED, 6 * max(1, round(0.15 * len(texts[number].split()))))
    recipe.model.module.train()


def test_a_loss_is_a_function_of_the_text_alone(recipe, texts):
    model, state = recipe.text_model(), torch.get_rng_state()
    found = model.losses(texts)
    assert recipe.model.module.training and torch.equal(torch.get_rng_state(), state)
    np.testing.assert_allclose(model.losses(texts[::-1])[::-1], found, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([model.losses([text]) for text in texts]), found, rtol=1e-5)
    assert np.isnan(model.losses([""])).all() and len(model.losses([])) == 0


def test_other_tokens_are_masked_in_each_round(recipe):
    model = recipe.text_model()
    tokens = [recipe.tokenizer.start, *recipe.tokenizer.encode(" ".join(WORDS * 2)), recipe.tokenizer.end]
    chosen = {tuple(sorted(model._masked(Window(tokens, number)).chosen_BK[0].tolist())) for number in range(6)}
    assert len(chosen) > 3


def test_embeddings_are_means_of_hidden_states(recipe, texts):
    model = recipe.text_model()
    found = model.embeddings(texts)
    recipe.model.module.eval()
    for number, text in enumerate(texts):
        windows, _ = model._windows([text], repeated=False)
        with torch.no_grad():
            hidden = torch.cat([recipe.model.module.encoder(torch.tensor([one.tokens]))[0] for one in windows])
        np.testing.assert_allclose(found[number], hidden.double().mean(dim=0), rtol=1e-4, atol=1e-5)
    recipe.model.module.train()


def test_a_run_selects_by_its_loss(tmp_path, texts, capsys):
    source = write_rows(tmp_path / "texts" / "a.jsonl", texts)
    run = tmp_path / "run"
    keys = ["recipe=bert", f"data.path={source}", "data.vocab_size=120", "data.sequence_length=24", "tracking=none"]
    keys += ["recipe.model.num_layers=1", "recipe.model.hidden_size=16", "recipe.model.num_heads=2", "device=cpu"]
    keys += [
        "recipe.num_steps=2",
        "schedule.warmup=1",
        "recipe.batch_size=2",
        f"run_dir={run}",
        "data.held_out=0.1",
        "on_leak=ignore",
    ]
    assert main(["train", *keys]) == 0
    capsys.readouterr()
    rules = ["--loss-of", str(run), "--loss-between", "0.2", "0.7", "--diverse", "0.8", "--features", str(run)]
    assert main(["data", "select", str(source), "--to", str(tmp_path / "out"), *rules]) == 0
    selection = json.loads((tmp_path / "out" / "selection.json").read_text())
    from trainkit import load_recipe

    trained = load_recipe(run, with_data=False)
    assert isinstance(trained, MaskedLanguageModelling)
    losses = trained.text_model().losses(texts)
    trained.runtime.close()
    low, high = np.quantile(losses, [0.2, 0.7])
    assert selection["steps"][0]["low"] == pytest.approx(low, rel=1e-5)
    left = [text for text, loss in zip(texts, losses, strict=True) if low <= loss <= high]
    assert abs(selection["steps"][0]["after"] - len(left)) <= 1
    kept = [row["text"] for row in read_rows(tmp_path / "out")]
    assert {*kept} <= {*left} and len(kept) == round(0.8 * selection["steps"][0]["after"])


def test_a_run_that_reads_no_text_is_refused(tmp_path, texts, capsys):
    from tests.jobs import TOY

    source, run = write_rows(tmp_path / "a.jsonl", texts), tmp_path / "run"
    assert main(["train", *TOY, f"run_dir={run}"]) == 0
    rules = ["--loss-of", str(run), "--loss-between", "0.1", "0.9"]
    arguments = ["data", "select", str(source), "--dry-run", *rules]
    assert main(arguments) == 2 and "with --trust" in capsys.readouterr().err
    assert main([*arguments, "--trust"]) == 2 and "reads no text; give a BERT run" in capsys.readouterr().err
