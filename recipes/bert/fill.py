"""Fills in masked words of sentences.

Usage: `python -m trainkit_recipes.bert.fill RUN "returns the [MASK] of two tensors."`
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.cli import add_trust, guarded
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

EXAMPLES = """\
examples:
  python -m trainkit_recipes.bert.fill runs/bert_quickstart "Close the [MASK] and release its resources."
  python -m trainkit_recipes.bert.fill runs/bert_quickstart      held-out text, and the accuracy beside baselines
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trainkit_recipes.bert.fill",
        description="Fills in sentences; without any, held-out text, with the accuracy beside baselines.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="a run directory or a checkpoint")
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE", help='such as "returns the [MASK] of x."')
    add_trust(parser)
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options), from_here=options.trust)


def _run(options: argparse.Namespace) -> None:
    recipe = _load(options.path, with_data=not options.sentences, trust=options.trust)
    if options.sentences:
        for sentence in options.sentences:
            print(recipe.fill(sentence))
    else:
        _print_report(recipe)
    recipe.runtime.close()


def _load(path: Path, with_data: bool, trust: bool) -> "MaskedLanguageModelling":
    from trainkit import load_recipe

    recipe = load_recipe(path, with_data=with_data, trust=trust)  # first: it says what to type without trainkit_recipes
    from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

    if not isinstance(recipe, MaskedLanguageModelling):
        recipe.runtime.close()
        raise ConfigError(
            f"{path} was trained by {type(recipe).__name__}, which fills in no sentences; give a BERT run"
        )
    return recipe


def _print_report(recipe: "MaskedLanguageModelling") -> None:
    from rich.console import Console
    from rich.table import Table

    report = recipe.report()
    table = Table(*report.columns, box=None)
    for name, accuracy in report.rows:
        table.add_row(name, f"{accuracy:.4f}")
    console = Console(highlight=False)
    console.print(report.examples, report.sentences, sep="\n\n", markup=False)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
