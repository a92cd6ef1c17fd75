"""Trackers of a user's own are configured as the comment in conf/tracking/default.yaml says."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.user.tracker import MyTracker
from trainkit.cli.main import main
from trainkit.config import CONF_DIR, build, check, compose, compose_onto, compose_unresolved, resolve
from trainkit.errors import ConfigError

USER = CONF_DIR.parent / "tests" / "user" / "conf"
MINE = "tracking.others.mine"
TARGET = "tests.user.tracker.MyTracker"
FORM = "tests.user.tracker.Format"
OF_A_DIRECTORY = f"others:\n  mine: {{_target_: {TARGET}, path: lines.txt, title: 2024, form: {{_target_: {FORM}}}}}\n"


def built(*overrides: str, config_dir: Path | None = None) -> dict[str, Any]:
    """The trackers of one's own that `overrides` make, by name."""
    node = check(compose(overrides, config_dir))["tracking"]
    assert build(node).names[-len(node["others"]) :] == [*node["others"]]
    return build(node["others"])


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_on_the_command_line_with_and_without_a_plus(plus):
    keys = [f"{MINE}._target_={TARGET}", f"{MINE}.path=~/a=b.txt", f"{MINE}.title=2024", f"{MINE}.form._target_={FORM}"]
    mine = built(*(f"{plus}{key}" for key in keys), f"{plus}{MINE}.form.digits=2")["mine"]
    assert isinstance(mine, MyTracker) and mine.title == "2024" and mine.form.digits == 2
    assert mine.path is not None and mine.path.name == "a=b.txt" and mine.path.is_absolute()


def test_as_one_mapping():
    two = built(f"tracking.others={{mine:{{_target_:{TARGET},title:mine}},other:{{_target_:{TARGET}}}}}")
    assert [two[name].title for name in ("mine", "other")] == ["mine", ""]


def test_from_a_directory_with_and_without_a_change(tmp_path):
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "own.yaml").write_text("defaults: [default, _self_]\n" + OF_A_DIRECTORY)
    mine = built("tracking=own", config_dir=tmp_path)["mine"]
    assert (mine.path.name, mine.title, mine.form.digits) == ("lines.txt", "2024", 4)
    assert (
        built("tracking=own", f"{MINE}.path=a", f"+{MINE}.form.digits=1", config_dir=tmp_path)["mine"].form.digits == 1
    )


def test_onto_a_stored_configuration():
    changed = compose_onto(compose_unresolved(), [f"{MINE}._target_={TARGET}", f"{MINE}.title=x"])
    assert build(check(resolve(changed))["tracking"]["others"])["mine"].title == "x"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (f"{MINE}.titel=x", rf"{MINE}\.titel: there is no such key; {MINE} has path, title, form.*'title'"),
        (f"{MINE}.form.digits=few", rf"{MINE}\.form\.digits='few': .*integer"),
        (f"{MINE}._target_=tests.user.tracker.Mine", rf"{MINE}\._target_=tests.user.tracker.Mine: cannot be imported"),
        ("tracking.other.mine._target_=x", r"tracking\.other.*Did you mean 'tracking\.others'"),
        ("tracking.others=[a]", r"tracking\.others=\[a\]: is of another kind than what tracking\.others has"),
        ("tracking.others.mine=5", r"tracking\.others.*instance of Tracker"),
    ],
)
def test_a_mistake_names_its_key(override, says):
    with pytest.raises(ConfigError, match=says) as caught:
        check(compose([f"{MINE}._target_={TARGET}", f"{MINE}.form._target_={FORM}", override]))
    assert "\n" not in str(caught.value)


def test_a_list_of_trackers_has_no_names():
    config = compose()
    config["tracking"]["others"] = [{"_target_": TARGET}]
    with pytest.raises(ConfigError, match=r"tracking\.others=.*is a list, and must be a mapping of names"):
        check(config)


def test_what_is_no_tracker_is_refused():
    with pytest.raises(ConfigError, match=re.escape(f"{MINE}=Format(digits=4): must be a trainkit.Tracker")):
        build(check(compose([f"{MINE}._target_={FORM}"]))["tracking"])


def test_it_gets_what_a_run_logs(tmp_path):
    own = [f"{MINE}._target_={TARGET}", f"{MINE}.path={tmp_path / 'lines'}", f"{MINE}.title=toy"]
    short = ["experiment=toy_short", "recipe.num_steps=2", "schedule=constant", "ops=reference", "tracking=none"]
    assert main(["train", "--config-dir", str(USER), *short, *own, f"run_dir={tmp_path / 'run'}"]) == 0
    assert re.fullmatch(r"toy 2 \d+\.\d{4}\n", (tmp_path / "lines").read_text())
