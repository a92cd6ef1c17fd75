"""recipe=bert_finetune: the same weights and metrics from any split of the work, for every task."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.recipes.finetuning import SHAPE, TASKS, make, train, weights_of
from trainkit.testing import run_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    for write, name, *_ in TASKS.values():
        write(folder / name)
    return folder


def distance(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("task", TASKS)
def test_the_result_does_not_depend_on_the_split(folder, task):
    """Dropout and the padding of each rank included."""
    weights, metrics = train(folder, task)
    for ranks, steps in ((1, 2), (2, 1), (4, 1)):
        results = run_ranks(partial(train, folder, task, grad_accumulation_steps=steps), ranks)
        for _, their_metrics in results:
            assert their_metrics == pytest.approx(metrics, rel=1e-10)
        assert distance(results[0][0], weights) < 1e-10, (ranks, steps)


DRY = replace(SHAPE, dropout=0.0, attention_dropout=0.0)
THAW: dict[str, Any] = {
    "model": DRY,
    "num_layers_frozen": 2,
    "unfreeze_every": 2,
    "layer_decay": 0.7,
    "max_grad_norm": 0.5,
}


def frozen_part(name, num_frozen):
    """Whether the embeddings or one of the first layers."""
    below = ("encoder.embeddings.", *(f"encoder.layers.{number}." for number in range(num_frozen)))
    return num_frozen > 0 and name.startswith(below)


def plain(folder):
    """Six steps in bare PyTorch, one process and whole batches."""
    recipe = make(folder, "classification", **THAW, class_weights=None)
    module, schedule = recipe.model.module, recipe.model._rates.schedule
    batches = recipe.batches()
    depths = {name: 3 for name, _ in module.named_parameters()}
    for name in depths:
        depths[name] = 0 if "embeddings" in name else int(name.split(".")[2]) + 1 if ".layers." in name else 3
    matrices = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)}
    groups = [
        {"params": [p], "lr": 1e-2 * 0.7 ** (3 - depths[name]), "weight_decay": 0.01 * (id(p) in matrices)}
        for name, p in module.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, eps=1e-4)
    first = [group["lr"] for group in groups]
    for step, batch in zip(range(6), batches, strict=False):
        for name, p in module.named_parameters():
            p.requires_grad_(not frozen_part(name, max(0, 2 - step // 2)))
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * schedule(8 * step, 8)
        optimizer.zero_grad()
        outputs = module(batch.tokens, batch.lengths, batch.positions, batch.firsts)
        F.cross_entropy(outputs, batch.labels).backward()
        torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], 0.5)
        optimizer.step()
    return torch.cat([value.double().flatten() for _, value in sorted(module.state_dict().items())]).detach()


STRATEGIES = ("ddp", "fsdp", "zero1", "zero2", "zero3")


def thawed(folder, strategy):
    """The weights after six steps, by which everything was thawed, and how many were frozen before each."""
    recipe = make(folder, "classification", strategy=strategy, **THAW, class_weights=None)
    frozen = []
    for _, batch in zip(range(6), recipe.batches(), strict=False):
        recipe.train_step(batch)
        frozen.append(recipe.num_frozen)
    return weights_of(recipe), frozen


def test_a_thawed_layer_trains_under_every_strategy(folder):
    """Layer-wise rates, clipping and the schedule included; the moments of what was trained before stay."""
    expected = plain(folder)
    assert distance(thawed(folder, "single")[0], expected) < 1e-12
    for strategy in STRATEGIES:
        (weights, frozen), *_ = run_ranks(thawed, 2, folder, strategy)
        assert frozen == [2, 2, 1, 1, 0, 0]
        assert distance(weights, expected) < (1e-5 if "zero" in strategy else 1e-10), strategy


def resumed(folder, run_dir, strategy):
    """Whether a run that was saved in the middle ends at the same bits."""
    settings = {**THAW, "model": SHAPE, "strategy": strategy}
    ends: list[Any] = []
    state: dict[str, Any] = {}
    for start in (0, 3):
        recipe = make(folder, "classification", **settings)
        if start:
            recipe.load_state_dict(state)
            recipe.runtime.load(run_dir, model=recipe.model)
        for step, batch in zip(range(start, 6), recipe.batches(8 * start), strict=False):
            recipe.train_step(batch)
            if step == 2 and not start:
                recipe.runtime.save(run_dir, model=recipe.model)
                state = recipe.state_dict()
        ends.append((weights_of(recipe), recipe.evaluate()))
    (weights, metrics), (again, metrics_again) = ends
    return torch.equal(weights, again) and metrics == metrics_again


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resumed_run_ends_at_the_same_bits(folder, tmp_path, strategy):
    """In the middle of gradual unfreezing, with dropout."""
    assert run_ranks(resumed, 2, folder, str(tmp_path / "saved"), strategy) == [True, True]
