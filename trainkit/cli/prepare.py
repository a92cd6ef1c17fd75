"""`trainkit data prepare`: text or images, made ready once, in shards that are read by range."""

import argparse
import re
import shlex
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import say
from trainkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trainkit.data.shards.prepare import Prepared

_OPTIONS = re.compile(r"\bdata\.(?!path\b)([a-z_]+)")
EXAMPLES = """\
examples:
  trainkit data prepare ~/texts --to /data/texts
  trainkit data prepare ~/texts --to /data/texts vocab_file=vocab.txt held_out=0.01
  trainkit data prepare ~/pictures --to /data/pictures resolution=128 labels=folders
  trainkit data prepare ~/texts --to s3://bucket/texts
  trainkit data prepare rows.jsonl --to /data/rows field=body on_unreadable=skip --workers 8 --shard-mb 256

settings: any number of KEY=VALUE that decide what is made; the others are chosen when it is trained on
  text    field, vocab_file, vocab_size, lowercase, strip_accents, tokenize_chinese_chars, held_out, on_unreadable
  images  resolution, channels, held_out, max_pixels, max_file_mb, on_unreadable, fit, background, frames, labels

several machines: run the same command on each; those that see SOURCE and DEST share the work. One that was ended, even
by kill -9, goes on where it was; a second run of a finished one changes nothing. Credentials of a store are found where
its own tools look for them; nothing but the cache of what is read ($TRAINKIT_CACHE) lies on this disk then.
"""


def add_parser(commands: Any) -> None:
    """Adds `prepare` to `commands`, of argparse."""
    parser = commands.add_parser(
        "prepare",
        help="make text or images ready to train on, once, in shards for any number of ranks and machines",
        description="Tokenize text, or decode images at every resolution, into shards: files of one size with "
        "checksums, read by range from a disk or a store. Duplicates are removed and documents held out as without "
        "shards, and the samples and their order are the same.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="text or images, as data.path takes them")
    parser.add_argument("--to", required=True, metavar="DEST", help="a new folder for the shards, or its URL")
    parser.add_argument("--kind", choices=("text", "images"), help="default: by the names of the files")
    parser.add_argument("--shard-mb", type=int, default=64, metavar="N", help="size of a shard in MB; default: 64")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; default: one per core")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings of the data, such as vocab_size=8192"
    )
    parser.set_defaults(run=_prepare)


def _prepare(arguments: argparse.Namespace) -> None:
    from trainkit.data.shards.prepare import prepare

    try:
        prepared = prepare(
            arguments.source,
            arguments.to,
            kind=arguments.kind,
            shard_mb=arguments.shard_mb,
            num_workers=arguments.workers,
            settings=_settings(arguments.overrides),
        )
    except DataError as error:
        raise DataError(_OPTIONS.sub(r"\1", str(error))) from error
    if prepared.was_there:
        say(f"{arguments.to} holds these shards already: nothing to do")
    _show(prepared, arguments.to)


def _settings(words: list[str]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for word in words:
        name, is_given, value = word.removeprefix("data.").partition("=")
        if not is_given:
            raise ConfigError(f"{word!r} is not of the form KEY=VALUE, such as vocab_size=8192")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[name] = value
    return found


def _show(prepared: "Prepared", to: str) -> None:
    index = prepared.index
    for name, value in index.facts.items():
        print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")
    num_bytes = sum(layout.num_items * layout.item_bytes for layout in index.layouts.values())
    num_shards = sum(layout.num_shards for layout in index.layouts.values())
    print(f"{num_bytes / 1e6:,.1f} MB in {num_shards:,} files in {to}")
    for line in index.more["left_out"][:3]:
        print(f"left out: {line}")
    print(f"\ntrain on them:\n  {next_command(index, to)}")


def next_command(index: Any, to: str) -> str:
    """Returns the command that trains on shards.

    Args:
        index: of the shards.
        to: their folder, or its URL.
    """
    if index.kind == "text":
        return shlex.join(["trainkit", "train", "recipe=bert", f"data.path={to}"])
    keys = [f"recipe.{name}={index.settings[name]}" for name in ("resolution", "channels")]
    return shlex.join(["trainkit", "train", "recipe=progressive_gan", f"data.path={to}", *keys])
