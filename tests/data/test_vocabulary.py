"""Vocabularies of others: the token numbers that the transformers library makes of the same files, or one refusal."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainkit.data import Text
from trainkit.data.tokenizer import WordPiece
from trainkit.data.vocabulary import SPECIAL_TOKENS, Normalizer, read_vocabulary
from trainkit.errors import DataError

transformers = pytest.importorskip("transformers", reason="the transformers library is the oracle")

PIECES = [
    *SPECIAL_TOKENS,
    "berlin",
    "Berlin",
    "zoe",
    "zoë",
    "Zoë",
    "漢",
    "##字",
    "字",
    "漢字",
    "a",
    "##b",
    "c",
    ".",
    "##ü",
]
CASELESS = [piece for piece in PIECES if piece == piece.lower() or piece in SPECIAL_TOKENS]
TEXTS = ["Berlin berlin BERLIN.", "Zoë zoe Zoe\u0308 ü", "漢字 a漢字c", "ab\u2028c \u0085a \x1cab", "the [MASK] of", ""]


def write(directory: Path, pieces: list[str], config: dict[str, Any] | None = None, end: str = "\n") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "bert"}')
    (directory / "vocab.txt").write_bytes((end.join(pieces) + end).encode())
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory / "vocab.txt"


def tokenizer_of(path: Path, **asked: bool | None) -> WordPiece:
    vocabulary = read_vocabulary(path)
    return WordPiece.from_vocabulary(vocabulary.numbers, vocabulary.normalizer(path, **asked))


def assert_same_numbers(ours: WordPiece, theirs) -> None:
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


SETTINGS = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False, "tokenizer_class": "BertTokenizer"},
]


@pytest.mark.parametrize("config", SETTINGS)
def test_the_settings_beside_a_vocabulary_act(tmp_path, config):
    path = write(tmp_path, PIECES if "do_lower_case" in config else CASELESS, config)
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    ours = tokenizer_of(path)
    assert_same_numbers(ours, theirs)
    theirs.save_pretrained(tmp_path / "saved")  # transformers 5 leaves a tokenizer.json and no vocab.txt
    assert_same_numbers(tokenizer_of(tmp_path / "saved" / "tokenizer.json"), theirs)
    (tmp_path / "saved" / "tokenizer_config.json").unlink()
    assert_same_numbers(tokenizer_of(tmp_path / "saved" / "tokenizer.json"), theirs)
    assert WordPiece.from_json(ours.to_json()).normalizer == ours.normalizer


@pytest.mark.parametrize("asked", SETTINGS[:-1])
def test_what_is_asked_for_comes_before_what_the_files_say(tmp_path, asked):
    path = write(tmp_path, PIECES, {"do_lower_case": not asked.get("do_lower_case", True), "strip_accents": True})
    explicit = {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False, **asked}
    theirs = transformers.BertTokenizerFast(vocab=str(path), **explicit)
    ours = tokenizer_of(
        path,
        lowercase=explicit["do_lower_case"],
        strip_accents=explicit["strip_accents"],
        tokenize_chinese_chars=explicit["tokenize_chinese_chars"],
    )
    assert_same_numbers(ours, theirs)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_where_the_tokenizers_library_ends_them(tmp_path, end):
    """And of a piece on two lines the last counts."""
    pieces = [*SPECIAL_TOKENS, "berlin", "\u2028", "a", "\u0085", "zoe", "\x1c", "\x0b", "a", "##b ", "c", "."]
    path = write(tmp_path, pieces, end=end)
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    ours = tokenizer_of(path)
    assert_same_numbers(ours, theirs)
    assert ours.encode("Berlin a ab c.") == [5, 12, 12, 13, 14, 15]
    assert ours.vocab_size == len(pieces)  # the table of embeddings has a row for every line
    assert [ours.token(number) for number in (5, 7, 12, 15)] == ["berlin", "[unused]", "a", "."]
    with pytest.raises(IndexError):
        ours.token(16)


def test_capital_letters_need_a_word_about_them(tmp_path):
    path = write(tmp_path, PIECES)
    with pytest.raises(DataError, match=r"2 tokens with capital letters, such as 'Berlin', .* data\.lowercase=false"):
        tokenizer_of(path)
    assert tokenizer_of(path, lowercase=False).encode("Berlin") == [PIECES.index("Berlin")]
    assert tokenizer_of(path, lowercase=True).encode("Berlin") == [PIECES.index("berlin")]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class='BertJapaneseTokenizer'"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize=False"),
        ({"never_split": ["a"]}, r"never_split=\['a'\]"),
        ({"auto_map": {"AutoTokenizer": ["t.T", None]}}, "auto_map="),
        ({"unk_token": {"content": "<unk>"}}, "unk_token="),
        ({"added_tokens_decoder": {"0": {"content": "[PAD]"}, "30": {"content": "<e1>"}}}, "adds the token '<e1>'"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused_by_its_key(tmp_path, config, named):
    path = write(tmp_path, CASELESS, config)
    with pytest.raises(DataError, match=named):
        read_vocabulary(path)


def test_other_files_are_refused(tmp_path):
    path = write(tmp_path, CASELESS)
    (tmp_path / "added_tokens.json").write_text('{"<e1>": 30}')
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match="adds the token '<e1>'"):
        read_vocabulary(path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json is not JSON"):
        read_vocabulary(path)
    other = tmp_path / "tokenizer.json"
    other.write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(DataError, match="is a tokenizer of BPE, None, None; only BERT's WordPiece"):
        read_vocabulary(other)
    path.write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(DataError, match=r"is not UTF-8 text \(offset 6\)"):
        read_vocabulary(path)


def test_text_is_split_by_a_tokenizer_that_was_made_before(tmp_path):
    """A checkpoint's: for the text of its own run nothing is built again, and other text gets the same numbers."""
    documents = [
        f"{number**5} Berlin zoë {'abcdefghijklmnopqrstuvwxyz'[number % 20 : number % 26]} ab c."
        for number in range(60)
    ]
    (tmp_path / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n\n".join(f"quite {text}" for text in documents), encoding="utf-8")
    settings = {"vocab_size": 130, "sequence_length": 8, "held_out": 0.1, "cache_dir": tmp_path / "cache"}
    usual = Text(path=tmp_path / "a.txt", **settings).load()
    tokenizer = WordPiece.from_json(usual.tokenizer.to_json())
    again = Text(path=tmp_path / "a.txt", tokenizer=tokenizer, **settings).load()
    assert again.train.stream.path == usual.train.stream.path
    other = Text(path=tmp_path / "b.txt", tokenizer=tokenizer, **settings).load()
    assert other.tokenizer.fingerprint == tokenizer.fingerprint
    assert Text(path=tmp_path / "b.txt", **settings).load().tokenizer.fingerprint != tokenizer.fingerprint
    for key, value in (("lowercase", False), ("strip_accents", False), ("vocab_size", 100)):
        text = Text(path=tmp_path / "b.txt", tokenizer=tokenizer, **{**settings, key: value})
        with pytest.raises(DataError, match=rf"data\.{key}={value} is not what the given tokenizer was made with"):
            text.load()
    given = Text(path=tmp_path / "b.txt", tokenizer=tokenizer, vocab_file=write(tmp_path, CASELESS), **settings)
    with pytest.raises(DataError, match=r"data\.vocab_file=.* is not what the given tokenizer"):
        given.load()
    assert tokenizer.normalizer == Normalizer()
