"""Every --help has examples, and every example is understood; --list says what keys mean."""

import re
import shlex

import pytest

from tests.commands import every
from trainkit.cli.main import main, parse
from trainkit.config import check, compose
from trainkit.errors import ConfigError
from trainkit_recipes.bert import fill
from trainkit_recipes.bert.finetuning import predict
from trainkit_recipes.progressive_gan import measure, sample
from trainkit_recipes.translation_gan import translate

COMMANDS = every()


def _examples(text):
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [
        re.split(r"\s{6,}", line.strip())[0]
        for line in lines
        if re.match(r"  (trainkit|torchrun|python|[A-Z_]+=)", line)
    ]


@pytest.mark.parametrize("words", COMMANDS)
def test_examples_are_understood(words):
    examples = _examples(COMMANDS[words].epilog or "")
    assert examples, f"trainkit {words} --help has no example"
    for example in examples:
        after = re.split(r"trainkit\.cli |launch/train\.py |(?:^|\s)trainkit ", example)[-1]
        given = shlex.split(after)
        given = ["train", *given] if "launch/train.py" in example else given
        arguments = parse(COMMANDS[""], given)
        assert words.split() == given[: len(words.split())]
        if given[0] in ("train", "seeds"):
            check(compose(arguments.overrides))


SCRIPTS = (fill, sample, measure, predict, translate)


@pytest.mark.parametrize("text", [script.EXAMPLES for script in SCRIPTS])
def test_scripts_of_recipes_have_examples(text):
    assert len(_examples(text)) >= 2


def test_list_says_what_keys_mean(capsys):
    assert main(["train", "--list", "recipe=bert"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  batch_size: 32                    # samples of the global batch" in lines
    assert "seed: 0" in lines
    assert any(line.startswith(f"{'hang_timeout_s: auto':<36}# seconds without progress") for line in lines)
    assert any(line.startswith("  held_out: 0.02                    # share of the documents") for line in lines)
    assert {line.index("# ") for line in lines if "# " in line} == {36}
    assert max(len(line) for line in lines if "# " in line) <= 120


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer._target_=torch.optim.LBFGS", "evaluates the loss several times in a step"),
        ("schedule._target_=torch.optim.lr_scheduler.StepLR", "must be schedule=constant, cosine"),
    ],
)
def test_what_cannot_be_an_optimizer_or_a_schedule(override, says):
    with pytest.raises(ConfigError, match=f"{override}: .*{says}"):
        check(compose([override]))
