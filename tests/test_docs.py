"""The documentation is true: its commands parse, its files run as they stand on the page, nothing public is missing."""

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch

import trainkit
from docs.generators import results
from tests.commands import every
from tests.encryption.keys import age_key
from tests.jobs import environment
from trainkit import config
from trainkit.cli.main import _parser, parse

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "recipes").glob("*/README.md"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "launch" / "README.md",
    ]
)
NOT_OURS = {
    "age",
    "age-keygen",
    "apptainer",
    "cat",
    "docker",
    "enroot",
    "export",
    "kubectl",
    "nvidia-smi",
    "pip",
    "python",
    "sbatch",
    "scancel",
    "seq",
    "source",
    "srun",
    "ssh",
    "torchrun",
    ".venv/bin/pre-commit",
}
"""Of these, `python`, `sbatch` and `torchrun` are followed to the file that they run."""
MOST_LINES = 120


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of each block of code; of those that are indented by four spaces the language is `sh`."""
    language, lines = "", [""]
    for line in [*page.read_text().splitlines(), ""]:
        if language == "sh" and not line.startswith("    ") and lines[:1] == ["indented"]:
            yield language, "\n".join(lines[1:])
            language, lines = "", [""]
        if line.startswith("```"):
            if language:
                yield language, "".join(f"{one}\n" for one in lines)
            language, lines = "" if language else line[3:], []
        elif not language and line.startswith("    ") and lines == [""]:
            language, lines = "sh", ["indented", line]
        else:
            lines = [*lines, line] if language else [line]


def _commands(page: Path) -> Iterator[list[str]]:
    """The words of each command on a page, without the file that its output goes to."""
    for block in (text for language, text in _blocks(page) if language == "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("|") if "|" in words else len(words)
                command, words = words[:end], words[end + 1 :]
                command = command[: command.index(">")] if ">" in command else command
                while command and re.fullmatch(r"[A-Z_]+=\S*", command[0]):
                    command.pop(0)
                if command:
                    yield command


def _check_train(words: list[str]) -> None:
    arguments = parse(_parser(), ["train", *words])
    given = [word for word in arguments.overrides if word != "weights=DIRECTORY"]  # it would be read
    if arguments.config_dir is None and "my_trackers.CSV" not in " ".join(words):
        config.check(config.compose(given))


def _fault(words: list[str]) -> str | None:
    """Why the command cannot work, without running it; None: it can."""
    first, rest = words[0], words[1:]
    if first not in NOT_OURS | {"make", "trainkit"}:
        return f"{words}: {first} is no program of these pages"
    if first == "make" and not re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
        return f"{words}: the Makefile has no such target"
    if first == "trainkit" and rest[0] != "train" and rest[0] not in every():
        return f"{words}: trainkit has no such command"
    files = [word for word in rest if re.fullmatch(r"(launch|benchmarks|recipes)/\S+\.(py|sbatch)", word)]
    if first == "python" and rest[0] == "-m" and "trainkit.cli" not in rest:
        files.append(f"{rest[1].replace('.', '/')}.py")
    if missing := [file for file in files if not (ROOT / file).is_file()]:
        return f"{words}: there is no {missing}"
    try:
        _parse(first, rest, files)
    except (trainkit.errors.ConfigError, SystemExit) as error:
        return f"{words}: {error}"
    return None


def _parse(first: str, rest: list[str], files: list[str]) -> None:
    """Parses what follows a program of ours. Raises what that raises."""
    if first == "trainkit" and rest[0] == "train":
        _check_train(rest[1:])
    elif first == "trainkit":
        parse(_parser(), rest)
    elif first == "srun" and "trainkit" in rest:
        parse(_parser(), rest[rest.index("trainkit") + 1 :])
    elif "trainkit.cli" in rest:
        parse(_parser(), rest[rest.index("trainkit.cli") + 1 :])
    for file in files:
        if file.startswith("launch/"):
            _check_train(rest[rest.index(file) + 1 :])


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_parse(page):
    assert [fault for words in _commands(page) if (fault := _fault(words))] == []


def test_a_wrong_command_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Text:\n\n    trainkit train recipe=bert \\\n        recipe.batch_sice=8  # wrong\n\n"
        "```sh\nA=1 cat x | make it > y\n```\n"
    )
    assert list(_commands(page)) == [
        ["trainkit", "train", "recipe=bert", "recipe.batch_sice=8"],
        ["cat", "x"],
        ["make", "it"],
    ]
    with pytest.raises(trainkit.errors.ConfigError, match=r"recipe\.batch_sice") as error:
        _check_train(["recipe=bert", "recipe.batch_sice=8"])
    assert [fault for words in _commands(page) if (fault := _fault(words))] == [
        "['trainkit', 'train', 'recipe=bert', 'recipe.batch_sice=8']: " + str(error.value),
        "['make', 'it']: the Makefile has no such target",
    ]
    assert "no such command" in str(_fault(["trainkit", "trian"]))
    assert "no program of these pages" in str(_fault(["rm", "runs"]))
    assert "there is no ['launch/run.py']" in str(_fault(["torchrun", "launch/run.py"]))
    assert _fault(["trainkit", "topo", "--no-such-option"]) is not None
    assert _fault(["trainkit", "train", "recipe=bert"]) is None


# -- files of a page run as they stand ---------------------------------------------------------------------------------


def _write_files(page: Path, directory: Path) -> list[str]:
    """Writes each block of code that begins with a comment with a file's name; the names."""
    names = []
    for language, text in _blocks(page):
        if language in ("python", "yaml") and (name := re.match(r"(?:# @package _global_\n)?# (\S+\.\w+)\n", text)):
            names.append(name[1])
            (directory / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (directory / name[1]).write_text(text)
    return names


def _shell(script: str, directory: Path) -> str:
    """What `script` prints where python, torchrun and trainkit are on the PATH. Fails where a command does."""
    programs = directory / ".programs"
    programs.mkdir(exist_ok=True)
    for name, module in (("python", ""), ("torchrun", "-m torch.distributed.run"), ("trainkit", "-m trainkit.cli")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        (programs / name).chmod(0o755)
    own = {**environment(), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=directory, env=own, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _follow(page: Path, directory: Path) -> str:
    _write_files(page, directory)
    return _shell("\n".join(text for language, text in _blocks(page) if language == "sh"), directory)


def test_the_page_of_a_recipe(tmp_path):
    out = _follow(ROOT / "docs" / "add" / "recipe.md", tmp_path)
    assert "held_out_loss" in out
    for run in ("plane", "plain"):
        assert (tmp_path / "runs" / run / "checkpoints").is_dir()


def test_the_page_of_a_strategy(tmp_path):
    out = _follow(ROOT / "docs" / "add" / "strategy.md", tmp_path)
    assert out.count("largest difference") == 2


def test_the_page_of_a_tracker(tmp_path):
    _follow(ROOT / "docs" / "add" / "tracker.md", tmp_path)
    assert len((tmp_path / "runs/loop/metrics.csv").read_text().splitlines()) == 4


def test_the_page_of_ones_own_loop(tmp_path):
    """Its first file, `loop.py`, runs on 1, 2 and 4 processes in test_scripts."""
    page = ROOT / "docs" / "own_loop.md"
    assert _write_files(page, tmp_path) == ["loop.py", "engine.py", "quiet.py", "resume.py", "notebook.py"]
    out = _shell("python engine.py; python quiet.py; python resume.py; python resume.py; python notebook.py", tmp_path)
    (measured,) = re.findall(r"averaged weights: (\S+)", out)
    assert float(measured) < 0.5
    assert (tmp_path / "checkpoints" / "mine").is_dir()


def test_the_page_of_encryption(tmp_path):
    pytest.importorskip("pyrage")
    key = age_key(tmp_path)
    page = ROOT / "docs" / "encryption.md"
    assert _write_files(page, tmp_path) == ["open_checkpoint.py"]
    assert (tmp_path / "open_checkpoint.py").read_text().count("\n") <= 25
    encryption = trainkit.encryption.Encryption(recipients=[key.recipient])
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), checkpoint=encryption)
    module = torch.nn.Linear(3, 2)
    engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1), name="network")
    runtime.save(tmp_path / "checkpoint", network=engine)
    out = _shell(f"python open_checkpoint.py checkpoint {key.file}", tmp_path)
    assert "network.module/weight (2, 3)" in out and "network.module/bias (2,)" in out


