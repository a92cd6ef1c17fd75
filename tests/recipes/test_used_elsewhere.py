"""A trained run is used as a user does: in another place, without what it was trained on."""

import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainkit import checkpoint, load_recipe
from trainkit.cli.main import main
from trainkit.data import WordPiece
from trainkit.errors import CheckpointError, ConfigError
from trainkit_recipes.bert import fill
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling
from trainkit_recipes.progressive_gan import measure, sample

SHORT = ["ops=reference", "tracking=none", "schedule=constant", "evaluate_every=null", "save_every=null"]
BERT = [
    "recipe=bert",
    "recipe.batch_size=8",
    "recipe.num_steps=3",
    "recipe.model.hidden_size=16",
    "recipe.model.num_layers=1",
    "recipe.model.num_heads=2",
    "recipe.model.feed_forward_size=16",
    "data.held_out=0.1",
]
GAN = [
    "recipe=progressive_gan",
    "recipe.resolution=8",
    "recipe.fmap_base=16",
    "recipe.latent_dim=8",
    "recipe.batch_size={4: 8, 16: 4}",  # keys that are numbers must come back from a manifest
    "recipe.stable_images=8",
    "recipe.fade_images=8",
    "recipe.evaluation.num_directions=4",
    "recipe.evaluation.num_pairs=32",
    "data.held_out=0.2",
]


