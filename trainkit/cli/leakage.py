"""`trainkit data audit`: what a training set gives away of a held-out one."""

import argparse
import difflib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import console, path_here, say
from trainkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.text import Text

    from trainkit.audit.given import Given
    from trainkit.audit.report import Leak, Report

FOUND = 1
_OPTIONS = re.compile(r"\bdata\.(path|field|text|label|group_by|time)\b")
_NAMES = {"path": "the path", "field": "--text", "text": "--text", "label": "--label", "group_by": "--group-by"}
_AROUND = 6  # words shown around a difference
EXAMPLES = """\
examples:
  trainkit data audit train.csv test.csv --label label --group-by user
  trainkit data audit ~/texts ~/test_texts --json leaks.json
  trainkit data audit ~/pictures/train ~/pictures/test --sheet pairs.png
  trainkit data audit train.jsonl test.jsonl --time date --corpus runs/bert

exit code: 0 nothing found, 1 leaks were found, 2 an error such as a file that cannot be read
"""


def add_parser(commands: Any) -> None:
    """Adds `audit` to `commands`, of argparse."""
    parser = commands.add_parser(
        "audit",
        help="what a training set gives away of a held-out one: duplicates, groups, time, labels",
        description="Compare a training set with a held-out one: exact and near-duplicates of texts and pictures, "
        "groups on both sides, training examples later than held-out ones, labels that one feature gives away, and "
        "held-out texts in a pre-training corpus.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "train", type=path_here, metavar="TRAIN", help="text, a table, or a folder or zip file of pictures"
    )
    parser.add_argument("held_out", type=path_here, metavar="HELD_OUT", help="the same, which results are measured on")
    parser.add_argument("--content", help="text, table or pictures; default: by what is there")
    parser.add_argument("--text", default="text", metavar="COLUMN", help="the column with the text; default: text")
    parser.add_argument("--label", metavar="COLUMN", help="with the label: looks for features that give it away")
    parser.add_argument(
        "--group-by", metavar="COLUMN", help="of which no value should be on both sides, such as a user"
    )
    parser.add_argument("--time", metavar="COLUMN", help="looks for training examples later than held-out ones")
    parser.add_argument(
        "--corpus", type=Path, metavar="PATH", help="pre-training text, or a run that was trained on it"
    )
    parser.add_argument("--minutes", type=float, help="end after so long, and say how much was compared; default: all")
    parser.add_argument("--show", type=int, default=5, metavar="N", help="pairs shown of each kind; default: 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write counts and up to 1,000 pairs of each kind")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write pairs of pictures side by side, as PNG")
    parser.set_defaults(run=_audit)


def _audit(arguments: argparse.Namespace) -> int:
    from trainkit.audit import audit
    from trainkit.audit.corpus import corpus_of, texts_of
    from trainkit.data.sides import Sides

    if arguments.minutes is not None and not arguments.minutes > 0:
        raise ConfigError(f"--minutes={arguments.minutes}: must be above 0")
    if arguments.show < 0:
        raise ConfigError(f"--show={arguments.show}: must be 0 or more")
    for option in ("json", "sheet"):
        _require_writable(option, getattr(arguments, option))
    try:
        train, held_out = _given(arguments, arguments.train), _given(arguments, arguments.held_out)
        if train.content != held_out.content:
            raise ConfigError(
                f"{train.path} is read as {train.content} and {held_out.path} as {held_out.content}: give two of a "
                f"kind, or --content"
            )
        if arguments.corpus is not None and train.content == "pictures":
            raise ConfigError(f"--corpus={arguments.corpus}: a corpus is text, and {train.path} holds pictures")
        corpus = None if arguments.corpus is None else texts_of(corpus_of(arguments.corpus.expanduser()))
        seconds = None if arguments.minutes is None else 60 * arguments.minutes
        report = audit(Sides(train=train.entries, held_out=held_out.entries), seconds=seconds, corpus=corpus)
    except DataError as error:
        raise DataError(_OPTIONS.sub(lambda found: _NAMES.get(found[1], f"--{found[1]}"), str(error))) from error
    _require_examples(train, held_out, report)
    _show(report, train, held_out, arguments.show)
    _write(report, arguments)
    print(f"\nnext: {_next(report, arguments, train.content)}")
    return 0 if report.is_clean else FOUND


def _given(arguments: argparse.Namespace, path: Path) -> "Given":
    from trainkit.audit.given import Given

    columns = {"text": arguments.text, "label": arguments.label, "time": arguments.time}
    return Given(path.expanduser(), arguments.content, group_by=arguments.group_by, **columns)


def _require_writable(option: str, path: Path | None) -> None:
    """Before the data are read."""
    if path is not None and (not path.expanduser().absolute().parent.is_dir() or path.expanduser().is_dir()):
        raise ConfigError(f"--{option}={path}: must be a file in a folder that exists")


