"""Pages of reports: self-contained HTML of tables and bars, and files that are written whole."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

NUM_ROWS = 50
"""Of a table."""

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1000px;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0}td,th{text-align:left;padding:.15em 1.2em .15em 0;vertical-align:top}
th{font-weight:600;border-bottom:1px solid #bbb}img{max-width:100%}code{background:#f2f2f2;padding:.2em .4em}
td{overflow-wrap:anywhere}td.name,td.count{white-space:nowrap}
@media(max-width:600px){td.name{white-space:normal}}
.bar{background:#7aa6d8;height:.8em;display:inline-block}"""


def page(title: str, parts: Iterable[str]) -> str:
    """Returns a page.

    Args:
        title: plain text.
        parts: HTML.
    """
    title = html.escape(title)
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
    return head + "\n".join([f"<h1>{title}</h1>", *parts]) + "</html>\n"


def table(head: Iterable[str] | None, rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of its first rows, as HTML.

    Args:
        head: names of the columns; None: none.
        rows: plain text.
    """
    top = "" if head is None else "<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"
    cells = [
        "<tr>"
        + "".join(f"<td{'' if place else ' class=name'}>{html.escape(cell)}</td>" for place, cell in enumerate(row))
        + "</tr>"
        for row in rows[:NUM_ROWS]
    ]
    return f"<table>{top}{''.join(cells)}</table>{_more(len(rows))}"


def bars(counts: Mapping[int, int] | Mapping[str, int], whole: int) -> str:
    """Returns a bar for each of the first counts, as HTML.

    Args:
        counts: by name.
        whole: what the longest bar stands for.
    """
    rows = [
        f"<tr><td class=count>{html.escape(str(name))}</td><td class=count>{num:,}</td><td>"
        f"<span class='bar' style='width:calc(min(300px, 40vw)*{num / max(1, whole):.3f})'></span></td></tr>"
        for name, num in [*counts.items()][:NUM_ROWS]
    ]
    return f"<table>{''.join(rows)}</table>{_more(len(counts))}"


def write_files(directory: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Writes files, each whole or not at all.

    Args:
        directory: is created.
        contents: by name.

    Returns:
        The paths.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        aside = directory / f".{name}.part"
        aside.write_bytes(content)
        aside.replace(directory / name)
    return [directory / name for name in contents]


def _more(num: int) -> str:
    return f"<p>and {num - NUM_ROWS:,} more, in report.json</p>" if num > NUM_ROWS else ""
