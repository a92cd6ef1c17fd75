"""Fills in sentences: `python -m trainkit_recipes.bert.fill RUN "returns the [MASK] of two tensors."`"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.cli.main import add_trust, guarded
from trainkit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

_NUM_GUESSES = 3
EXAMPLES = """\
examples:
  python -m trainkit_recipes.bert.fill runs/bert_quickstart "Close the [MASK] and release its resources."
  python -m trainkit_recipes.bert.fill runs/bert_quickstart      held-out text, and the accuracy beside baselines
"""


@dataclass(frozen=True)
class Filled:
    """text: the sentence with the likeliest words.  guesses: for each [MASK], (token, probability), likeliest first."""

    text: str
    guesses: list[list[tuple[str, float]]]

    def __str__(self) -> str:
        options = ("  ".join(f"{token} {100 * share:.0f} %" for token, share in mask) for mask in self.guesses)
        return f"{self.text}   ({' | '.join(options)})"


def fill(recipe: "MaskedLanguageModelling", sentence: str) -> Filled:
    """The model's guesses for each [MASK] in `sentence`, each made as if the others stayed masked.

    Collective: every rank calls. Raises DataError for a sentence without [MASK], or one that is too long.
    """
    import torch

    tokenizer, module = recipe.tokenizer, recipe.model.module
    tokens = [tokenizer.start, *tokenizer.encode(sentence), tokenizer.end]
    places = [place for place, token in enumerate(tokens) if token == tokenizer.mask]
    longest = recipe.architecture.max_length
    if not places:
        raise DataError(f"there is no [MASK] in {sentence!r}; write [MASK] where a word is to be guessed")
    if len(tokens) > longest:
        raise DataError(f"{len(tokens)} tokens in {sentence[:40]!r} ..., and the model takes {longest}; shorten it")
    module.eval()
    try:
        with torch.no_grad():
            logits_1KV = recipe.model(
                torch.tensor([tokens], device=recipe.runtime.device),
                torch.tensor([places], device=recipe.runtime.device),
            )
    finally:
        module.train()
    shares_KN, best_KN = logits_1KV[0].float().softmax(dim=-1).topk(_NUM_GUESSES, dim=-1)
    for place, best_N in zip(places, best_KN.tolist(), strict=True):
        tokens[place] = best_N[0]
    return Filled(
        tokenizer.decode(tokens[1:-1]),
        [
            [(tokenizer.token(token), share) for token, share in zip(best_N, shares_N, strict=True)]
            for best_N, shares_N in zip(best_KN.tolist(), shares_KN.tolist(), strict=True)
        ],
    )


def main(arguments: list[str] | None = None) -> int:
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
            print(fill(recipe, sentence))
    else:
        _print_report(recipe)
    recipe.runtime.close()


def _load(path: Path, with_data: bool, trust: bool) -> "MaskedLanguageModelling":
    from trainkit import load_recipe
    from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

    recipe = load_recipe(path, with_data=with_data, trust=trust)
    if not isinstance(recipe, MaskedLanguageModelling):
        recipe.runtime.close()
        raise ConfigError(
            f"{path} was trained by {type(recipe).__name__}, which fills in no sentences; give a BERT run"
        )
    return recipe


def _print_report(recipe: "MaskedLanguageModelling") -> None:
    from rich.console import Console
    from rich.table import Table

    from trainkit_recipes.bert.report import Report

    report = Report.of(recipe)
    table = Table(*report.columns, box=None)
    for name, accuracy in report.rows:
        table.add_row(name, f"{accuracy:.4f}")
    console = Console(highlight=False)
    console.print(report.examples, report.sentences, sep="\n\n", markup=False)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
