"""`trainkit card`: the model card of a run, as Hugging Face reads it."""

import argparse
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainkit.cli.output import say, writing
from trainkit.errors import ConfigError

MANIFEST_FILE = "manifest.json"
_PRIVATE = ("user", "host", "hostname", "command", "directory")  # of one person or machine: a card is published
EXAMPLES = """\
examples:
  trainkit card runs/bert                             writes runs/bert/README.md
  trainkit card runs/bert --output bert/README.md
"""


def add_parser(commands: Any) -> None:
    """Adds `card` to `commands`, of argparse."""
    parser = commands.add_parser(
        "card",
        help="write the model card of a run, README.md",
        description="Write a README.md in the form of Hugging Face: whether the model beats its baselines, its metrics "
        "with intervals, what it was trained on and how, and what the audit of the data has found. Its license and "
        "what it is meant for are left to you, and marked as such.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="RUN", help="a run directory, or one of its checkpoints/step_*")
    parser.add_argument("--output", metavar="FILE", help="the file; default: README.md in the run directory")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from trainkit.checkpoint import find, read_manifest, write_text
    from trainkit.export.card import run_card
    from trainkit.export.export import facts_of_run

    path = Path(arguments.path).expanduser()
    directory = find(path / "checkpoints" if (path / "checkpoints").is_dir() else path, say)
    run_dir = directory.resolve().parent.parent
    manifest = read_manifest(directory)
    if "config" not in manifest["values"]:
        raise ConfigError(f"{directory} was saved by a loop of your own: a card needs a run of `trainkit train`")
    output = Path(arguments.output).expanduser() if arguments.output else run_dir / "README.md"
    if output.is_dir():
        raise ConfigError(f"--output={output} is a directory: give a file, such as {output / 'README.md'}")
    known = _manifest(run_dir / MANIFEST_FILE)
    facts = facts_of_run(run_dir.name, manifest, environment=_environment(known))
    recipe = str((facts.config.get("recipe") or {}).get("_target_", "a recipe of its own"))
    with writing(output):
        write_text(output, run_card(facts, recipe=recipe, reproducible=bool(known)))
    say(f"the model card is in {output}; fill in what is marked TODO, and the license")


def _manifest(path: Path) -> Mapping[str, Any]:
    """What manifest.json of a run directory says; empty where there is none."""
    known: Any = None
    with suppress(FileNotFoundError):
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON ({error}): remove it, and the card goes without") from error
    return known if isinstance(known, Mapping) else {}


def _environment(known: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of its parts on code, environment and hardware."""
    return {
        f"{part}: {name}": value
        for part in ("code", "environment", "hardware")
        if isinstance(known.get(part), Mapping)
        for name, value in known[part].items()
        if isinstance(value, str | int | float) and name not in _PRIVATE and not str(value).startswith(("/", "~"))
    }