# -- nothing is missing ------------------------------------------------------------------------------------------------


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


def test_readme_shows_a_part_of_the_loop_that_runs():
    (part,) = (text for language, text in _blocks(ROOT / "README.md") if language == "python")
    assert part in (ROOT / "docs" / "own_loop.md").read_text()


def test_every_public_name_is_in_the_api_reference():
    shown = re.findall(r"^::: (\S+)$", "\n".join(p.read_text() for p in (ROOT / "docs" / "api").glob("*.md")), re.M)
    assert {f"trainkit.{name}" for name in trainkit.__all__} <= set(shown)


def test_every_measured_question_is_on_the_page_of_performance():
    shown = re.findall(r"<!-- generated: results (\S+) -->", (ROOT / "docs" / "performance.md").read_text())
    assert sorted(shown) == sorted(results.questions())


def test_the_glossary_is_sorted_and_has_each_term_once():
    terms = re.findall(r"^(.+) \{ #\S+ \}$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(terms) > 50
    assert terms == sorted(set(terms))


@pytest.mark.parametrize("name", ["configuration", "doctests", "markdown", "sources"])
def test_what_the_generators_docstrings_show(name):
    failed, num_examples = doctest.testmod(import_module(f"docs.generators.{name}"))
    assert num_examples and not failed
