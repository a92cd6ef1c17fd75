"""BERT on NVIDIA's HDF5 files: losses of plain PyTorch on what h5py reads, any split, and a run in two phases."""

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import h5py
import pytest
import torch
import torch.nn.functional as F

from tests.jobs import newest_tensors, run
from tests.nvidia_files import CLS, MASK, SEP, write_folder, write_vocabulary
from tests.recipes.test_bert_pretrain import distance
from trainkit import Runtime, checkpoint, load_recipe
from trainkit.data import NvidiaBert
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks
from trainkit_recipes.bert.model import TINY
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling
from trainkit_recipes.bert.samples import masked_by

MODEL = replace(TINY, hidden_size=32, num_layers=1, feed_forward_size=64, max_length=32)


def make(path: Path, static_masking=False, **settings) -> MaskedLanguageModelling:
    data = NvidiaBert(
        path=path / "data",
        vocab_file=path / "vocab.txt",
        static_masking=static_masking,
        cache_dir=path / "cache",
        sequence_length=16,
    )
    return MaskedLanguageModelling(
        Runtime(precision="fp64", seed=3, device="cpu"),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        **{"data": data, "model": MODEL, "num_steps": 3, "batch_size": 12, **settings},
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("nvidia")
    write_vocabulary(path / "vocab.txt")
    write_folder(path / "data", length=16), write_folder(path / "data", num=2, length=32, slots=6)
    return path


def test_static_masking_gives_the_loss_of_plain_pytorch(path):
    model = replace(MODEL, dropout=0.0, attention_dropout=0.0)
    recipe = make(path, static_masking=True, model=model, evaluation_batch_size=7)
    measured = recipe.evaluate()["held_out_loss"]
    (file,) = (path / "data").rglob("*len_16*/*/*test_0.hdf5")
    with h5py.File(file) as opened:
        read = {name: torch.from_numpy(opened[name][:]).long() for name in opened}
    recipe.model.module.eval()
    with torch.no_grad():
        logits = recipe.model.module(read["input_ids"], None, read["input_mask"].bool(), read["segment_ids"])
    rows, slots = torch.nonzero(read["masked_lm_positions"], as_tuple=True)
    chosen = logits[rows, read["masked_lm_positions"][rows, slots]]
    assert measured == pytest.approx(float(F.cross_entropy(chosen, read["masked_lm_ids"][rows, slots])), rel=1e-12)
    ignoring = recipe.model.module(read["input_ids"], None, read["input_mask"].bool())
    assert (ignoring - logits).abs().max() > 1e-3, "segments matter"
    recipe.runtime.close()


def test_dynamic_masking_hides_other_tokens_in_each_epoch(path):
    recipe = make(path)
    train = recipe.datasets.train
    seen: dict[int, list[tuple[bool, ...]]] = {}
    for batch in islice(recipe.batches(), 2 * len(train) // 12 + 1):
        masked = masked_by(recipe.masking, batch, recipe.runtime, "mask")
        hidden = masked.tokens_BT == MASK
        assert not hidden[batch.tokens < 5].any(), "nor [CLS], [SEP], padding"
        assert (batch.tokens[:, 0] == CLS).all() and (batch.tokens == SEP).any(1).all()
        for index, row in zip(batch.indices.tolist(), hidden, strict=True):
            seen.setdefault(index, []).append(tuple(row.tolist()))
    assert len(seen) == len(train) == 153
    assert sum(len(set(masks)) > 1 for masks in seen.values()) > 100
    recipe.runtime.close()


def train(path: Path, static_masking: bool, strategy="ddp", **settings) -> tuple[dict[str, torch.Tensor], float]:
    recipe = make(path, static_masking, **settings)
    for batch in islice(recipe.batches(), 3):
        recipe.train_step(batch)
    loss = recipe.evaluate()["held_out_loss"]
    recipe.runtime.close()
    return {name: p.detach().clone() for name, p in recipe.model.module.named_parameters()}, loss


def test_weights_do_not_depend_on_the_split(path):
    for static_masking in (False, True):
        alone, loss = train(path, static_masking, next_sentence=True)
        for weights, theirs in run_ranks(
            partial(train, path, static_masking, next_sentence=True, grad_accumulation_steps=2), 2
        ):
            assert distance(weights, alone) < 1e-10
            assert theirs == pytest.approx(loss, rel=1e-10)


def test_segments_need_a_model_with_two_or_none(path):
    with pytest.raises(ConfigError, match=r"recipe.model.num_segments=1: .* set it to 2, or to 0"):
        make(path, model=replace(MODEL, num_segments=1))


def test_static_masking_has_no_other_masking_beside_it(path):
    with pytest.raises(ConfigError, match=r"recipe\.masking=spans: the samples are masked already"):
        make(path, static_masking=True, masking="spans")


def test_a_run_in_two_phases_is_resumed_by_the_same_command(path, tmp_path):
    arguments = [
        "recipe=bert", "data=nvidia_bert", f"data.path={path / 'data'}", f"data.vocab_file={path / 'vocab.txt'}",
        f"data.cache_dir={path / 'cache'}", "recipe.model.hidden_size=32", "recipe.model.num_segments=2",
        "recipe.model.positions=learned", "recipe.model.num_layers=1", "recipe.model.dropout=0.1",
        "recipe.phases={a: {num_steps: 4, sequence_length: 16}, b: {num_steps: 3, sequence_length: 32}}",
        "recipe.batch_size=12", "schedule.warmup=1", "save_every=2", "keep_last=9",
        "deterministic=true", "tracking=none",
        'recipe.sentences=["w8 w9 [MASK] w11"]',
    ]  # fmt: skip
    whole, part = tmp_path / "whole", tmp_path / "part"
    finished = run([*arguments, f"run_dir={whole}"], 2)
    assert finished.returncode == 0, finished.stderr
    middle = checkpoint.step_directories(whole / "checkpoints")[1]
    resumed = run([*arguments, f"run_dir={part}", f"resume={middle}"], 2)
    assert resumed.returncode == 0 and "resumed after step 4" in resumed.stdout, resumed.stderr
    expected, found = newest_tensors(whole), newest_tensors(part)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    recipe = load_recipe(whole, with_data=False)
    assert isinstance(recipe, MaskedLanguageModelling)
    assert recipe.fill("w8 w9 [MASK] w11").predictions[0][0][0].startswith("w")
    recipe.runtime.close()
