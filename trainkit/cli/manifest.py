"""`trainkit manifest`: what a run was made of; signs it, and writes a container from it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainkit.cli.output import console, say

EXAMPLES = {
    "show": "trainkit manifest show runs/bert",
    "sign": "trainkit manifest sign runs/bert --key ~/.ssh/id_ed25519",
    "verify": "trainkit manifest verify runs/bert --key colleagues.pub",
    "container": "trainkit manifest container runs/bert container",
}


def add_parser(commands: Any) -> None:
    """Adds `manifest` and its subcommands to `commands`, of argparse."""
    manifest = commands.add_parser(
        "manifest",
        help="what a run was made of: show it, sign it, write a container from it",
        description="Show what a run was made of, sign it, or write a container from it.",
        epilog="\n  ".join(["examples:", *EXAMPLES.values()]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own = manifest.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], None], description: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = own.add_parser(
            name,
            help=description[0].lower() + description[1:].partition(".")[0],
            description=description,
            epilog=f"examples:\n  {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("path", type=Path, metavar="RUN", help="a run directory")
        parser.set_defaults(run=run)
        return parser

    add("show", _show, "Show what a run was made of.")
    sign = add("sign", _sign, "Sign the manifest of a run by an SSH key. The signature is as ssh-keygen -Y writes it.")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="a private ssh-ed25519 key")
    verify = add("verify", _verify, "Verify the signature of a run's manifest. Exit code 2: it is not valid.")
    verify.add_argument(
        "--key", type=Path, metavar="FILE", help="public keys, one a line, any of which may have signed; default: any"
    )
    container = add("container", _container, "Write a Dockerfile and an MLCube descriptor from a run's manifest.")
    container.add_argument("directory", type=Path, metavar="DIR", help="is made")


def _show(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    from trainkit import manifest

    found = manifest.read(arguments.path.expanduser())
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(found):
        table.add_row(name, value)
    console().print(table)


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    code, environment, training = found["code"], found["environment"], found["training"]
    states = code.get("repositories") or {}
    commits = [
        f"{str(state.get('commit'))[:12]}{'' if state.get('is_clean') else ' with changes'} of {root}"
        for root, state in states.items()
        if isinstance(state, dict)
    ]
    cpu, data = found["hardware"].get("cpu") or {}, found["data"]
    counts = ", ".join(f"{name} {value}" for name, value in (data.get("counts") or {}).items())
    facts = [
        ("run", f"{found['run'].get('name')}, {found['run'].get('created')}, {found['run'].get('status')}"),
        ("code", f"trainkit {(code.get('trainkit') or {}).get('version')}; {', '.join(commits) or 'no repository'}"),
        ("modules", f"{len(code.get('modules') or {}):,}"),
        ("packages", f"{len(environment.get('packages') or {}):,}, Python {environment.get('python')}"),
        ("machine", f"{found['hardware'].get('host')}, {cpu.get('model')}, {cpu.get('capability')}"),
        (
            "processes",
            f"{training.get('num_ranks')} of {training.get('strategy')}, {training.get('num_threads')} threads",
        ),
        ("precision", str(training.get("precision_obtained"))),
        ("seed", f"{training.get('seed')}, deterministic {training.get('deterministic')}"),
        ("data", counts or "not known"),
    ]
    facts += [(f"fingerprint of {name}", str(value)) for name, value in (data.get("fingerprints") or {}).items()]
    if (audit := data.get("audit")) and isinstance(audit, dict):
        facts.append(("audit", str(audit.get("line"))))
    for start in found.get("history") or []:
        where = f"from {start.get('resumed')}" if start.get("resumed") else "from the start"
        last = f"to step {start['last_step']}, {start.get('status')}" if "last_step" in start else start.get("status")
        facts.append(("start", f"{start.get('started')}, {start.get('user')}: {where}, {last}"))
    return facts


def _sign(arguments: argparse.Namespace) -> None:
    from trainkit.manifest import signature

    say(f"signed: {signature.sign(_file(arguments.path), arguments.key.expanduser())}")


def _verify(arguments: argparse.Namespace) -> None:
    from trainkit.manifest import signature

    key = None if arguments.key is None else arguments.key.expanduser()
    fingerprint = signature.verify(_file(arguments.path), key)
    whose = "a key of yours" if key is not None else "whose key that is, is for you to know; --key FILE checks it"
    print(f"valid, signed by {fingerprint}: {whose}")


def _file(path: Path) -> Path:
    from trainkit import manifest

    run = path.expanduser()
    manifest.read(run)
    return run / manifest.FILE_NAME


def _container(arguments: argparse.Namespace) -> None:
    from trainkit.reproduction.container import write_container

    for line in write_container(arguments.path.expanduser(), arguments.directory.expanduser()):
        print(line)