def _require_examples(train: "Given", held_out: "Given", report: "Report") -> None:
    for given, num in ((train, report.num_train), (held_out, report.num_held_out)):
        if not num and report.is_complete:
            first = f" ({given.unreadable[0].name}: {given.unreadable[0].reason})" if given.unreadable else ""
            raise DataError(f"{given.path} holds nothing that can be read as {given.content}{first}")


# -- what is printed ---------------------------------------------------------------------------------------------------


def _show(report: "Report", train: "Given", held_out: "Given", num_shown: int) -> None:
    from rich.table import Table

    from trainkit.audit.report import KINDS

    out = console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in (("", "left"), ("training", "right"), ("held-out", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_row("examples compared", f"{report.num_train:,}", f"{report.num_held_out:,}")
    for kind, name in KINDS.items():
        numbers = report.train.get(kind, 0), report.held_out.get(kind, 0)
        if any(numbers) or kind in ("exact", "near"):
            table.add_row(name, *(f"{number:,}" if number else "0" for number in numbers))
    out.print(table)
    for one in report.given_away:
        print(f"  {one}")
    for given in (train, held_out):
        for file in given.unreadable[:3]:
            print(f"  not read: {file.name}: {file.reason}")
        if len(given.unreadable) > 3:
            print(f"  not read: {len(given.unreadable) - 3:,} more of {given.path}")
    for kind, name in KINDS.items():
        of_kind = [leak for leak in report.leaks if leak.kind == kind][:num_shown]
        if of_kind:
            print(f"\n{name}:")
        for leak in of_kind:
            for line in _lines(leak):
                out.print(line, soft_wrap=True)
    print(f"\n{report.line()}")
    for note in report.notes:
        print(note)


def _lines(leak: "Leak") -> "Iterator[Text]":
    from rich.text import Text

    similarity = "" if leak.similarity is None else f"{leak.similarity:.2f}  "
    yield Text(f"  {similarity}{leak.train or 'the corpus'}  |  {leak.held_out}")
    if leak.train_text is None or leak.held_out_text is None:
        return
    first, second = leak.train_text.split(), leak.held_out_text.split()
    if first == second or leak.kind not in ("exact", "near"):
        yield Text(f"      {' '.join(first[: 4 * _AROUND])}{' ...' if len(first) > 4 * _AROUND else ''}")
        return
    yield Text("    - ") + _marked(first, second, "[-", "-]", "red")
    yield Text("    + ") + _marked(second, first, "{+", "+}", "green")


def _marked(words: list[str], others: list[str], begin: str, end: str, colour: str) -> "Text":
    """The words around those that `others` lack, which are marked."""
    from rich.text import Text

    parts = []
    for operation, low, high, _, _ in difflib.SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if operation == "equal":
            cut = high - low > 2 * _AROUND
            shown = [*words[low : low + _AROUND], "...", *words[high - _AROUND : high]] if cut else words[low:high]
            parts.append(Text(" ".join(shown)))
        elif high > low:
            parts.append(Text(f"{begin}{' '.join(words[low:high])}{end}", style=f"bold {colour}"))
    return Text(" ").join(parts)


def _write(report: "Report", arguments: argparse.Namespace) -> None:
    from trainkit.audit.sheet import write_sheet

    for option in ("json", "sheet"):
        path = getattr(arguments, option)
        if path is None:
            continue
        path = path.expanduser()
        try:
            if option == "json":
                path.write_text(json.dumps(report.facts(), indent=2) + "\n")
                say(f"written: {path}")
            elif num := write_sheet(report.leaks, path):
                say(f"written: {path}, {num} pairs")
            else:
                say(f"--sheet={path}: there is no pair of pictures to show")
        except OSError as error:
            raise ConfigError(f"--{option}={path} cannot be written: {error.strerror or error}") from error


def _next(report: "Report", arguments: argparse.Namespace, content: str) -> str:
    """What to type."""
    again = ["trainkit", "data", "audit", str(arguments.train), str(arguments.held_out)]
    if not report.is_complete:
        return shlex.join([*again, f"--minutes={4 * arguments.minutes:g}"])
    if content == "table":
        keys = [
            f"data.path={arguments.train}",
            f"data.held_out_path={arguments.held_out}",
            f"data.text={arguments.text}",
        ]
        keys += [f"data.label={arguments.label}"] if arguments.label else []
        keys += [f"data.group_by={arguments.group_by}"] if arguments.group_by else []
        keys += [f"data.time={arguments.time}"] if arguments.time else []
        keys += ["on_leak=drop"] if not report.is_clean and report.can_be_dropped else []
        return shlex.join(["trainkit", "train", "recipe=bert_finetune", *keys])
    if report.is_clean:
        recipe = "progressive_gan" if content == "pictures" else "bert"
        return shlex.join(["trainkit", "train", f"recipe={recipe}", f"data.path={arguments.train}"])
    if arguments.json is None:
        sheet = ["--sheet", "pairs.png"] if content == "pictures" else []
        return shlex.join([*again, "--json", "leaks.json", *sheet])
    return f"remove what is named as `train` in {arguments.json} from {arguments.train}, then: {shlex.join(again)}"
