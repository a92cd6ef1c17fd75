"""The tokenizer of bundles gives what the tokenizers library gives, on every character and on real texts."""

import json
import random
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from tests.export.characters import CODES, FILE, kinds
from tests.present import present
from trainkit.data import Normalizer, WordPiece

ROOT = Path(__file__).parents[2]
STRANGE = [
    "ÅNGSTRÖM Café naïve façade Ünïcödé ĲSSEL Ǆ İstanbul ΣΊΣΥΦΟΣ straße ﬁ",
    "東京タワーは高い。漢字かな交じり文、한국어 텍스트 中文，標點！𠀀𪜀豈",  # noqa: RUF001
    "don't stop-believing... e.g. 3.14% (a+b)=c; x_y/z\\n `code` ~tilde^ $5 <tag> “quoted” — dash… ¿qué? ‹x›",  # noqa: RUF001
    "a" * 100 + " " + "b" * 101 + " " + "é" * 100 + " antidisestablishmentarianism" * 3,
    "[MASK] x[MASK]y [mask] [CLS][SEP] [PAD]é [UNK] [ MASK ] [[MASK]]",
    "zero\u200bwidth soft\u00adhyphen non\u00a0breaking\u3000wide \u202ertl\u202c"
    " \ufeffbom \ufffd\x00\x07\x0b\x0c\x85 tab\tend\r\n",
    "e\u0301 o\u0308\u0323 q\u0307\u0323 \u1e9b\u0323 \u0915\u094d\u0937 ก็ العربيةُ עִבְרִית हिन्दी த‌மிழ்",
    "👩‍👩‍👧‍👦 🇫🇷 ♥️ 1️⃣ \U000e0041 \U0001d400\U0001d6d1 Ⅷ ½ ²",
    "",
    "   ",
]


def module() -> Any:
    spec = present(spec_from_file_location("device_wordpiece", FILE.parent / "wordpiece.py"))
    found = module_from_spec(spec)
    present(spec.loader).exec_module(found)
    return found


def real_texts() -> Iterator[str]:
    """Lines of documentation and of code, of this project and of Python's own."""
    files = [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("trainkit/**/*.py"))]
    files += sorted(Path(sys.base_prefix, "lib", f"python3.{sys.version_info.minor}", "encodings").glob("*.py"))[:40]
    for path in files:
        yield from (line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


@pytest.fixture(scope="module")
def numbers() -> dict[str, int]:
    """A vocabulary learnt from what it is to divide, with rare characters, too."""
    learnt = WordPiece.learn([*STRANGE * 40, *list(real_texts())[::5]], 3000).numbers
    cased = WordPiece.learn([*STRANGE * 40, *list(real_texts())[::5]], 3000, lowercase=False).numbers
    tokens = [*learnt, *(token for token in cased if token not in learnt)]
    return {token: number for number, token in enumerate(tokens)}


@pytest.mark.parametrize(
    "settings",
    [
        {"lowercase": True, "strip_accents": None, "tokenize_chinese_chars": True},
        {"lowercase": False, "strip_accents": None, "tokenize_chinese_chars": True},
        {"lowercase": True, "strip_accents": False, "tokenize_chinese_chars": False},
        {"lowercase": False, "strip_accents": True, "tokenize_chinese_chars": True},
    ],
    ids=["uncased", "cased", "accents kept", "cased without accents"],
)
def test_tokens_are_those_of_the_library(settings, numbers):
    theirs = WordPiece.from_vocabulary(numbers, Normalizer(**settings))
    characters = json.loads(FILE.read_text(encoding="utf-8"))
    own = module().WordPiece(theirs.lines(), characters, **settings)
    draw = random.Random(0)
    pools = [range(32, 127), range(0x300), range(0x370, 0x3000), range(0x3000, 0xA000), CODES]
    mixed = ["".join(chr(draw.choice(draw.choice(pools))) for _ in range(30)) for _ in range(1000)]
    mixed = [text.encode("utf-8", "ignore").decode() for text in mixed]
    texts = [*STRANGE, *mixed, *list(real_texts())[::3]]
    assert len(texts) > 5_000
    for text, expected in zip(texts, theirs.encode_batch(texts), strict=True):
        assert own.encode(text) == expected, text


def test_the_kinds_of_characters_are_those_of_the_library():
    assert json.loads(FILE.read_text(encoding="utf-8")) == kinds(), "type: python -m tests.export.characters"
