"""Predicts texts with a fine-tuned model.

Usage: `python -m trainkit_recipes.bert.finetuning.predict RUN "a text" ["its pair"]`
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli import add_trust, guarded
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.data import Example
    from trainkit_recipes.bert.finetuning.recipe import FineTuning

EXAMPLES = """\
examples:
  python -m trainkit_recipes.bert.finetuning.predict runs/reviews "The plot is thin and the actors are worse."
  python -m trainkit_recipes.bert.finetuning.predict runs/squad "Who wrote it?" "It was written by Emily."
  python -m trainkit_recipes.bert.finetuning.predict runs/reviews --file new.csv --output predictions.tsv
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trainkit_recipes.bert.finetuning.predict",
        description="Predicts one text or pair, or those of a file, whose columns are named as the training data's.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="RUN", help="a run directory or a checkpoint")
    parser.add_argument("text", nargs="?", help="a text; with question answering, the question")
    parser.add_argument("pair", nargs="?", help="the second text; with question answering, the context")
    parser.add_argument("--file", type=Path, help="a file of texts, in a format of data.path")
    parser.add_argument("--output", type=Path, help="a .tsv or .jsonl file; without, JSON lines on the standard output")
    add_trust(parser)
    options = parser.parse_args(arguments)
    if (options.text is None) == (options.file is None):
        parser.error("give a text, or --file")
    return guarded(lambda: _run(options), from_here=options.trust)


def _run(options: argparse.Namespace) -> None:
    if options.output is not None and options.output.suffix not in (".tsv", ".jsonl"):
        raise ConfigError(f"--output={options.output}: must be a .tsv or a .jsonl file")
    if options.output is not None and not options.output.absolute().parent.is_dir():
        raise ConfigError(f"--output={options.output}: there is no directory {options.output.parent}; make it first")
    examples = _examples(options)
    recipe = _load(options.path, options.trust)
    rows = recipe.predict(examples)
    if recipe.runtime.ranks.is_main:
        for what, count in recipe.encoder.facts().items():
            print(f"{what}: {count}", file=sys.stderr)
        _write(rows, options.output)
    recipe.runtime.close()


def _load(path: Path, trust: bool) -> "FineTuning":
    from trainkit import load_recipe
    from trainkit_recipes.bert.finetuning.recipe import FineTuning

    recipe = load_recipe(path, with_data=False, trust=trust)
    if not isinstance(recipe, FineTuning):
        recipe.runtime.close()
        raise ConfigError(f"{path} was trained by {type(recipe).__name__}; give a run of recipe=bert_finetune")
    return recipe


def _examples(options: argparse.Namespace) -> "Sequence[Example]":
    from trainkit.checkpoint import find, read_manifest
    from trainkit.data import Example, Examples

    if options.file is None:
        return [Example.given(options.text, options.pair)]
    columns = (read_manifest(find(options.path))["values"].get("config") or {}).get("data", {})
    known = {key: columns[key] for key in ("text", "pair", "label", "quotes") if key in columns}
    return Examples(path=options.file, **known).read(options.file)


def _write(rows: list[dict[str, Any]], output: Path | None) -> None:
    if output is None:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    aside = output.with_name(f".{output.name}")
    with aside.open("w", encoding="utf-8", newline="") as file:
        if output.suffix == ".tsv":
            writer = csv.DictWriter(file, list(rows[0]) if rows else [], delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    aside.replace(output)


if __name__ == "__main__":
    sys.exit(main())
