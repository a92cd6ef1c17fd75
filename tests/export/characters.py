"""Writes the kinds of characters that the tokenizers library knows: `python -m tests.export.characters`."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "trainkit" / "export" / "device" / "characters.json"
CODES = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]  # without surrogates


def kinds() -> dict[str, Any]:
    """Ranges of the characters that are removed, become spaces, and so on; and the lower case of each that has one."""
    from tokenizers import normalizers, pre_tokenizers

    def normalized(**settings: bool) -> list[str]:
        """What becomes of `a?b`, for each character."""
        off = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
        normalizer = normalizers.BertNormalizer(**{**off, **settings})
        return [normalizer.normalize_str(f"a{chr(code)}b") for code in CODES]

    split = pre_tokenizers.BertPreTokenizer()
    cleaned, lower = normalized(clean_text=True), normalized(lowercase=True)
    apart = [len(split.pre_tokenize_str(f"a{chr(code)}b")) == 3 for code in CODES]
    stripped, chinese = normalized(strip_accents=True), normalized(handle_chinese_chars=True)
    return {
        "removed": _ranges(code for code, text in zip(CODES, cleaned, strict=True) if text == "ab"),
        "spaces": _ranges(code for code, text in zip(CODES, cleaned, strict=True) if text == "a b"),
        "chinese": _ranges(code for code, text in zip(CODES, chinese, strict=True) if text == f"a {chr(code)} b"),
        "accents": _ranges(code for code, text in zip(CODES, stripped, strict=True) if text == "ab"),
        "punctuation": _ranges(code for code, is_apart in zip(CODES, apart, strict=True) if is_apart),
        "lower": {chr(c): text[1:-1] for c, text in zip(CODES, lower, strict=True) if text != f"a{chr(c)}b"},
    }


def _ranges(codes: Iterable[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for code in codes:
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


if __name__ == "__main__":
    text = json.dumps(kinds(), ensure_ascii=False, separators=(",", ":"))
    FILE.write_text(text + "\n", encoding="utf-8")
