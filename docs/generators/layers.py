"""The picture of the layers and the table of packages, from tests/test_layers.py and the packages' own docstrings."""

import ast
from html import escape
from pathlib import Path

from docs.generators.markdown import table
from tests.test_layers import LAYERS

ROOT = Path(__file__).parent.parent.parent
ABOVE = ("recipes", "launch", "benchmarks", "examples")
"""What uses the package's public names only."""
WIDTH, ROW, GAP = 960, 34, 8


def picture() -> str:
    """SVG: one row a layer, the top one first."""
    rows = [tuple(name for name in ABOVE if (ROOT / name).is_dir()), *LAYERS]
    height = len(rows) * (ROW + GAP) + GAP
    boxes = [_row(names, number) for number, names in enumerate(rows)]
    return (
        f'<svg class="layers" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Layers of trainkit, top to bottom" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="monospace" font-size="13">\n' + "\n".join(boxes) + "\n</svg>"
    )


def _row(names: tuple[str, ...], number: int) -> str:
    top = GAP + number * (ROW + GAP)
    width = (WIDTH - GAP * (len(names) + 1)) / len(names)
    fill = "none" if number == 0 else "currentColor"
    return "\n".join(
        f'<g><rect x="{GAP + i * (width + GAP):.0f}" y="{top}" width="{width:.0f}" height="{ROW}" rx="4" fill="{fill}" '
        f'fill-opacity="0.07" stroke="currentColor"/><text x="{GAP + i * (width + GAP) + width / 2:.0f}" '
        f'y="{top + ROW / 2 + 5:.0f}" text-anchor="middle" fill="currentColor">{escape(name)}</text></g>'
        for i, name in enumerate(names)
    )


def table_of_packages() -> str:
    """Markdown: each module of the layers and the first line of its docstring."""
    rows = [[f"`{name}`", _about(name)] for names in LAYERS for name in names]
    return table(["module", "what it holds"], rows)


def _about(name: str) -> str:
    """The first line of a module's docstring."""
    base = ROOT / "trainkit" / name
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    doc = ast.get_docstring(ast.parse(file.read_text())) if file.is_file() else None
    return (doc or "").split("\n")[0]
