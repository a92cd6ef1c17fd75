"""The table of benchmarks/scale.py: what grows with the number of ranks, and what 1024 would come to."""

from collections.abc import Mapping
from typing import Any

from docs.generators.markdown import table

_COUNTED = {
    "store_bytes": "bytes through the store until the end",
    "store_connections": "connections to the store, of all ranks but its own",
    "open_files_joined": "open files of a rank that has joined",
    "checkpoint_files": "files of a checkpoint",
    "manifest_bytes": "bytes of its manifest, 400 parameters and AdamW",
    "log_bytes_rank_0": "bytes of log, rank 0",
    "log_bytes_others": "bytes of log, all others",
}


def many_ranks(results: list[dict[str, Any]]) -> str:
    """Markdown: a row for each counted figure, a column for each number of ranks, and the fit."""
    (result,) = results
    found, fits, far = result["ranks"], result["fits"], result["far"]
    rows = [
        [text, *(f"{one[key]:,.0f}" for one in found), _far(fits[key]), _error(fits[key])]
        for key, text in _COUNTED.items()
    ]
    header = ["", *(f"{one['ranks']} ranks" for one in found), f"{far['ranks']}, by the fit", "the fit errs by at most"]
    read = (
        f"A manifest of {far['ranks']} parts of each tensor, made from that of {found[-1]['ranks']}, has "
        f"{far['manifest_bytes'] / 1e6:.0f} MB; it was written in {far['manifest_write_s']:.1f} s and read, with its "
        f"checks, in {far['manifest_read_s']:.1f} s."
    )
    return f"{table(header, rows)}\n\n{read}"


def _far(fit: Mapping[str, float]) -> str:
    three_digits = float(f"{fit['at_1024']:.3g}")
    return f"{three_digits:,.0f}"


def _error(fit: Mapping[str, float]) -> str:
    return f"{100 * fit['largest_relative_error']:.0f} %" if "largest_relative_error" in fit else ""
