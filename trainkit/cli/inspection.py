"""`trainkit data inspect`: what a folder of text or images holds, before anything trains on it."""

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli import text_inspection
from trainkit.cli.output import console, path_here, say, writing
from trainkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trainkit.data.inspection import Inspection

_OPTIONS = re.compile(r"\bdata\.(resolution|labels|fit)\b")
_ONLY = {
    "images": ("resolution", "labels", "fit"),
    "text": ("field", "vocab_file", "vocab_size", "repeated_in", "num_workers"),
}
EXAMPLES = """\
examples:
  trainkit data inspect ~/pictures
  trainkit data inspect ~/pictures --output report
  trainkit data inspect faces.zip --resolution 256 --json
  trainkit data inspect ~/animals --labels folders --fit smart
  trainkit data inspect ~/texts --output report
  trainkit data inspect news.jsonl --field body --vocab-file vocab.txt
"""


def add_parser(commands: Any) -> None:
    """Adds `inspect` to `commands`, of argparse."""
    parser = commands.add_parser(
        "inspect",
        help="what text or images hold: sizes, duplicates, languages, boilerplate, broken files",
        description="Read text or images once, as a run does, and say what is there. Of images: sizes, modes, classes, "
        "exact and near-duplicates (perceptual hashes), broken files, and what would be scaled up. Of text: documents, "
        "tokens, lengths, languages, exact and near-duplicates (MinHash), lines that many documents share, characters "
        "that the vocabulary lacks, the worst-tokenised lines, and damaged characters.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", type=path_here, metavar="PATH", help="text as of data.path, or a folder or zip of images"
    )
    parser.add_argument("--kind", help="text or images; default: that of which there are more files")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write report.html, report.json, contact_sheet.png")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    images = parser.add_argument_group("images")
    images.add_argument(
        "--resolution",
        type=int,
        metavar="N",
        help="that will be trained; default: the largest at which at most 10 %% of the images are scaled up",
    )
    images.add_argument("--labels", help="data.labels: auto, none, folders or json; default: auto")
    images.add_argument("--fit", help="data.fit: crop, smart, pad or stretch; default: crop")
    text_inspection.add_arguments(parser)
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    from trainkit.data.curate.kinds import kind_of

    kind, num_others = kind_of(arguments.path.expanduser(), arguments.kind)
    other = "images" if kind == "text" else "text"
    for name in _ONLY[other]:
        if (given := getattr(arguments, name)) is not None:
            option = name.replace("_", "-")
            raise ConfigError(
                f"--{option}={given}: is about {other}, and {arguments.path} is read as {kind}; set --kind"
            )
    if num_others and arguments.kind is None:
        say(f"{arguments.path} is read as {kind}; it also holds {num_others:,} files of {other}: --kind {other}")
    if kind == "text":
        text_inspection.inspect(arguments)
    else:
        _inspect_images(arguments)


def _inspect_images(arguments: argparse.Namespace) -> None:
    from trainkit.data.images import Images
    from trainkit.data.inspection import inspect
    from trainkit.data.inspection_report import write_report

    path = arguments.path.expanduser()
    checked = {} if arguments.resolution is None else {"resolution": arguments.resolution}
    try:
        images = Images(
            path=path,
            labels=arguments.labels or "auto",
            fit=arguments.fit or "crop",
            on_unreadable="skip",
            **checked,
        )
    except DataError as error:
        raise DataError(_OPTIONS.sub(r"--\1", str(error))) from error
    if arguments.output is not None:
        with writing(arguments.output):  # before all images are read
            arguments.output.expanduser().mkdir(parents=True, exist_ok=True)
    found = inspect(images, arguments.resolution)
    command = next_command(found, images)
    if arguments.json:
        print(json.dumps({**found.facts(), "next": command}, indent=2))
    else:
        _show(found, command)
    if arguments.output is not None:
        with writing(arguments.output):
            for written in write_report(found, arguments.output.expanduser(), command):
                say(f"written: {written}")


def next_command(found: "Inspection", images: Any) -> str:
    """Returns the command that trains on what was inspected.

    Args:
        found: by the inspection.
        images: the specification of the data.
    """
    side = found.resolution
    keys = [f"data.path={found.path}", f"data.resolution={side}", f"recipe.resolution={side}"]
    if {*found.modes} <= {"1", "L", "LA", "I;16"}:
        keys += ["data.channels=1", "recipe.channels=1"]
    if images.labels in ("folders", "none"):
        keys.append(f"data.labels={images.labels}")
    if images.fit != "crop":
        keys.append(f"data.fit={images.fit}")
    if found.unreadable:
        keys.append("data.on_unreadable=skip")
    return shlex.join(["trainkit", "train", "recipe=progressive_gan", *keys])


def _show(found: "Inspection", command: str) -> None:
    from rich.table import Table

    from trainkit.data.inspection_report import summary

    out = console()
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary(found):
        table.add_row(name, value)
    out.print(table)
    for file in found.unreadable[:10]:
        print(f"  {file.name}: {file.reason}")
    if found.images > 1:
        print(f"\ntrain on them:\n  {command}")
    else:
        print("\none image is too few to train on, as one is held out: add more")
