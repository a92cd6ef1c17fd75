"""A stored configuration runs what is trainkit's and of the kind that its place is for; the rest has to be trusted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import environment
from trainkit import checkpoint, load_recipe
from trainkit.cli.main import main
from trainkit.config import compose, compose_unresolved, groups
from trainkit.errors import ConfigError, UntrustedError
from trainkit.training.trust import require_ours

USER = Path(__file__).parent.parent / "user" / "conf"
FOREIGN = "from pathlib import Path\nPath('marker').touch()\ndef touch(*args, **kwargs): Path('marker').touch()\n"


@pytest.fixture
def foreign(tmp_path, monkeypatch) -> Path:
    """The current directory, on the path, with a module whose import and whose function leave `marker` there."""
    (tmp_path / "foreign.py").write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "marker"


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, options in groups().items() for o in options])
def test_every_option_of_ours_is_trusted(group, option):
    require_ours(compose_unresolved([f"{group}={option}"]))
    composed = compose([f"{group}={option}"])
    require_ours(composed)
    with pytest.raises(UntrustedError, match=r"foreign\.touch"):
        require_ours({**composed, group: TOUCH})


TOUCH = {"_target_": "foreign.touch"}
NODES = [
    ("data", TOUCH),
    ("recipe", TOUCH),
    ("seed", TOUCH),
    ("unknown", TOUCH),
    ("optimizer", {"_target_": "foreign.touch", "_partial_": True}),
    ("optimizer", {"_target_": "torch.optim.Adam", "_partial_": True, "lr": TOUCH}),
    ("optimizer", {"_target_": "torch.optim.Adam", "_args_": [TOUCH]}),
    ("schedule", {"_target_": "trainkit.Schedule", "warmup": {"deep": [TOUCH]}}),
    ("data", {"_target_": "trainkit.data.Text", "path": TOUCH}),
    ("data", {"_target_": "trainkit.data.Datasets", "train": TOUCH, "held_out": TOUCH}),
    ("data", {"_target_": "hydra.utils.get_method", "path": "foreign.touch"}),
    ("data", {"_target_": "hydra.utils.get_object", "path": "foreign.touch"}),
    ("data", {"_target_": "trainkit.config.targets.get_object", "path": "foreign.touch"}),  # imported there
    (
        "data",
        {"_target_": "trainkit.config.compose.yaml.unsafe_load", "stream": "!!python/object/apply:foreign.touch []"},
    ),
    ("data", {"_target_": "trainkit.config.build", "node": TOUCH}),
    ("data", {"_target_": "trainkit.cli.main.main", "argv": ["--version"]}),
    ("data", {"_target_": "trainkit.cli.__main__.main"}),
    ("data", {"_target_": "trainkit.data.pyramid.PyramidWriter", "directory": "marker", "resolution": 4}),
    ("data", {"_target_": "trainkit.Comm"}),  # of another kind
    ("recipe", {"_target_": "trainkit.Runtime", "run_dir": "marker"}),
    ("recipe", {"_target_": "trainkit.recipe.Recipe.__subclasses__"}),
    ("recipe", {"_target_": "${data._target_}"}),
    ("run_dir", "${oc.env:HOME}"),
    ("run_dir", "${oc.select:seed,${oc.env:HOME}}"),
    ("run_dir", "${oc.select:seed,x y}"),
    ("run_dir", "${oc.select:${oc.env:HOME},1}"),
    ("tracking", {"_target_": "trainkit.tracking.trackers", "others": {"mine": TOUCH}}),
    ("strategy", {"_target_": "trainkit.strategy.Zero1", "config": {"tensorboard": {"output_path": "marker"}}}),
]


@pytest.mark.parametrize("path", ["features.pt", "../features.JIT"])
def test_a_program_of_torchscript_is_foreign(path):
    config = compose(["recipe=progressive_gan", f"recipe.evaluation.features.path={path}"])
    with pytest.raises(UntrustedError, match=r"a TorchScript program, .*--trust"):
        require_ours(config)
    require_ours(compose(["recipe=progressive_gan", "recipe.evaluation.features.path=features.onnx"]))


@pytest.mark.parametrize(("key", "node"), NODES)
def test_what_is_foreign_is_refused_and_not_imported(foreign, key, node):
    with pytest.raises(UntrustedError, match="--trust"):
        require_ours({**compose_unresolved(), key: node})
    assert not foreign.exists() and "foreign" not in sys.modules


def test_a_package_recipes_of_another_place_is_refused(tmp_path, monkeypatch):
    (tmp_path / "trainkit_recipes").mkdir()
    (tmp_path / "trainkit_recipes" / "__init__.py").write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys; from trainkit.config import compose; from trainkit.training.trust import require_ours; "
        f"config = compose(); sys.path.insert(0, {str(tmp_path)!r}); require_ours(config)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment())
    assert "UntrustedError: recipe._target_=trainkit_recipes.bert" in done.stderr
    assert not (tmp_path / "marker").exists()


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A run of a recipe of one's own."""
    run_dir = tmp_path_factory.mktemp("own") / "run"
    short = ["experiment=toy_short", "recipe.num_steps=3", "schedule=constant", "ops=reference"]
    assert main(["train", "--config-dir", str(USER), *short, f"run_dir={run_dir}"]) == 0
    return run_dir


def test_a_recipe_of_ones_own_needs_trust(own, capsys):
    assert main(["evaluate", str(own)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "tests.user.toy" in error and "type the same command with --trust" in error
    assert main(["evaluate", str(own), "--trust"]) == 0
    assert "num_held_out 37\n" in capsys.readouterr().out


def test_an_override_acts_wherever_its_key_was_interpolated(own, capsys):
    assert main(["evaluate", str(own), "--trust", "data.held_out.num_samples=11"]) == 0
    assert "num_held_out 11\n" in capsys.readouterr().out
    assert main(["evaluate", str(own), "--trust", "recipe.data.held_out.num_samples=12"]) == 0
    assert "num_held_out 12\n" in capsys.readouterr().out
    for override in ("run_dir=elsewhere", "tracking.console=false", "save_every=2"):
        assert main(["evaluate", str(own), "--trust", override]) == 2
        assert f"{override} changes nothing about a trained model" in capsys.readouterr().err


def test_options_of_ones_own_directory_change_a_trained_run(own, capsys):
    assert main(["evaluate", str(own), "--trust", "--config-dir", str(USER), "data=points"]) == 0
    assert "num_held_out 37\n" in capsys.readouterr().out
    assert main(["evaluate", str(own), "--trust", "--config-dir", str(USER), "data.held_out.num=3"]) == 2
    assert "Did you mean 'data.held_out'" in capsys.readouterr().err


def test_foreign_code_in_an_untrusted_checkpoint_never_runs(own, foreign, monkeypatch, capsys):
    real = checkpoint.read_manifest

    def altered(path):
        manifest = json.loads(json.dumps(real(path)))
        manifest["values"]["composed"] = {**compose_unresolved(), "recipe": TOUCH}
        return manifest

    monkeypatch.setattr(checkpoint, "read_manifest", altered)
    assert main(["evaluate", str(own)]) == 2
    assert str(Path.cwd()) not in sys.path
    assert "recipe._target_=foreign.touch would run code" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        load_recipe(own)
    assert not foreign.exists()
