"""`trainkit data select`: keeps what is interesting of text or images, by rules."""

import argparse
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import console, path_here, rank, say
from trainkit.errors import ConfigError, require_at_least

if TYPE_CHECKING:
    from trainkit.data.curate.selection import Selection
    from trainkit.data.curate.text_selection import TextModel

ONLY: dict[str, tuple[str, ...]] = {
    "images": ("min_side", "form"),
    "text": (
        *("drop_damaged", "min_chars", "max_chars", "max_boilerplate", "repeated_in", "languages", "loss_of"),
        *("loss_between", "features", "field", "compress", "shard_mb", "on_unreadable"),
    ),
}
EXAMPLES = """\
examples:
  trainkit data select ~/texts --to ~/texts_selected --drop-exact --drop-near
  trainkit data select ~/texts --to ~/texts_selected --drop-damaged --min-chars 200 --max-boilerplate 0.5 --languages en
  trainkit data select ~/texts --to ~/texts_selected --loss-of runs/bert --loss-between 0.1 0.9 --dry-run
  trainkit data select ~/texts --to ~/texts_selected --drop-exact --diverse 0.8
  trainkit data select ~/texts --to ~/texts_selected --function mine:is_interesting --trust
  trainkit data select ~/pictures --to ~/pictures_selected --min-side 256 --drop-near --diverse 0.9

The rules are applied in the order of this page, and each looks at what those before have left. What is kept stays in
the order of the source, which is not changed. DEST is there whole or not at all; it holds selection.json with the
counts of each rule, and is data.path of the next training.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds `select` to `commands`, of argparse; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "select",
        help="keep what is interesting of text or images: drop duplicates, boilerplate, what a model knows",
        description="Drop documents or images by rules, and write the rest to another folder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", type=path_here, metavar="PATH", help="text as of data.path, or a folder or zip of images"
    )
    parser.add_argument("--to", type=Path, metavar="DEST", help="folder to write; must not exist")
    parser.add_argument("--dry-run", action="store_true", help="only show the counts")
    parser.add_argument("--json", action="store_true", help="print what selection.json holds")
    parser.add_argument("--kind", help="text or images; default: that of which there are more files")
    _add_rules(parser.add_argument_group("rules, in their order"))
    more = parser.add_argument_group("reading and writing")
    more.add_argument("--field", help="data.field: the key or column with the text; default: text")
    more.add_argument("--on-unreadable", help="what a text file that cannot be read does: error (default) or skip")
    more.add_argument("--compress", action="store_true", default=None, help="text: write .jsonl.zst instead of .jsonl")
    more.add_argument("--shard-mb", type=int, metavar="N", help="text: MB in a file; default: 256")
    more.add_argument("--form", help="images: copies (default), links (hard links), or list (only kept.txt with names)")
    more.add_argument("--num-workers", type=int, metavar="N", help="processes or threads; default: one per core")
    parser.set_defaults(run=_select)
    return parser


def _add_rules(rules: Any) -> None:
    rules.add_argument(
        "--drop-damaged",
        action="store_true",
        default=None,
        help="text: with U+FFFD, control characters, mojibake, HTML",
    )
    rules.add_argument("--min-chars", type=int, metavar="N", help="text: the fewest characters of a document")
    rules.add_argument("--max-chars", type=int, metavar="N", help="text: the most")
    rules.add_argument("--min-side", type=int, metavar="N", help="images: the fewest pixels of the shorter side")
    rules.add_argument("--drop-exact", action="store_true", help="with the same words, or pixels, as an earlier one")
    rules.add_argument("--drop-near", action="store_true", help="nearly the same as an earlier one (MinHash, or phash)")
    rules.add_argument(
        "--max-boilerplate",
        type=float,
        metavar="SHARE",
        help="text: of a document's characters, in lines that many documents have",
    )
    rules.add_argument("--repeated-in", type=int, metavar="N", help="of --max-boilerplate: how many; default: 10")
    rules.add_argument("--languages", metavar="CODES", help="text: keep these, such as en,de")
    rules.add_argument("--function", metavar="MODULE:NAME", help="of a text or a PIL.Image: keep, or a score; --trust")
    rules.add_argument(
        "--score-between", nargs=2, type=float, metavar=("LOW", "HIGH"), help="quantiles of that score to keep"
    )
    rules.add_argument("--loss-of", metavar="RUN", help="text: a run of recipe=bert, or one of its checkpoints")
    rules.add_argument(
        "--loss-between", nargs=2, type=float, metavar=("LOW", "HIGH"), help="quantiles of its masked loss to keep"
    )
    rules.add_argument("--diverse", type=float, metavar="SHARE", help="keep what is least like another one (SemDeDup)")
    rules.add_argument("--features", metavar="RUN", help="text, of --diverse: a run whose hidden states are compared")


def _select(arguments: argparse.Namespace) -> None:
    from trainkit.data.curate.kinds import kind_of

    if rank():
        raise ConfigError("trainkit data select runs in one process: type it without torchrun")
    if arguments.to is None and not arguments.dry_run:
        raise ConfigError("--to DEST is missing: give the folder to write, or --dry-run")
    if arguments.function is not None and not arguments.trust:
        raise ConfigError(f"--function={arguments.function} runs code of yours: type the same with --trust")
    require_at_least(1, "--", **{"shard-mb": arguments.shard_mb, "num-workers": arguments.num_workers})
    kind, num_others = kind_of(arguments.path.expanduser(), arguments.kind)
    other = "images" if kind == "text" else "text"
    for name in ONLY[other]:
        if getattr(arguments, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option}: is about {other}, and {arguments.path} is read as {kind}; set --kind")
    if num_others and arguments.kind is None:
        say(f"{arguments.path} is read as {kind}; it also holds {num_others:,} files of {other}: --kind {other}")
    selection = _of_text(arguments) if kind == "text" else _of_images(arguments)
    if arguments.json:
        print(selection.to_json(), end="")
    else:
        _show(selection, arguments)


def _of_text(arguments: argparse.Namespace) -> "Selection":
    from trainkit.data.curate.documents import SourceDocuments
    from trainkit.data.curate.rules import TextRules
    from trainkit.data.curate.text_selection import select_text

    given = {
        "repeated_in": arguments.repeated_in,
        "features": arguments.features,
        "drop_damaged": arguments.drop_damaged,
    }
    if arguments.repeated_in is not None and arguments.max_boilerplate is None:
        raise ConfigError(
            f"--repeated-in={arguments.repeated_in}: has no effect without --max-boilerplate; leave it out"
        )
    rules = TextRules(
        min_chars=arguments.min_chars,
        max_chars=arguments.max_chars,
        drop_exact=arguments.drop_exact,
        drop_near=arguments.drop_near,
        max_boilerplate=arguments.max_boilerplate,
        languages=tuple(filter(None, (arguments.languages or "").split(","))),
        function=arguments.function,
        score_between=_pair(arguments.score_between),
        loss_of=arguments.loss_of,
        loss_between=_pair(arguments.loss_between),
        diverse=arguments.diverse,
        **{name: value for name, value in given.items() if value is not None},
    )
    source = SourceDocuments(arguments.path.expanduser(), arguments.field or "text", arguments.on_unreadable or "error")
    with ExitStack() as stack:
        return select_text(
            source,
            rules,
            _target(arguments),
            loss_model=_model(stack, arguments, "loss-of", rules.loss_of),
            feature_model=_model(stack, arguments, "features", None if rules.features == "tfidf" else rules.features),
            compress=bool(arguments.compress),
            shard_mb=arguments.shard_mb or 256,
            num_workers=arguments.num_workers,
        )


def _of_images(arguments: argparse.Namespace) -> "Selection":
    from trainkit.data.curate.image_selection import select_images
    from trainkit.data.curate.rules import ImageRules

    rules = ImageRules(
        min_side=arguments.min_side,
        drop_exact=arguments.drop_exact,
        drop_near=arguments.drop_near,
        function=arguments.function,
        score_between=_pair(arguments.score_between),
        diverse=arguments.diverse,
    )
    return select_images(
        arguments.path.expanduser(),
        rules,
        _target(arguments),
        form=arguments.form or "copies",
        num_workers=arguments.num_workers,
    )


def _target(arguments: argparse.Namespace) -> Path | None:
    return None if arguments.dry_run else arguments.to.expanduser()


def _pair(given: Sequence[float] | None) -> tuple[float, float] | None:
    return None if given is None else (given[0], given[1])


def _model(stack: ExitStack, arguments: argparse.Namespace, option: str, run: str | None) -> "TextModel | None":
    if run is None:
        return None
    from trainkit.job import load_recipe

    recipe = load_recipe(run, ["strategy=single"], with_data=False, trust=arguments.trust)
    stack.callback(recipe.runtime.close)
    make = getattr(recipe, "text_model", None)
    if make is None:
        raise ConfigError(
            f"--{option}={run}: was trained by {type(recipe).__name__}, which reads no text; give a BERT run"
        )
    model: TextModel = make()
    return model


def _show(selection: "Selection", arguments: argparse.Namespace) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("rule", "before", "dropped", "left"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for step in selection.steps:
        table.add_row(step.rule, f"{step.before:,}", f"{step.dropped:,}", f"{step.before - step.dropped:,}")
    console().print(table)
    for name, before in selection.before.items():
        after = selection.after[name]
        print(f"{name}: {after:,} of {before:,} are kept ({after / max(1, before):.1%})")
    for unread in selection.unread[:10]:
        print(f"  not read: {unread['file']}: {unread['reason']}")
    if arguments.dry_run:
        print("nothing was written: --dry-run")
        return
    names = ", ".join(str(file["name"]) for file in selection.files[:3]) + (", ..." if len(selection.files) > 3 else "")
    print(f"written: {arguments.to} ({names}, selection.json)")
    recipe = "bert" if selection.kind == "text" else "progressive_gan"
    if selection.facts.get("form") != "list":
        print(
            f"\ntrain on them:\n  {shlex.join(['trainkit', 'train', f'recipe={recipe}', f'data.path={arguments.to}'])}"
        )
