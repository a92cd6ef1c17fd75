"""A directory that transformers reads: config.json, weights, tokenizer and model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trainkit.data import WordPiece
from trainkit.export import Export, model_card
from trainkit_recipes.bert.hugging_face.config import config_of, require_expressible
from trainkit_recipes.bert.hugging_face.names import to_hugging_face
from trainkit_recipes.bert.model import Bert

_SPECIAL = {
    "pad_token": "pad",
    "unk_token": "unknown",
    "cls_token": "start",
    "sep_token": "end",
    "mask_token": "mask",
}


def write_directory(
    export: Export,
    encoder: Bert,
    tokenizer: WordPiece,
    *,
    model_class: str,
    head: Mapping[str, Tensor],
    text: str,
    pipeline_tag: str,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes a directory for `from_pretrained` of transformers.

    The vocabulary is cut to the number of tokens: what pads it is trainkit's own, and a tokenizer and its model must
    have one size for whoever adds tokens to both.

    Args:
        export: where to, and of which run.
        encoder: of the model.
        tokenizer: of the model.
        model_class: of transformers, such as `BertForMaskedLM`.
        head: weights of the rest, by the names of transformers.
        text: of the model card: what it is, and how it is used.
        pipeline_tag: what a site calls the task.
        settings: further keys of config.json, such as `id2label`.

    Raises:
        ConfigError: for an architecture that Hugging Face's BERT cannot express.
    """
    from trainkit.checkpoint import write_one_file  # imports torch.distributed.checkpoint

    require_expressible(encoder.architecture)  # first: weights of another architecture have no names there
    weights = {**to_hugging_face(encoder.state_dict(), tokenizer.vocab_size), **head}
    whole = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    dtype = str(next(iter(whole.values())).dtype).removeprefix("torch.")
    config = config_of(
        encoder.architecture,
        tokenizer.vocab_size,
        architectures=[model_class],
        dtype=dtype,
        pad_token_id=tokenizer.pad,
        **(settings or {}),
    )
    card = model_card(
        export.run,
        title=export.destination.name,
        text=text,
        tags=["trainkit", "bert"],
        library_name="transformers",
        pipeline_tag=pipeline_tag,
    )
    directory = export.target
    directory.mkdir()
    write_one_file(directory / "model.safetensors", whole)
    _write_json(directory / "config.json", config)
    _write_tokenizer(directory, tokenizer, encoder.architecture.max_length)
    (directory / "README.md").write_text(card, encoding="utf-8")


def _write_tokenizer(directory: Path, tokenizer: WordPiece, max_length: int) -> None:
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_str(tokenizer.to_json())
    start, end = ("[CLS]", tokenizer.start), ("[SEP]", tokenizer.end)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[start, end]
    )
    (directory / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    (directory / "vocab.txt").write_text("".join(f"{line}\n" for line in tokenizer.lines()), encoding="utf-8")
    normalizer = tokenizer.normalizer
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer.lowercase,
        "strip_accents": normalizer.strip_accents,
        "tokenize_chinese_chars": normalizer.tokenize_chinese_chars,
        "model_max_length": max_length,
        **{name: tokenizer.token(getattr(tokenizer, own)) for name, own in _SPECIAL.items()},
    }
    _write_json(directory / "tokenizer_config.json", settings)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
