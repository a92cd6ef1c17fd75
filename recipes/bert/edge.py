"""What the bundle of a BERT for small devices holds, beside its ONNX file."""

import json
from collections.abc import Sequence

from trainkit.data import WordPiece
from trainkit.export import Bundle, OnnxModel


def text_bundle(
    model: OnnxModel,
    tokenizer: WordPiece,
    *,
    task: str,
    max_length: int,
    usage: str,
    example: str,
    labels: Sequence[str] = (),
) -> Bundle:
    """Describes a bundle whose inputs are lines of text.

    Args:
        model: with the inputs of BERT.
        tokenizer: of the model.
        task: as of `Bundle`.
        max_length: tokens of a text at most, [CLS] and [SEP] included.
        usage: as of `Bundle`.
        example: a line of the input.
        labels: the names of the outputs in their order, where they have names.
    """
    normalizer = tokenizer.normalizer
    text = {
        "max_length": max_length,
        "lowercase": normalizer.lowercase,
        "strip_accents": normalizer.strip_accents,
        "tokenize_chinese_chars": normalizer.tokenize_chinese_chars,
    }
    return Bundle(
        model=model,
        task=task,
        kind="texts",
        settings={"text": text},
        files={
            "vocabulary.txt": "\n".join(tokenizer.lines()),
            "labels.json": json.dumps([*labels], ensure_ascii=False),
        },
        usage=usage,
        example=example,
    )
