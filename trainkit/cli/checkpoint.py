"""`trainkit checkpoint`: lists, verifies, exports and compares checkpoints. Reading one runs no code from it."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from trainkit.cli.output import say
from trainkit.errors import CheckpointError, nearest

NUM_SHOWN = 20
EXAMPLES = {
    "ls": ["trainkit checkpoint ls s3://bucket/runs/bert", "trainkit checkpoint ls runs/bert"],
    "fetch": ["trainkit checkpoint fetch s3://bucket/runs/bert --to runs/bert"],
    "show": [
        "trainkit checkpoint show runs/bert",
        "trainkit checkpoint show runs/bert/checkpoints/step_00001000 --tensors",
    ],
    "verify": ["trainkit checkpoint verify runs/bert"],
    "consolidate": [
        "trainkit checkpoint consolidate runs/bert --output weights.safetensors",
        "trainkit checkpoint consolidate runs/faces --engine G --part average --output generator.safetensors",
    ],
    "diff": ["trainkit checkpoint diff runs/bert/checkpoints/step_00001000 runs/bert"],
}


def add_parser(commands: Any) -> None:
    """Adds `checkpoint` and its subcommands to `commands`, of argparse."""
    checkpoint = commands.add_parser(
        "checkpoint",
        help="list, show, verify, export or compare checkpoints",
        description="List, show, verify, export or compare checkpoints. PATH: a run directory, or one of its "
        "checkpoints/step_*; for a run directory, commands on one checkpoint use the newest.",
        epilog=_examples(lines[-1] for lines in EXAMPLES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own = checkpoint.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Any, help: str, description: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = own.add_parser(
            name,
            help=help,
            description=description,
            epilog=_examples(EXAMPLES[name]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "--identity",
            metavar="FILE",
            help="a file with the secret key that reads encrypted checkpoints; default: that of TRAINKIT_IDENTITY",
        )
        parser.set_defaults(run=partial(_with_identity, run))
        return parser

    ls = add("ls", _ls, "list a run's checkpoints", "List a run's checkpoints: step, time, size and metrics.")
    ls.add_argument("path", metavar="PATH", help="a run directory, or the URL of its copies in a store")
    fetch = add(
        "fetch",
        _fetch,
        "copy one from a store",
        "Copy a checkpoint, of a run the newest, and check every byte. DIRECTORY is a run directory then.",
    )
    fetch.add_argument("url", metavar="URL", help="what copy_to was, or one checkpoint in it")
    fetch.add_argument("--to", type=Path, required=True, metavar="DIRECTORY")
    show = add("show", _show, "the contents of a checkpoint", "Show the contents of a checkpoint.")
    show.add_argument("path", type=Path, metavar="PATH")
    show.add_argument("--tensors", action="store_true", help="list all tensors by name, with shape and dtype")
    verify = add(
        "verify",
        _verify,
        "check the checksums",
        "Check the checksums of all files; with the key of an encrypted checkpoint, also that nobody changed them; "
        "exit code 1: a file is damaged.",
    )
    verify.add_argument("path", type=Path, metavar="PATH")
    consolidate = add(
        "consolidate",
        _consolidate,
        "export one safetensors file",
        "Write one safetensors file with the names of the module's parameters; with several engines, ENGINE.name.",
    )
    _add_export(consolidate)
    diff = add("diff", _diff, "compare two", "Compare two checkpoints, tensor by tensor; exit code 1: they differ.")
    diff.add_argument("a", type=Path, metavar="A")
    diff.add_argument("b", type=Path, metavar="B")


def _add_export(consolidate: argparse.ArgumentParser) -> None:
    """Adds what is exported, and where to."""
    consolidate.add_argument("path", type=Path, metavar="PATH")
    consolidate.add_argument("--output", type=Path, required=True, metavar="FILE")
    consolidate.add_argument(
        "--recipient",
        action="append",
        default=[],
        metavar="KEY",
        help="encrypt FILE for the owner of this public key, age1... or 'ssh-ed25519 AAAA...'; may be repeated",
    )
    consolidate.add_argument("--engine", help="only this engine")
    consolidate.add_argument(
        "--part", default="module", choices=("module", "average", "optimizer"), help="default: module, the weights"
    )


def _examples(lines: Iterable[str]) -> str:
    return "\n  ".join(["examples:", *lines])


def _with_identity(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    from trainkit.encryption import use_identity

    use_identity(arguments.identity)
    return run(arguments)


# -- commands ----------------------------------------------------------------------------------------------------------


def _ls(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from trainkit import checkpoint
    from trainkit.checkpoint.fetching import found_at, read_copied
    from trainkit.public_url import is_url

    table = Table("checkpoint", "step", "samples", "written", "size", "metrics")
    if is_url(arguments.path):
        for copy in reversed(found_at(arguments.path)):
            name = copy.shown.rstrip("/").rpartition("/")[2]
            table.add_row(name, *_facts(lambda copy=copy: read_copied(copy, checkpoint.read_outside), None))  # type: ignore[misc]
    for path in _all(Path(arguments.path)) if not is_url(arguments.path) else ():
        table.add_row(path.name, *_facts(lambda path=path: checkpoint.read_outside(path), path))  # type: ignore[misc]
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
    return 0


def _facts(read: Callable[[], dict[str, Any]], path: Path | None) -> list[str]:
    """The cells that a manifest fills; `path`: of the checkpoint, None in a store, which tells no time."""
    try:
        manifest = read()
    except CheckpointError as error:
        return ["", "", "", "", str(error)]
    values = manifest["values"]
    written = datetime.fromtimestamp((path / "manifest.json").stat().st_mtime) if path is not None else None
    return [
        str(values.get("step", "")),
        f"{manifest['position']:,}",
        f"{written:%Y-%m-%d %H:%M:%S}" if written is not None else "",
        _size(_num_bytes(manifest)) + (" encrypted" if "encrypted_for" in manifest else ""),
        ", ".join(f"{name} {value:.6g}" for name, value in (values.get("metrics") or {}).items()),
    ]


def _fetch(arguments: argparse.Namespace) -> int:
    from trainkit.checkpoint.fetching import FOLDER, fetch_newest, found_at

    directory = fetch_newest(found_at(arguments.url), arguments.to.expanduser() / FOLDER, say)
    print(f"{directory}: whole; next: trainkit evaluate {arguments.to}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from trainkit import checkpoint
    from trainkit.encryption import identities_in_use
    from trainkit.planning.reduce_plan import ReducePlan

    path = checkpoint.find(arguments.path.expanduser(), say)
    manifest = checkpoint.read_outside(path)
    owners = manifest.get("encrypted_for")
    if owners and not (identities_in_use() or arguments.tensors):
        _show_outside(path, manifest)
        return 0
    manifest = checkpoint.read_manifest(path)
    values = manifest["values"]
    print(f"{path}: {_size(_num_bytes(manifest))} in {len(manifest['files'])} files, by torch {manifest['torch']}")
    if owners:
        print(f"encrypted for {', '.join(owners)}")
    print(f"step {values.get('step', 'unknown')}, {manifest['position']:,} samples")
    for name, value in (values.get("metrics") or {}).items():
        print(f"{name} {value:.6g}")
    parts: dict[str, list[dict[str, Any]]] = {}
    for name, entry in manifest["tensors"].items():
        parts.setdefault(name.partition("/")[0], []).append(entry)
    for part, entries in parts.items():
        types = ", ".join(sorted({entry["dtype"] for entry in entries}))
        print(f"{part}: {len(entries)} tensors, {sum(_numel(entry) for entry in entries):,} elements ({types})")
    for engine, scalars in manifest["engines"].items():
        plain = {name: value for name, value in scalars.items() if name != "comm"}
        print(f"{engine}: " + ", ".join(f"{name} {value}" for name, value in plain.items()))
        if scalars.get("comm"):
            print(f"{engine}: all-reduce plan {ReducePlan.from_dict(scalars['comm']['plan']).describe()}")
    strategy = (values.get("config") or {}).get("strategy")
    if strategy:
        print(f"strategy: {strategy.get('_target_', strategy) if isinstance(strategy, dict) else strategy}")
    if arguments.tensors:
        for name, entry in manifest["tensors"].items():
            print(f"  {name} {entry['dtype']} {entry['shape']}")
    return 0


def _show_outside(path: Path, manifest: dict[str, Any]) -> None:
    """What can be said of an encrypted checkpoint without a key."""
    values = manifest["values"]
    print(f"{path}: {_size(_num_bytes(manifest))} in {len(manifest['files'])} files")
    print(f"encrypted for {', '.join(manifest['encrypted_for'])}: the rest needs --identity FILE")
    print(f"step {values.get('step', 'unknown')}, {manifest['position']:,} samples")
    for name, value in (values.get("metrics") or {}).items():
        print(f"{name} {value:.6g}")


def _verify(arguments: argparse.Namespace) -> int:
    from trainkit import checkpoint

    num_damaged = 0
    for path in _all(arguments.path):
        try:
            manifest = checkpoint.read_outside(path)
            checkpoint.verify(path, manifest["files"])
            print(f"{path}: whole{_authenticated(path, manifest)}")
        except CheckpointError as error:
            num_damaged += 1
            print(error)
    return 1 if num_damaged else 0


def _authenticated(path: Path, manifest: dict[str, Any]) -> str:
    """What the key in use says of an encrypted checkpoint, as the end of a line; empty for others."""
    from trainkit import checkpoint
    from trainkit.encryption import identities_in_use

    if "encrypted_for" not in manifest:
        return ""
    if not identities_in_use():
        return " by its checksums; whether nobody changed them needs --identity FILE"
    checkpoint.authenticate(path)
    return ", and as it was encrypted"


def _consolidate(arguments: argparse.Namespace) -> int:
    from trainkit import checkpoint
    from trainkit.encryption import recipients_of

    recipients = recipients_of(arguments.recipient, "--recipient")
    path = checkpoint.find(arguments.path.expanduser(), say)
    manifest = checkpoint.read_manifest(path)
    engines = list(manifest["engines"])
    if arguments.engine is not None and arguments.engine not in engines:
        raise CheckpointError(
            f"--engine={arguments.engine}: {path} holds {', '.join(engines)}.{nearest(arguments.engine, engines)}"
        )
    wanted = [arguments.engine] if arguments.engine else engines
    checkpoint.verify(path, manifest["files"])
    prefixes = {f"{engine}.{arguments.part}/": "" if len(wanted) == 1 else f"{engine}." for engine in wanted}
    tensors = checkpoint.read_whole(
        path, [name for name in manifest["tensors"] if name.startswith(tuple(prefixes))], manifest
    )
    if not tensors:
        raise CheckpointError(f"--part={arguments.part}: {path} holds none of {', '.join(wanted)}")
    named = {}
    for name, tensor in tensors.items():
        head, _, own = name.partition("/")
        named[prefixes[f"{head}/"] + own] = tensor
    for engine in wanted if arguments.part != "optimizer" else ():
        prefix = prefixes[f"{engine}.{arguments.part}/"]
        # Twice in the file: a strict load_state_dict expects both names.
        for alias, own in manifest["engines"][engine].get("aliases", {}).items():
            named[prefix + alias] = named[prefix + own]
    output = arguments.output.expanduser()
    if recipients and output.suffix != ".age":
        output = output.with_name(f"{output.name}.age")
    checkpoint.write_one_file(output, named, recipients)
    print(f"{len(named)} tensors of {path} were written to {output}")
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from trainkit import checkpoint

    paths = [checkpoint.find(path.expanduser(), say) for path in (arguments.a, arguments.b)]
    a, b = (checkpoint.read_manifest(path) for path in paths)
    for manifest in (a, b):
        for scalars in manifest["engines"].values():
            scalars.pop("comm", None)  # a property of the machines
    lines = [f"{key}: {a[key]} and {b[key]}" for key in ("position", "engines") if a[key] != b[key]]
    for name in sorted(a["tensors"].keys() ^ b["tensors"].keys()):
        lines.append(f"{name}: only in {paths[0] if name in a['tensors'] else paths[1]}")
    common = [name for name in a["tensors"] if name in b["tensors"]]
    differences = (_difference(name, paths, (a, b)) for name in common)
    lines += [line for line in differences if line is not None]
    print(f"a: {paths[0]}\nb: {paths[1]}")
    for line in lines[:NUM_SHOWN]:
        print(line)
    if len(lines) > NUM_SHOWN:
        print(f"and {len(lines) - NUM_SHOWN} more")
    print("they are equal" if not lines else f"{len(lines)} differences; {len(common)} tensors are in both")
    return 1 if lines else 0


def _difference(name: str, paths: Sequence[Path], manifests: Sequence[dict[str, Any]]) -> str | None:
    """How a tensor of two checkpoints differs; None where it does not."""
    from trainkit import checkpoint

    a, b = (manifest["tensors"][name] for manifest in manifests)
    if (a["shape"], a["dtype"]) != (b["shape"], b["dtype"]):
        return f"{name}: {a['dtype']} {a['shape']} and {b['dtype']} {b['shape']}"
    x, y = (
        checkpoint.read_whole(path, [name], manifest)[name].double()
        for path, manifest in zip(paths, manifests, strict=True)
    )
    if x.equal(y):
        return None
    largest = float((x - y).abs().max())
    relative = largest / max(float(x.abs().max()), float(y.abs().max()), 1e-300)
    return f"{name}: max|a-b| {largest:.3g}, over max|a|, |b| {relative:.3g}"


# -- inside ------------------------------------------------------------------------------------------------------------


def _all(path: Path) -> list[Path]:
    """The checkpoint at `path`, or all checkpoints of the run there, oldest first."""
    from trainkit.checkpoint.of_a_run import candidates

    found = candidates(path.expanduser())[::-1]
    if not found:
        raise CheckpointError(f"{path} holds no checkpoint; give a run directory or a checkpoints/step_* in one")
    return found


def _numel(entry: dict[str, Any]) -> int:
    product = 1
    for size in entry["shape"]:
        product *= size
    return product


def _num_bytes(manifest: dict[str, Any]) -> int:
    return sum(entry["num_bytes"] for entry in manifest["files"].values())


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} GB"
