"""`trainkit data inspect` of text."""

import argparse
import json
import shlex
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import console, say, writing
from trainkit.errors import ConfigError, require_at_least

if TYPE_CHECKING:
    from trainkit.data.curate.inspection import TextInspection

_NUM_LINES = 5  # of boilerplate and of the worst-tokenised lines
_LINE_CHARS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that are about text."""
    text = parser.add_argument_group("text")
    text.add_argument("--field", help="data.field: the key or column with the text; default: text")
    text.add_argument(
        "--vocab-file", metavar="FILE", help="count its tokens; default: a vocabulary learnt from a sample"
    )
    text.add_argument("--vocab-size", type=int, metavar="N", help="tokens of the one that is learnt; default: 4096")
    text.add_argument(
        "--repeated-in", type=int, metavar="N", help="documents that a line of boilerplate is in; default: 10"
    )
    text.add_argument("--num-workers", type=int, metavar="N", help="processes; default: one per core")


def inspect(arguments: argparse.Namespace) -> None:
    """Inspects text and prints what was found."""
    from pathlib import Path

    from trainkit.data.curate.inspection import inspect_text
    from trainkit.data.curate.text_report import write_text_report

    require_at_least(1, "--", **{"repeated-in": arguments.repeated_in, "num-workers": arguments.num_workers})
    require_at_least(100, "--", **{"vocab-size": arguments.vocab_size})
    path, vocab_file = arguments.path.expanduser(), arguments.vocab_file
    if vocab_file is not None and not Path(vocab_file).expanduser().is_file():
        raise ConfigError(f"--vocab-file={vocab_file}: must be a vocab.txt or tokenizer.json that exists")
    if vocab_file is not None and arguments.vocab_size is not None:
        raise ConfigError(f"--vocab-size={arguments.vocab_size}: has no effect with --vocab-file; leave one out")
    if arguments.output is not None:
        with writing(arguments.output):  # before everything is read
            arguments.output.expanduser().mkdir(parents=True, exist_ok=True)
    found = inspect_text(
        path,
        field=arguments.field or "text",
        vocab_file=None if vocab_file is None else Path(vocab_file).expanduser(),
        vocab_size=arguments.vocab_size or 4096,
        repeated_in=arguments.repeated_in or 10,
        num_workers=arguments.num_workers,
    )
    commands = next_commands(found, vocab_file)
    if arguments.json:
        print(json.dumps({**found.facts(), "next": commands}, indent=2))
    else:
        _show(found, commands)
    if arguments.output is not None:
        with writing(arguments.output):
            for written in write_text_report(found, arguments.output.expanduser(), commands):
                say(f"written: {written}")


def next_commands(found: "TextInspection", vocab_file: str | None = None) -> list[str]:
    """Returns what to type next: a selection, where there is something to drop, and the training.

    Args:
        found: by the inspection.
        vocab_file: that was given.
    """
    field = [] if found.field == "text" else ["--field", found.field]
    rules = ["--drop-exact"] if found.duplicates else []
    rules += ["--drop-near"] if found.near_duplicates else []
    rules += ["--drop-damaged"] if any(found.damage.values()) else []
    rules += ["--max-boilerplate", "0.5"] if found.repeated_lines else []
    skip = ["--on-unreadable", "skip"] if found.unreadable else []
    keys = [f"data.path={found.path}", *([f"data.field={found.field}"] if field else [])]
    keys += [f"data.vocab_file={vocab_file}"] if vocab_file is not None else []
    train = [shlex.join(["trainkit", "train", "recipe=bert", *keys])]
    if not rules and not skip:
        return train
    rules = rules or ["--drop-exact"]
    target = f"{found.path.rstrip('/')}_selected"
    select = shlex.join(["trainkit", "data", "select", found.path, "--to", target, *field, *skip, *rules])
    return [select] if skip else [*train, select]


def _show(found: "TextInspection", commands: list[str]) -> None:
    from trainkit.data.curate.text_report import histogram, summary

    out = console()
    out.print(_table(summary(found)))
    out.print("\ncharacters of a document:")
    out.print(_table(histogram(found), right=1))
    if found.repeated_lines:
        out.print("\nlines in most documents:")
        rows = [(f"{line.documents:,}", _plain(line.text)) for line in found.repeated_lines[:_NUM_LINES]]
        out.print(_table(rows, right=0))
    if found.worst_lines:
        out.print("\nlines with most tokens a word:")
        rows = [(f"{line.tokens_per_word:.1f}", _plain(line.text)) for line in found.worst_lines[:_NUM_LINES]]
        out.print(_table(rows, right=0))
    for file in found.unreadable[:10]:
        print(f"  {file.file}: {file.reason}")
    print("\nnext:")
    for command in commands:
        print(f"  {command}")


def _table(rows: list[Any], right: int | None = None) -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for place in range(len(rows[0])):
        is_last = place == len(rows[0]) - 1
        table.add_column(
            no_wrap=not is_last,
            overflow="fold" if is_last else "ellipsis",
            justify="right" if place == right else "left",
        )
    for row in rows:
        table.add_row(*row)
    return table


def _plain(text: str) -> str:
    """The beginning of a text that a terminal shows and does not obey."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= _LINE_CHARS else f"{shown[:_LINE_CHARS]} ..."
