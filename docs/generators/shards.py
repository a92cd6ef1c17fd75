"""Tables of what was measured about shards."""

from collections.abc import Callable, Mapping
from typing import Any

from docs.generators.markdown import Results, table


def _containers(results: Results) -> str:
    parts = []
    for result in results:
        rows = [
            [
                name,
                f"{one['size over the samples']:.3f}",
                f"{one['requests a sample']:.2f}",
                f"{one['bytes read over needed']:.1f}",
                f"{one['us a random sample']:.1f}",
                f"{one['us a sample in order']:.1f}",
                f"{one['MB to know of a billion']:,.0f}",
            ]
            for name, one in result["containers"].items()
        ]
        header = [
            "",
            "size over the samples",
            "requests a random sample",
            "bytes read over needed",
            "CPU us a random sample",
            "in order",
            "MB to keep of a billion samples",
        ]
        parts.append(f"{result['data']}:\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def _prepare(results: Results) -> str:
    parts = []
    for result in results:
        rows = [
            [name, _range(one["mb_per_cpu_second"]), _range(one["times_as_fast"])]
            for name, one in result["ways"].items()
        ]
        title = f"{result['num_bytes'] / 1e6:.1f} MB of text, median (quartiles) of {result['num_turns']} turns:"
        header = ["", "MB of text a CPU second", f"prepare is so many times as fast (goal: {result['goal']})"]
        parts.append(f"{title}\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def _range(values: Mapping[str, float]) -> str:
    return f"{values['median']:.2f} ({values['lower_quartile']:.2f} to {values['upper_quartile']:.2f})"


RENDERERS: Mapping[str, Callable[[Any], str]] = {"shard-containers": _containers, "shard-prepare": _prepare}
