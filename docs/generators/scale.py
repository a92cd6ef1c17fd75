"""A table of what grows with the number of ranks, for docs.generators.results."""

from collections.abc import Callable, Mapping
from typing import Any

from docs.generators.markdown import table

_ROWS = {
    "join_s": "joining, s",
    "step_s": "a step, s",
    "save_s": "saving, s",
    "load_s": "loading, s",
    "open_files": "open files of a rank",
    "resident_mb": "memory of a rank, MB",
    "store_connections": "connections to the store",
    "store_bytes": "bytes through the store",
    "log_bytes_rank_0": "log of rank 0, bytes",
    "log_bytes_others": "log of all others, bytes",
    "checkpoint_files": "files of a checkpoint",
    "manifest_bytes": "its manifest, bytes",
    "manifest_read_s": "reading the manifest, s",
}


def _scale(results: list[dict[str, Any]]) -> str:
    parts = []
    for result in results:
        columns, fits = result["ranks"], result["fits"]
        rows = []
        for key, name in _ROWS.items():
            fit = fits[key]
            grows = max(("constant", "of_each_rank", "of_each_pair"), key=lambda term: _share(fit, term, columns[-1]))
            words = {"constant": "nothing", "of_each_rank": "N", "of_each_pair": "N²"}[grows] if len(fit) > 1 else ""
            rows.append([name, *(_number(one[key]) for one in columns), words, _number(fit["at_1024"])])
        header = [
            "ranks",
            *(str(one["ranks"]) for one in columns),
            "grows with",
            f"{result['extrapolated_to']:,} by the fit",
        ]
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def _share(fit: Mapping[str, float], term: str, largest: Mapping[str, float]) -> float:
    """What a term of the fit adds at the largest number of ranks."""
    power = {"constant": 0, "of_each_rank": 1, "of_each_pair": 2}[term]
    return fit.get(term, 0.0) * largest["ranks"] ** power


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


RENDERERS: Mapping[str, Callable[[Any], str]] = {"scale": _scale}
