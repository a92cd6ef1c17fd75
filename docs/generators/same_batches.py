"""Tables of batches that are the same on other ranks and workers, and after a resume."""

from typing import Any

from docs.generators.markdown import Results, table


def equal_batches(results: Results) -> str:
    """For each library, how many of its batches are those of one rank without workers."""
    cases = [(one["ranks"], one["workers"]) for one in results[0]["cases"]]
    heads = [f"{_count(ranks, 'rank')}, {_count(workers, 'worker')} each" for ranks, workers in cases]
    resumed = [f"resumed on {_count(one['ranks'], 'rank')}" for one in results[0]["resumed"]]
    rows = [
        [one["name"], one["version"] or "", *(_found(case) for case in (*one["cases"], *one["resumed"]))]
        for one in results
    ]
    return table(["read by", "version", *heads, *resumed], rows)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _found(case: dict[str, Any]) -> str:
    equal = case["equal"]
    return f"{equal} of {case['of']}" if isinstance(equal, int) else str(equal)
