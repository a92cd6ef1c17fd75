"""One option stands in one place: keys of conf/train.yaml are arguments of Runtime, Trainer and audit, or groups."""

import inspect

import pytest
import yaml

from trainkit import Runtime, Trainer
from trainkit.config import CONF_DIR, arguments_of, check, compose, groups
from trainkit.errors import ConfigError
from trainkit.training.leakage import look
from trainkit.training.machines import look_at_machines

OTHER_IN_A_JOB = {"run_dir", "evaluate_every", "save_every"}
"""Keys whose default in conf/train.yaml differs: a job has a run directory, and evaluates and saves on its way."""
OF_RECIPES = {"weights"}
"""Keys that recipes link to."""
OWNERS = (Runtime, Trainer, look, look_at_machines)
MADE_BY_A_JOB = {"tracker", "config", "composed", "found"}


def parameters():
    return {
        name: parameter
        for kind in OWNERS
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def values():
    return {k: v for k, v in yaml.safe_load((CONF_DIR / "train.yaml").read_text()).items() if k != "defaults"}


def test_every_key_is_an_argument_and_every_argument_a_key():
    assert values().keys() - OF_RECIPES == parameters().keys() - groups().keys() - MADE_BY_A_JOB
    assert values().keys() >= OF_RECIPES and all(values()[key] is None for key in OF_RECIPES)
    assert {name for owner in OWNERS for name in arguments_of(owner)} == parameters().keys() - MADE_BY_A_JOB
    assert not {*arguments_of(Runtime)} & {*arguments_of(Trainer)}


def test_defaults_agree():
    for key, value in values().items():
        if key in OF_RECIPES:
            continue
        default = parameters()[key].default
        agrees = value == (list(default) if isinstance(default, tuple) else default)
        assert agrees != (key in OTHER_IN_A_JOB), f"{key}: {value} in conf/train.yaml, {default} in the signature"
    chosen = {
        key: value
        for entry in yaml.safe_load((CONF_DIR / "train.yaml").read_text())["defaults"]
        if isinstance(entry, dict)
        for key, value in entry.items()
    }
    for key in parameters().keys() & chosen.keys():
        default = parameters()[key].default
        assert chosen[key] == ("default" if default is None else default), key


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("nonfinite=stopp", r"nonfinite='stopp': Input should be 'stop', 'skip' or 'rewind'"),
        ("data_changed=no", r"data_changed=.*: Input should be 'refuse' or 'accept'"),
        ("activation_checkpointing=Layer", r"activation_checkpointing='Layer': "),
        ("hang_timeout_s=soon", r"hang_timeout_s='soon': .*number.*'auto'"),
        ("keep_best=maybe", r"keep_best='maybe': .*boolean"),
        ("log_every=2.5", r"log_every=2\.5: .*integer"),
        ("minutes=[]", r"minutes=\[\]: .*number"),
        ("strategy._target_=null", r"strategy"),
    ],
)
def test_a_signature_says_what_is_allowed(override, says):
    with pytest.raises(ConfigError, match=says):
        check(compose([override]))
