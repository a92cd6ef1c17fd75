"""The table of benchmarks/shuffling.py."""

from docs.generators.markdown import Results, number, table


def orders(results: Results) -> str:
    """How well each order shuffles, and what it costs."""
    header = [
        "order",
        "distance of neighbours",
        "documents in a batch",
        "imbalance of labels",
        "shards in a batch",
        "shards to keep",
        "fetches of a shard, 17 kept",
        "ns an index",
        "resume, ms",
    ]
    rows = [
        [
            one["order"],
            *(f"{one[key]:.3f}" for key in ("distance", "documents")),
            f"{one['labels']:.1f}",
            f"{one['shards_a_batch']:.0f}",
            f"{one['kept']:.0f}",
            f"{one['fetches']:.2f}" if one["fetches"] < 10 else f"{one['fetches']:.0f}",
            f"{one['ns_per_index']:,.0f}",
            "none" if one["resume_ms"] is None else number(round(one["resume_ms"], 1)),
        ]
        for one in results
    ]
    return table(header, rows)
