"""Vocabulary: WordPiece tokens and their normalization, as read from the files of other programs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.errors import DataError
from trainkit.json_text import read_json

if TYPE_CHECKING:
    from tokenizers import normalizers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TOKENIZERS = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# Keys of tokenizer_config.json that change the tokens, and the values that are supported.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "tokenizer_class": _TOKENIZERS,
    "do_basic_tokenize": (True,),
    "never_split": ([],),
    "wordpieces_prefix": ("##",),
    "clean_text": (True,),
    "unk_token": ("[UNK]",),
    "auto_map": (),
}


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """BERT's normalization of text before it is split.

    Args:
        lowercase: whether text is converted to lower case.
        strip_accents: whether accents are removed; None: as `lowercase`.
        tokenize_chinese_chars: whether each Chinese character is a word.
    """

    lowercase: bool = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True

    def backend(self) -> "normalizers.Normalizer":
        """Returns the normalizer of the tokenizers library."""
        from tokenizers import normalizers

        return normalizers.BertNormalizer(
            lowercase=self.lowercase,
            strip_accents=self.strip_accents,
            handle_chinese_chars=self.tokenize_chinese_chars,
        )


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as read from files.

    Args:
        numbers: token -> number.
        stored: arguments of Normalizer that the files specify.
    """

    numbers: dict[str, int]
    stored: Mapping[str, Any] = field(default_factory=dict)

    def normalizer(self, path: Path, **asked: bool | None) -> Normalizer:
        """Combines given arguments, those of the files, and BERT's defaults, in this order.

        Args:
            path: of the vocabulary, for messages.
            asked: arguments of Normalizer; None: not given.

        Returns:
            The normalizer.

        Raises:
            DataError: where a vocabulary has capital letters and nothing specifies `lowercase`.
        """
        given = {key: value for key, value in asked.items() if value is not None}
        if "lowercase" not in {**self.stored, **given}:
            cased = [piece for piece in self.numbers if piece != piece.lower() and not _is_bracketed(piece)]
            if cased:
                raise DataError(
                    f"data.vocab_file={path} has {len(cased)} tokens with capital letters, such as {cased[0]!r}, and "
                    f"no tokenizer_config.json beside it says do_lower_case: set data.lowercase=false, or true"
                )
        return replace(Normalizer(), **{**self.stored, **given})


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads a vocabulary, and the tokenizer_config.json beside it.

    Args:
        path: a vocab.txt (one token per line, numbered from 0; of a repeated token the last number counts, as in the
            tokenizers library) or a tokenizer.json.

    Returns:
        The vocabulary.

    Raises:
        DataError: where BERT's special tokens are missing, and for settings that give other tokens than `WordPiece`
            does.
    """
    vocabulary = _read_json(path) if path.suffix == ".json" else Vocabulary(_read_lines(path))
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary.numbers]
    if missing:
        raise DataError(f"data.vocab_file={path} lacks {', '.join(missing)}; give the vocab.txt of a BERT model")
    config = path.parent / "tokenizer_config.json"
    if config.is_file():
        vocabulary = replace(vocabulary, stored={**vocabulary.stored, **_read_config(config)})
    return vocabulary


def _is_bracketed(piece: str) -> bool:
    return piece.startswith("[") and piece.endswith("]")


def _read_lines(path: Path) -> dict[str, int]:
    from tokenizers import models

    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"data.vocab_file={path} is not UTF-8 text (offset {error.start}); give a vocab.txt") from None
    # Read by the library itself: only \n and \r\n end a line, and trailing spaces do not count.
    numbers = models.WordPiece.read_file(str(path))
    return dict(
        sorted(numbers.items(), key=lambda item: item[1])
    )  # the library returns them in the order of a hash map


def _read_json(path: Path) -> Vocabulary:
    content = _load(path)
    model, normalizer = content.get("model") or {}, content.get("normalizer") or {}
    kinds = model.get("type"), normalizer.get("type"), (content.get("pre_tokenizer") or {}).get("type")
    if kinds != ("WordPiece", "BertNormalizer", "BertPreTokenizer"):
        raise DataError(
            f"data.vocab_file={path} is a tokenizer of {', '.join(map(str, kinds))}; only BERT's WordPiece, "
            f"BertNormalizer, BertPreTokenizer can be read"
        )
    plain = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    for key, value in {**plain, "clean_text": True}.items():
        found = {**plain, **model, **normalizer}.get(key, value)
        if found != value:
            raise DataError(f"data.vocab_file={path} has {key}={found!r}; only {value!r} can be read")
    _refuse_added(path, [token["content"] for token in content.get("added_tokens") or []])
    stored = {
        "lowercase": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
    }
    return Vocabulary(model["vocab"], stored)


def _read_config(path: Path) -> dict[str, Any]:
    """Returns the arguments of Normalizer in a tokenizer_config.json."""
    config = _load(path)
    for key, allowed in _SUPPORTED.items():
        value = config.get(key)
        if value is not None and _text_of(value) not in allowed:
            only = f"only {', '.join(map(repr, allowed))} can be read" if allowed else "which cannot be read"
            raise DataError(f"{path} has {key}={value!r}; {only}: give another data.vocab_file")
    added = [_text_of(token) for token in (config.get("added_tokens_decoder") or {}).values()]
    beside = path.parent / "added_tokens.json"
    _refuse_added(path, [*added, *(_load(beside) if beside.is_file() else ())])
    names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
    names["tokenize_chinese_chars"] = "tokenize_chinese_chars"
    return {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}


def _refuse_added(path: Path, tokens: list[str]) -> None:
    others = [token for token in tokens if token not in SPECIAL_TOKENS]
    if others:
        raise DataError(f"{path} adds the token {others[0]!r} to BERT's own; only {', '.join(SPECIAL_TOKENS)} are read")


def _text_of(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) and "content" in token else token


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); give another data.vocab_file") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object; give another data.vocab_file")
    return content
