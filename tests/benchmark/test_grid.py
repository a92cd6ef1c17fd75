"""Which cells a grid has, and what may be asked for."""

import pytest

from trainkit.benchmark import grid
from trainkit.benchmark.configuration import batch_size_of, config_of, config_of_count, with_batch_size
from trainkit.benchmark.grid import Cell, Length, Model
from trainkit.config import check, resolve
from trainkit.errors import ConfigError


def _cells(models=2, precisions=("fp32", "bf16"), strategies=("ddp", "fsdp"), processes=(1, 2, 4)):
    named = [Model(name=str(number), overrides=()) for number in range(models)]
    return [*grid.cells(named, precisions, strategies, processes)]


def test_a_grid_has_every_combination_once():
    cells = _cells()
    assert len(cells) == 2 * 2 * 2 * 3 == len({cell.key for cell in cells})
    assert len(_cells(strategies=("single", "ddp"))) == 2 * 2 * (1 + 3)
    with pytest.raises(ConfigError, match="strategy single has one process; use ddp"):
        _cells(strategies=("single",), processes=(2,))


def test_models_are_recipes_and_experiments():
    found = grid.models(["recipe=bert,progressive_gan", "experiment=glyphs", "seed=3"], has_gpu=False)
    assert [model.name for model in found] == ["bert", "progressive_gan", "glyphs"]
    assert all(model.overrides[1:] == ("seed=3",) for model in found)
    default, with_gpu = (grid.models([], has_gpu=has_gpu) for has_gpu in (False, True))
    assert [model.name for model in default] == ["bert_quickstart", "glyphs", "outlines"]
    assert {model.name for model in with_gpu} > {model.name for model in default}


@pytest.mark.parametrize("model", grid.models([], has_gpu=True), ids=lambda model: model.name)
def test_the_default_models_can_be_configured(model):
    cell = Cell(model=model, precision="fp32", strategy="ddp", processes=1)
    config = with_batch_size(config_of(cell), 3)
    assert batch_size_of(config) == check(resolve(config))["recipe"]["batch_size"] == 3
    assert resolve(config)["data"].get("path") is None, "data of the user's own"
    counted = resolve(config_of_count(cell))
    assert counted["ops"]["kernels"] == "reference" and counted["strategy"]["_target_"].endswith("Single")


def test_the_batch_size_reaches_every_phase():
    bert = Model(name="bert", overrides=("experiment=bert_large",))
    config = config_of(Cell(model=bert, precision="fp32", strategy="ddp", processes=1))
    assert batch_size_of(config) == 65536
    phases = resolve(with_batch_size(config, 8))["recipe"]["phases"]
    assert all("batch_size" not in phase for phase in phases.values()) and len(phases) == 2
    assert batch_size_of(with_batch_size(config, 8)) == 8
    with pytest.raises(ConfigError, match=r"has no key recipe\.batch_size"):
        with_batch_size({"recipe": {"_target_": "mine"}}, 8)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: grid.models(["precision=bf16"], has_gpu=False), "precision=bf16: give --precision bf16"),
        (lambda: grid.models(["recipe.batch_size=8"], has_gpu=False), "give --batch-size 8"),
        (lambda: grid.listed("fp31", ["fp32", "bf16"], "--precision"), "of fp32, bf16. Did you mean 'fp32'"),
        (lambda: grid.listed(",", ["fp32"], "--precision"), "must be one or more of fp32"),
        (lambda: grid.counts("1,0", "--processes"), "numbers of at least 1 with commas"),
        (lambda: grid.counts("two", "--processes"), "--processes='two'"),
        (
            lambda: grid.counts("1,4", "--processes", most=2, of="the GPUs"),
            "--processes=4: must be at most 2, the GPUs",
        ),
        (lambda: Length(steps=0), "--steps=0: must be 1 or more"),
        (lambda: Length(warmup=0), "--warmup=0"),
        (lambda: grid.threads_of([1], 0), "--threads=0"),
    ],
)
def test_what_is_refused(call, says):
    with pytest.raises(ConfigError, match=says):
        call()


def test_threads_are_shared_among_the_most_processes(monkeypatch):
    monkeypatch.setattr(grid, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert grid.threads_of([1, 2, 4], None) == 2 and grid.threads_of([16], None) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert grid.threads_of([1, 2], None) == 3 and grid.threads_of([1], 5) == 5
