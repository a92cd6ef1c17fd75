"""The configuration of a trial by itself: as a command, and as an experiment file that trains to the same bits."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sweep.studies import opened, trial
from trainkit.cli.main import main
from trainkit.config import compose, compose_unresolved, resolve, to_yaml
from trainkit.errors import ConfigError
from trainkit.job import train
from trainkit.sweep import best
from trainkit.sweep.study import read

TOY = Path(__file__).parents[1] / "user" / "conf"


@pytest.fixture
def conf(tmp_path):
    return Path(shutil.copytree(TOY, tmp_path / "conf"))


def _study(tmp_path, params, *, overrides=(), space=None, conf=None):
    """A study of one trial that has finished."""
    space = space or {key: "1,2" for key in params}
    study = opened(tmp_path / "sweep", overrides=tuple(overrides), space=space)
    made = trial(0, [0.25], params=params)
    study.trials = lambda: [made]
    study.varied = {key: replace(found, choices=()) for key, found in study.settings.variations().items()}
    return study, made


def _without(config):
    return {key: value for key, value in config.items() if key not in best.APART}


CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "an experiment and nested keys": (
        ["experiment=bert_quickstart"],
        {"optimizer.lr": 3e-5, "recipe.model.num_layers": 3, "seed": 7},
    ),
    "groups, which the trial chooses": (
        ["recipe=bert", "precision=bf16", "schedule.warmup=0.1"],
        {"optimizer": "sgd", "strategy": "single"},
    ),
    "an experiment whose groups are chosen again": (
        ["experiment=bert_base", "optimizer=lamb", "recipe.phases=null"],
        {"optimizer.weight_decay": 0.02, "schedule": "cosine"},
    ),
    "the experiment itself, a list and a text": (
        ["activation_checkpointing=[Layer]", 'data.path="~/a b, c: #d"', "optimizer.betas=[0.8,0.95]"],
        {"experiment": "bert_24h", "recipe.mask_share": 0.15},
    ),
    "keys that are new, and free ones": (
        ["+recipe.extra={a: 1, b: [x, null]}", "tracking.others.mine._target_=some.Tracker"],
        {"+recipe.more.deep": 5},
    ),
    "values that look like others": (
        ["recipe=bert"],
        {"optimizer.lr": "1e-05", "patience": "null", "compile": "true", "minutes": "1_0"},
    ),
    "nothing of a group": (["schedule=null"], {"evaluate_every": "null"}),
    "links": (["optimizer.lr=${optimizer.eps}"], {"recipe.batch_size": 16}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_written_experiment_is_the_trials_configuration(tmp_path, name):
    overrides, params = CASES[name]
    study, made = _study(tmp_path, params, overrides=overrides)
    path = tmp_path / "mine" / "experiment" / "found.yaml"
    path.parent.mkdir(parents=True)
    line = best.write_experiment(study, made, path)
    wanted = compose([*study.settings.fixed(), *study.overrides(made)])  # by Hydra alone, and not as the driver does
    found = compose(["experiment=found"], tmp_path / "mine")
    assert to_yaml(_without(found)) == to_yaml(_without(wanted))
    text = path.read_text()
    assert text.startswith("# @package _global_\n# Of sweep, trial 0: held_out_loss 0.25\n")
    assert shlex.split(line)[-4:] == ["train", "--config-dir", str(tmp_path / "mine"), "experiment=found"]
    chosen = [key for key in params if params[key] in ("sgd", "single", "cosine")]
    assert all(f"- override /{key}: {params[key]}\n" in text for key in chosen)
    study.close()


def test_a_written_experiment_is_short(tmp_path):
    study, made = _study(tmp_path, {"optimizer": "sgd", "optimizer.lr": 0.5}, overrides=["experiment=bert_quickstart"])
    assert yaml.safe_load(best.experiment(study, made)) == {
        "defaults": ["bert_quickstart", "_self_", {"override /optimizer": "sgd"}],
        "optimizer": {"lr": 0.5},
    }


def test_the_command_makes_the_same_configuration(tmp_path):
    study, made = _study(tmp_path, {"optimizer.lr": 0.003}, overrides=["recipe=bert", "data.path='~/my texts'"])
    words = shlex.split(best.command(study, made))
    start = words.index("train")
    assert words[start + 1 :][-1] == f"run_dir={tmp_path / 'sweep_trial_0'}"
    typed = compose(words[start + 1 :])
    assert _without(typed) == _without(resolve(best.configuration(study, made))) and typed["optimizer"]["lr"] == 0.003
    several = replace(study.settings, processes=2)
    study.settings = several
    assert "train --config-dir my/conf --processes 2 recipe=bert" in best.command(study, made, Path("my/conf"))


def test_what_no_experiment_can_say_is_refused(tmp_path, monkeypatch):
    study, made = _study(tmp_path, {"optimizer.lr": 0.003}, overrides=["recipe=bert", "~optimizer.eps"])
    path = tmp_path / "conf" / "experiment" / "found.yaml"
    path.parent.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"found.yaml: as an experiment file, optimizer.eps would be .*missing"):
        best.write_experiment(study, made, path)
    monkeypatch.setattr(best, "experiment", lambda *_: "# @package _global_\ndata: ${nowhere}\n")
    with pytest.raises(ConfigError, match="it cannot be composed"):
        best.write_experiment(study, made, path)
    assert [*path.parent.iterdir()] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conf/best.yaml", "must be experiment/NAME.yaml in conf/, such as conf/experiment/best.yaml"),
        ("conf/experiment/best.yml", "must be experiment/NAME.yaml"),
        ("conf/experiment/toy_short.yaml", "there is such a file"),
        ("conf/experiment/bert_base.yaml", "there is an experiment bert_base already"),
        ("other/experiment/best.yaml", "a command reads one --config-dir; write it into .*conf/experiment/"),
    ],
)
def test_a_file_that_would_not_be_found_is_refused(tmp_path, conf, name, message):
    study, made = _study(tmp_path, {"optimizer.lr": 0.01}, overrides=["experiment=toy_short"])
    before = {path: path.read_text() for path in conf.rglob("*.yaml")}
    with pytest.raises(ConfigError, match=message):
        best.write_experiment(study, made, tmp_path / name, conf)
    assert {path: path.read_text() for path in conf.rglob("*.yaml")} == before


def test_a_configuration_that_has_changed_since_is_refused(tmp_path, conf):
    study, made = _study(tmp_path, {"optimizer.lr": 0.01}, overrides=["experiment=toy_short"])
    stored = resolve(best.configuration(study, made, conf))
    study.run_dir(0).mkdir(parents=True)
    (study.run_dir(0) / "config.yaml").write_text(to_yaml({**stored, "run_dir": "elsewhere"}))
    best.configuration(study, made, conf)
    with pytest.raises(ConfigError, match=r"trial 0 cannot be .* one of .*where the sweep had a --config-dir, give it"):
        best.configuration(study, made)
    (study.run_dir(0) / "config.yaml").write_text(to_yaml({**stored, "log_every": 5}))
    with pytest.raises(
        ConfigError, match=r"log_every was 5 in .*config.yaml, and is 4 by conf/ now: conf/ has changed"
    ):
        best.configuration(study, made, conf)


def test_a_trial_that_went_on_from_others_says_so(tmp_path):
    study = opened(tmp_path / "sweep")
    trials = [trial(0, [3.0]), trial(1, [2.0], parent=0), trial(2, [1.0], parent=1)]
    study.trials = lambda: trials
    assert best.history(study, trials[0]) is None
    past = best.history(study, trials[2]) or ""
    assert "trial 2 went on from the checkpoints of trial 1, 0, whose values were others: alone," in past


def test_no_trial_is_best_before_one_has_finished(tmp_path, capsys):
    study = opened(tmp_path / "sweep")
    study.prune(study.take(), seconds=1.0)
    study.close()
    assert main(["sweep", "best", str(study.directory)]) == 2
    assert "no trial has finished (1 pruned)" in capsys.readouterr().err
    assert main(["sweep", "best", str(study.run_dir(7))]) == 2
    assert "the sweep has no trial 7; it has 1" in capsys.readouterr().err


def test_of_a_front_each_trial_is_printed_and_one_written(tmp_path, conf, capsys):
    study = opened(tmp_path / "sweep", ["loss", "-accuracy"], sampler="nsga2", space={"optimizer.lr": "log(1e-3,1e-1)"})
    for values in ([1.0, 0.5], [2.0, 0.9], [3.0, 0.1]):
        study.finish(study.take(), values, seconds=0.0)
    study.close()
    target, options = conf / "experiment" / "found.yaml", ["--config-dir", str(conf)]
    assert main(["sweep", "best", str(study.directory), *options]) == 0
    printed = capsys.readouterr().out
    assert (
        "trial 0: loss 1, accuracy 0.5\nits run: " in printed
        and "trial 1: loss 2" in printed
        and "trial 2" not in printed
    )
    assert main(["sweep", "best", str(study.directory), *options, "--write", str(target)]) == 2
    assert "the trials 0, 1 are the best; give the directory of one, such as" in capsys.readouterr().err
    assert main(["sweep", "best", str(study.run_dir(1)), *options, "--write", str(target)]) == 0
    lr = read(study.directory).trials()[1].params["optimizer.lr"]
    assert compose_unresolved(["experiment=found"], conf)["optimizer"]["lr"] == lr


def test_a_written_experiment_trains_to_the_same_bits(tmp_path, conf, capsys):
    common = ["experiment=toy_short", "deterministic=true", "device=cpu"]
    study = opened(tmp_path / "sweep", overrides=tuple(common), space={"optimizer.lr": "log(1e-3,1e-1)", "seed": "3,4"})
    taken = study.take()
    config = best.configuration(study, taken, conf)
    metrics = train({**config, "run_dir": str(study.run_dir(0))})
    study.finish(taken, [metrics["held_out_loss"]], seconds=1.0)
    study.close()
    written = conf / "experiment" / "found.yaml"
    assert main(["sweep", "best", str(study.directory), "--config-dir", str(conf), "--write", str(written)]) == 0
    assert "train --config-dir" in capsys.readouterr().err
    run_dir = tmp_path / "alone"
    again = train(compose(["experiment=found", f"run_dir={run_dir}"], conf))
    assert again == metrics

    def logged(directory):
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    assert logged(run_dir) == logged(study.run_dir(0))
