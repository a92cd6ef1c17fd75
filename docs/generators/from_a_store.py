"""Tables of samples from a store beside a plain download."""

from typing import Any

from docs.generators.markdown import Results, table

_HEADER = ["", "MB/s", "over a download to memory", "to files", "requests", "bytes sent over those of the samples"]


def rates(results: Results) -> str:
    """For each kind of data the downloads and the ways of reading."""
    parts = []
    for result in results:
        rows = [
            [
                one["name"] if one["version"] is None else f"{one['name']} ({one['version']})",
                _range(one["mb_per_s"]),
                f"{one['over_memory']:.2f}",
                f"{one['over_files']:.2f}",
                "" if one["requests"] is None else f"{one['requests']:,}",
                "" if one["bytes_over_needed"] is None else f"{one['bytes_over_needed']:.2f}",
            ]
            for one in result["ways"]
        ]
        title = (
            f"{result['bytes'] / 1e6:.0f} MB of {result['case']}, {result['latency_s'] * 1000:.0f} ms, median and "
            f"quartiles of {result['num_turns']} turns; the goal is {result['goal']} with an empty cache:"
        )
        parts.append(f"{title}\n\n{table(_HEADER, rows)}")
    return "\n\n".join(parts)


def _range(one: dict[str, Any]) -> str:
    return f"{one['median']:,.0f} ({one['lower_quartile']:,.0f} to {one['upper_quartile']:,.0f})"
