"""Models of words, without a network, for baselines."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.data import Example
from trainkit_recipes.bert.finetuning.samples import text_of


def majority(values: Sequence[Any]) -> Any:
    """Returns the most frequent value, the smallest of equally frequent ones."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


class TextModel:
    """A linear model on TF-IDF of words and pairs of words, by scikit-learn.

    Args:
        examples: to train on.
        targets: of the examples.
        estimator: of scikit-learn.
    """

    def __init__(self, examples: Sequence[Example], targets: Sequence[Any], estimator: Any) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline

        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORD)
        self._model = make_pipeline(vectorizer, estimator).fit([joined(example) for example in examples], targets)

    @classmethod
    def classifier(cls, examples: Sequence[Example], labels: Sequence[str]) -> "TextModel":
        """Trains a logistic regression."""
        from sklearn.linear_model import LogisticRegression

        return cls(examples, labels, LogisticRegression(C=10.0, max_iter=1000))

    @classmethod
    def regressor(cls, examples: Sequence[Example], targets: Sequence[float]) -> "TextModel":
        """Trains a ridge regression."""
        from sklearn.linear_model import Ridge

        return cls(examples, targets, Ridge(alpha=1.0))

    def predict(self, examples: Sequence[Example]) -> Any:
        """Returns the predictions of examples."""
        return self._model.predict([joined(example) for example in examples])


def cosines(train: Sequence[str], texts: Sequence[str], others: Sequence[str]) -> NDArray[np.float64]:
    """Returns the cosine of the TF-IDF vectors of texts and others, one by one; weights are learnt from `train`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=_WORD).fit(train)
    products = vectorizer.transform(texts).multiply(vectorizer.transform(others)).sum(axis=1)
    return np.asarray(products, np.float64).ravel()


def joined(example: Example) -> str:
    """Returns the texts of an example as one."""
    text = text_of(example.text)
    return text if example.pair is None else f"{text} {text_of(example.pair)}"


_WORD = r"(?u)\w+|[^\w\s]"  # a text of one letter or of signs alone has a word, too
