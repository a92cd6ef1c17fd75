"""The report of an inspection: a contact sheet, a self-contained page, and JSON."""

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainkit.data.inspection import SIDE, Inspection
from trainkit.data.report_page import bars, page, table, write_files

GAP, WHITE = 2, 255
_NUM_NAMED = 5  # names in a group


def write_report(found: Inspection, directory: Path, command: str) -> list[Path]:
    """Writes `report.html`, `contact_sheet.png` and `report.json`.

    Args:
        found: by the inspection.
        directory: is created.
        command: to type next.

    Returns:
        The paths.
    """
    sheet = _png(contact_sheet(found.shown))
    contents = {
        "report.html": _page(found, sheet, command).encode(),
        "contact_sheet.png": sheet,
        "report.json": (json.dumps({**found.facts(), "next": command}, indent=2) + "\n").encode(),
    }
    return write_files(directory, contents)


def contact_sheet(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Arranges uint8 [n, 3, R, R] in a nearly square grid on white, uint8 [H, W, 3]."""
    num, _, _, side = images.shape
    columns = math.ceil(math.sqrt(num))
    cell = side + GAP
    sheet = np.full((math.ceil(num / columns) * cell + GAP, columns * cell + GAP, 3), WHITE, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * cell + GAP, number % columns * cell + GAP
        sheet[top : top + side, left : left + side] = image.transpose(1, 2, 0)
    return sheet


def summary(found: Inspection) -> list[tuple[str, str]]:
    """Returns the lines of the summary, (name, value)."""
    num_near = sum(len(group) for group in found.near_duplicates)
    lines = [
        ("images", f"{found.images:,}" + (f", {found.frames:,} frames" if found.frames > found.images else "")),
        ("formats", _counts(found.formats)),
        ("modes", _counts(found.modes)),
        ("width", _range(found.widths)),
        ("height", _range(found.heights)),
        ("width / height", _range(found.aspect_ratios)),
        ("exact duplicates", f"{found.num_duplicates:,}" + (f" at {SIDE} x {SIDE} pixels" if found.duplicates else "")),
        ("near-duplicates", f"{num_near:,} images in {len(found.near_duplicates):,} groups"),
        ("unreadable", f"{len(found.unreadable):,}"),
        ("scaled up", _upscaled(found)),
    ]
    if found.animated:
        lines.insert(1, ("animated", f"{found.animated:,}: the first frame is used, or data.frames=all"))
    if found.profiles_ignored:
        lines.append(("profiles", f"{found.profiles_ignored:,} do not fit the pixels and are ignored"))
    if found.files_not_read:
        lines.append(("other files", found.files_not_read))
    if found.classes:
        sizes = [*found.classes.values()]
        lines.append(("classes", f"{len(sizes):,}, of {min(sizes):,} to {max(sizes):,} images"))
    elif found.folders:
        named = ", ".join(found.folders[:_NUM_NAMED]) + (" ..." if len(found.folders) > _NUM_NAMED else "")
        lines.append(("folders", f"{len(found.folders):,} ({named}); classes with data.labels=folders"))
    return lines


def _upscaled(found: Inspection) -> str:
    sizes = [side for side in found.upscaled if side >= found.resolution / 2][:3]
    return ", ".join(f"{found.upscaled[side]:,} at {side}" for side in sizes) + " pixels"


def _counts(counts: Mapping[str, int], most: int = 8) -> str:
    shown = [f"{name} {num:,}" for name, num in [*counts.items()][:most]]
    return ", ".join([*shown, "..."] if len(counts) > most else shown)


def _range(quantiles: Sequence[float]) -> str:
    low, p5, median, p95, high = (f"{value:,.6g}" for value in quantiles)
    return f"{low} to {high}, median {median}, 90 % within {p5} to {p95}"


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# -- the page ----------------------------------------------------------------------------------------------------------


def _page(found: Inspection, sheet: bytes, command: str) -> str:
    picture = base64.b64encode(sheet).decode()
    parts = [
        table(None, summary(found)),
        f"<p>Train on them: <code>{html.escape(command)}</code></p>",
        f"<h2>{len(found.shown)} of them</h2><img alt='contact sheet' src='data:image/png;base64,{picture}'>",
        "<h2>Scaled up at each resolution</h2>" + bars(found.upscaled, found.images),
    ]
    if found.classes:
        parts.append(f"<h2>Classes</h2>{bars(found.classes, max(found.classes.values()))}")
    if found.unreadable:
        rows = [(file.name, file.reason) for file in found.unreadable]
        parts.append(f"<h2>Unreadable</h2>{table(('file', 'reason'), rows)}")
    for name, groups in (("Exact duplicates", found.duplicates), ("Near-duplicates", found.near_duplicates)):
        if groups:
            listed = [(f"{len(group):,}", ", ".join(group[:_NUM_NAMED])) for group in sorted(groups, key=len)[::-1]]
            parts.append(f"<h2>{name}</h2>{table(('images', 'such as'), listed)}")
    return page(f"Images in {found.path}", parts)