def write_texts(path: Path, *, extra: str = "") -> Path:
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    path.mkdir()
    documents = [extra + " ".join(draw.choices(words, k=draw.randint(5, 40))) for _ in range(120)]
    (path / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return path


def write_pictures(path: Path) -> Path:
    draw = np.random.default_rng(0)
    path.mkdir()
    for number in range(40):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(path / f"{number}.png")
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def move(tmp_path: Path, data: Path, cache: Path) -> tuple[Path, Path]:
    """The run and a bare checkpoint in another place; neither its data nor its cache are left."""
    shutil.rmtree(data)
    shutil.rmtree(cache)
    run = (tmp_path / "run").rename(tmp_path / "elsewhere")
    bare = shutil.copytree(checkpoint.find(run), tmp_path / "bare")
    return run, bare


def measured_on(data: Path) -> list[str]:
    return [f"data.path={data}"]


def test_sentences_are_filled_in_without_the_text(tmp_path, cache, capsys):
    texts = write_texts(tmp_path / "texts")
    assert (
        main(["train", *SHORT, *BERT, "data.vocab_size=120", f"data.path={texts}", f"run_dir={tmp_path / 'run'}"]) == 0
    )
    trained = load_recipe(tmp_path / "run")
    assert isinstance(trained, MaskedLanguageModelling)
    before = trained.fill("alpha [MASK] gamma")
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    run, bare = move(tmp_path, texts, cache)
    for place in (run, bare):
        assert fill.main([str(place), "alpha [MASK] gamma"]) == 0
        assert capsys.readouterr().out == f"{before}\n"
    assert not cache.exists()

    assert fill.main([str(run)]) == 2  # the report measures, and needs text
    assert f"data.path={texts} does not exist" in capsys.readouterr().err
    other = write_texts(tmp_path / "other", extra="another ")
    assert main(["evaluate", str(run), *measured_on(other)]) == 0
    printed = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
    recipe = load_recipe(run, measured_on(other))
    assert isinstance(recipe, MaskedLanguageModelling)
    stored = WordPiece.from_json(checkpoint.read_manifest(bare)["values"]["recipe"]["tokenizer"])
    assert recipe.tokenizer.fingerprint == stored.fingerprint
    held_out = recipe.datasets.held_out.__getitems__([0])["tokens"][0]
    assert recipe.tokenizer.decode(held_out.tolist()).startswith(
        "[CLS] [UNK] "
    )  # its letters are new to this vocabulary
    assert recipe.evaluate()["held_out_loss"] == pytest.approx(float(printed["held_out_loss"]), rel=1e-5)
    recipe.runtime.close()


def test_the_text_of_the_run_is_not_tokenised_again(tmp_path, cache):
    texts = write_texts(tmp_path / "texts")
    assert (
        main(["train", *SHORT, *BERT, "data.vocab_size=120", f"data.path={texts}", f"run_dir={tmp_path / 'run'}"]) == 0
    )
    built = sorted(cache.iterdir())
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert sorted(cache.iterdir()) == built


def test_a_run_from_hugging_face_weights_needs_them_once(tmp_path, cache, capsys):
    transformers = pytest.importorskip("transformers", reason="it writes such a directory")
    texts, theirs = write_texts(tmp_path / "texts"), tmp_path / "theirs"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Alpha", "alpha", "beta", "gamma"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), do_lower_case=False).save_pretrained(theirs)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=len(pieces), max_position_embeddings=64, **shape)
    transformers.BertForMaskedLM(config).save_pretrained(theirs)
    classic = ["positions=learned", "norm=post", "num_segments=2", "max_length=64"]
    arguments = [*SHORT, *BERT, *(f"recipe.model.{setting}" for setting in classic), f"recipe.weights={theirs}"]
    arguments += [f"data.vocab_file={theirs / 'tokenizer.json'}", f"data.path={texts}", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", *arguments]) == 0
    shutil.rmtree(theirs)
    run, _ = move(tmp_path, texts, cache)
    capsys.readouterr()
    assert fill.main([str(run), "Alpha [MASK] gamma"]) == 0
    assert capsys.readouterr().out.startswith("Alpha ")
    other = write_texts(tmp_path / "other")
    assert main(["evaluate", str(run), *measured_on(other), "data.vocab_file=null"]) == 0


def test_images_are_drawn_without_the_pictures(tmp_path, cache, capsys, monkeypatch):
    pictures = write_pictures(tmp_path / "pictures")
    assert main(["train", *SHORT, *GAN, f"data.path={pictures}", f"run_dir={tmp_path / 'run'}"]) == 0
    sample.sample(tmp_path / "run", num=5, output=tmp_path / "before.png")
    run, bare = move(tmp_path, pictures, cache)
    for place in (run, bare):
        given = ["sample", str(place), "--num", "5", "--output", str(tmp_path / "after.png")]
        monkeypatch.setattr(sys, "argv", given)
        assert sample.main() == 0
        assert (tmp_path / "after.png").read_bytes() == (tmp_path / "before.png").read_bytes()
    assert not cache.exists()
    other = write_pictures(tmp_path / "other")
    capsys.readouterr()
    assert main(["evaluate", str(run), *measured_on(other)]) == 0
    verdict, swd, *_ = capsys.readouterr().out.splitlines()
    assert verdict.startswith("the model ") and swd.startswith("swd ") and "untrained generator" in swd
    assert measure.main([str(run), "--data", str(other), "--metrics", "swd", "copying"]) == 0
    assert "images of the generator" in capsys.readouterr().out


def test_a_recipe_that_cannot_do_without_its_data_gets_them(tmp_path, cache):
    """A checkpoint from before tokenizers were stored, whose `state` has only the vocabulary's sum."""
    texts = write_texts(tmp_path / "texts")
    assert (
        main(["train", *SHORT, *BERT, "data.vocab_size=120", f"data.path={texts}", f"run_dir={tmp_path / 'run'}"]) == 0
    )
    recipe = load_recipe(tmp_path / "run", with_data=False)
    assert isinstance(recipe, MaskedLanguageModelling)
    assert len(recipe.datasets.train) == 0
    state = recipe.state_dict()
    old = {"vocabulary": state["vocabulary"]}
    assert type(recipe).restored_arguments(old, None) is None
    recipe.load_state_dict(old)
    with pytest.raises(CheckpointError, match="another vocabulary"):
        recipe.load_state_dict({"vocabulary": "other"})
    with pytest.raises(ConfigError, match="the data set is empty"):
        recipe.evaluate()
    recipe.runtime.close()


def test_a_resume_takes_the_vocabulary_of_the_checkpoint(tmp_path, cache, capsys):
    texts, run = write_texts(tmp_path / "texts"), tmp_path / "run"

    def train(num_steps: int, *more: str) -> tuple[int, str]:
        short = [*SHORT, *BERT, f"data.path={texts}", "data.vocab_size=120", f"run_dir={run}"]
        code = main(["train", *short, f"recipe.num_steps={num_steps}", *more])
        return code, capsys.readouterr().err

    def stored() -> dict[str, int]:
        state = checkpoint.read_manifest(checkpoint.find(run))["values"]["recipe"]
        return WordPiece.from_json(state["tokenizer"])._backend.get_vocab()

    assert train(2)[0] == 0
    first = stored()
    # As on another machine: the same text is the same data, though it is split by the checkpoint's tokenizer.
    shutil.rmtree(cache)
    assert train(3)[0] == 0
    other = write_texts(tmp_path / "other", extra="another vocabulary qqq zzz ")
    assert "train and held_out data are not those" in train(4, f"data.path={other}")[1]
    assert train(4, f"data.path={other}", "data_changed=accept")[0] == 0
    assert stored() == first
    assert checkpoint.find(run).name == "step_00000004", "the length is as it is asked for now"
    recipe = load_recipe(run)
    assert isinstance(recipe, MaskedLanguageModelling)
    tokens = recipe.datasets.train[0]["tokens"].tolist()
    recipe.runtime.close()
    capsys.readouterr()
    oracle = WordPiece.from_vocabulary(first, recipe.tokenizer.normalizer)
    assert all(piece in first for piece in map(oracle.token, tokens))
    assert oracle.unknown in tokens, "its new letters have no token, and take none of another meaning"

    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nalpha\nbeta\n")
    given = ["data_changed=accept", f"data.vocab_file={tmp_path / 'vocab.txt'}"]
    code, said = train(5, *given)
    assert code == 2 and "is not what the given tokenizer was made with" in said and said.count("\n") == 1
    fork = train(5, *given, f"resume={run}", f"run_dir={tmp_path / 'fork'}")
    assert fork[0] == 2 and "is not what the given tokenizer was made with" in fork[1]
