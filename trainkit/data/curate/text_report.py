"""The report of an inspection of text: lines for a terminal, a self-contained page, and JSON."""

import html
import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainkit.data.curate.inspection import LONG_CHARS, SHORT_WORDS, TextInspection
from trainkit.data.report_page import bars, page, table, write_files

_NUM_NAMED = 6  # languages and characters on a line
_WIDTH = 40  # of a bar


def summary(found: TextInspection) -> list[tuple[str, str]]:
    """Returns the lines of the summary, (name, value)."""
    files = f"{found.files:,}" + (f"; not read: {found.files_not_read}" if found.files_not_read else "")
    lines = [
        ("files", files),
        ("documents", f"{found.documents:,}" + (f", and {found.blank:,} blank" if found.blank else "")),
        ("size", f"{found.num_bytes:,} bytes, {found.chars:,} characters, {found.words:,} words"),
        ("tokens", f"{'' if found.is_sample_all else 'about '}{found.tokens:,} ({found.vocabulary})"),
        ("characters of a document", quantiles(found.lengths)),
        ("tokens of a document", quantiles(found.token_lengths)),
        ("short, long", f"{found.short:,} below {SHORT_WORDS} words, {found.long:,} above {LONG_CHARS:,} characters"),
        ("exact duplicates", share(found.duplicates, found.documents)),
        ("near-duplicates", share(found.near_duplicates, found.documents)),
        (
            "languages",
            named({name: f"{num / sum(found.languages.values()):.1%}" for name, num in found.languages.items()}),
        ),
        (
            "boilerplate",
            f"{found.boilerplate:.1%} of the characters, in lines of {found.repeated_in} or more documents",
        ),
        ("[UNK]", f"{found.unknown:.3%} of the tokens" + (f"; lacking {characters(found)}" if found.lacking else "")),
        ("damaged", named({name: f"{num:,}" for name, num in found.damage.items()})),
    ]
    if found.held_out_files:
        lines.append(("held out", f"{found.held_out_files:,} files of the source's own split are not looked at"))
    if found.unreadable:
        lines.append(("unreadable", f"{len(found.unreadable):,} files, not read to their end"))
    if not found.is_sample_all:
        lines.append(("sample", sample_of(found)))
    return lines


def sample_of(found: TextInspection) -> str:
    """What tokens, characters, lines and languages were counted in."""
    return (
        f"tokens, [UNK], boilerplate and languages are those of {found.sampled:,} documents "
        f"({found.sampled_chars:,} characters)"
    )


def histogram(found: TextInspection) -> list[tuple[str, str, str]]:
    """Returns (characters, documents, bar) for a terminal."""
    most = max(found.histogram.values())
    return [(name, f"{num:,}", "█" * max(round(_WIDTH * num / most), num > 0)) for name, num in found.histogram.items()]


def write_text_report(found: TextInspection, directory: Path, commands: Sequence[str]) -> list[Path]:
    """Writes `report.html` and `report.json`.

    Args:
        found: by the inspection.
        directory: is created.
        commands: to type next.

    Returns:
        The paths.
    """
    contents = {
        "report.html": _page(found, commands),
        "report.json": json.dumps({**found.facts(), "next": [*commands]}, indent=2, ensure_ascii=False) + "\n",
    }
    return write_files(directory, {name: text.encode(errors="backslashreplace") for name, text in contents.items()})


def quantiles(values: Sequence[float]) -> str:
    """Describes the quantiles 0, 0.05, 0.5, 0.95, 1."""
    low, p5, median, p95, high = (f"{value:,.0f}" for value in values)
    return f"{low} to {high}, median {median}, 90 % within {p5} to {p95}"


def share(num: int, whole: int) -> str:
    """A number, and its share."""
    return f"{num:,} ({num / max(1, whole):.1%})" if num else "0"


def named(values: Mapping[str, str]) -> str:
    """The first values, each after its name."""
    shown = [f"{name} {value}" for name, value in [*values.items()][:_NUM_NAMED]]
    return ", ".join([*shown, "..."] if len(values) > _NUM_NAMED else shown)


def characters(found: TextInspection) -> str:
    """The most frequent characters without a token."""
    return named({_shown(char): f"{num:,}" for char, num in found.lacking.items()})


def _shown(char: str) -> str:
    is_seen = char.isprintable() and not unicodedata.combining(char)
    return f"{char} (U+{ord(char):04X})" if is_seen else f"U+{ord(char):04X}"


def _page(found: TextInspection, commands: Sequence[str]) -> str:
    typed = "".join(f"<p><code>{html.escape(command)}</code></p>" for command in commands)
    parts = [
        table(None, summary(found)),
        f"<h2>Next</h2>{typed}",
        f"<h2>Characters of a document</h2>{bars(found.histogram, max(found.histogram.values()))}",
        f"<h2>Languages</h2>{bars(found.languages, max(found.languages.values()))}",
    ]
    if found.repeated_lines:
        rows = [(f"{line.documents:,}", line.text) for line in found.repeated_lines]
        exact = f" (counts may be too low by {found.counts_missed:,})" if found.counts_missed else ""
        parts.append(f"<h2>Boilerplate{exact}</h2>{table(('documents', 'line'), rows)}")
    if found.near_pairs:
        pairs = [
            (f"{pair.similarity:.2f}", f"{pair.first}: {pair.first_text}", f"{pair.second}: {pair.second_text}")
            for pair in found.near_pairs
        ]
        parts.append(f"<h2>Some near-duplicates</h2>{table(('similarity', 'first', 'later'), pairs)}")
    if found.worst_lines:
        lines = [(f"{line.tokens_per_word:.1f}", line.where, line.text) for line in found.worst_lines]
        parts.append(f"<h2>Lines with most tokens a word</h2>{table(('tokens a word', 'where', 'line'), lines)}")
    if found.lacking:
        lacking = {_shown(char): num for char, num in found.lacking.items()}
        parts.append(f"<h2>Characters without a token</h2>{bars(lacking, max(lacking.values()))}")
    if found.unreadable:
        files = [(file.file, file.reason) for file in found.unreadable]
        parts.append(f"<h2>Unreadable</h2>{table(('file', 'reason'), files)}")
    return page(f"Text in {found.path or 'the documentation of Python, NumPy and PyTorch'}", parts)
