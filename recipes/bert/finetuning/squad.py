"""The scores of SQuAD: answers are compared as the official script of version 2.0 does."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Returns the text in lower case, without punctuation, articles and extra white space.

    Example:
        >>> normalize("  The Cat's  hat!")
        'cats hat'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, prediction: str) -> float:
    """Returns 1 where both are equal when normalized, else 0."""
    return float(normalize(answer) == normalize(prediction))


def f1(answer: str, prediction: str) -> float:
    """Returns F1 over the words that both share; where one has none, whether both have none.

    Example:
        >>> f1("the black cat", "a black dog")
        0.5
    """
    right, predicted = normalize(answer).split(), normalize(prediction).split()
    if not right or not predicted:
        return float(right == predicted)
    num_same = (Counter(right) & Counter(predicted)).total()
    if num_same == 0:
        return 0.0
    precision, recall = num_same / len(predicted), num_same / len(right)
    return 2 * precision * recall / (precision + recall)


def scores(answers: Sequence[Sequence[str]], predictions: Iterable[str]) -> dict[str, float]:
    """Returns the means of the best exact match and F1 over the answers of each question, in [0, 1].

    Args:
        answers: of each question; empty: it has no answer, and the right prediction is an empty text.
        predictions: one for each question.

    Returns:
        `exact_match` and `f1`.
    """
    each = scores_of_each(answers, predictions)
    return {name: sum(values) / len(values) for name, values in each.items()}


def scores_of_each(answers: Sequence[Sequence[str]], predictions: Iterable[str]) -> dict[str, list[float]]:
    """Returns the same of each question; see `scores`."""
    exact, overlap = [], []
    for given, prediction in zip(answers, predictions, strict=True):
        valid = [answer for answer in given if normalize(answer)] or [""]  # as the official script
        exact.append(max(exact_match(answer, prediction) for answer in valid))
        overlap.append(max(f1(answer, prediction) for answer in valid))
    return {"exact_match": exact, "f1": overlap}
