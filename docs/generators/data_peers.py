"""Tables of samples a second beside other libraries."""

from docs.generators.markdown import Results, table

_HEADER = ["read by", "version", "workers", "samples a second", "over the fastest of the others"]


def samples(results: Results) -> str:
    """For each kind of data the libraries and their numbers of workers."""
    parts = []
    for result in results:
        rows = [
            [
                one["name"],
                one["version"] or "",
                one["workers"],
                f"{one['samples_per_s']['median']:,.0f} ({one['samples_per_s']['lower_quartile']:,.0f} to "
                f"{one['samples_per_s']['upper_quartile']:,.0f})",
                f"{one['over_the_fastest_peer']:.2f}",
            ]
            for one in result["readers"]
        ]
        title = (
            f"{result['samples']:,} {result['case']} of {result['bytes_of_a_sample']:,} bytes, median and quartiles of "
            f"{result['num_turns']} turns of three passes; the goal is {result['goal']} times the fastest other one:"
        )
        parts.append(f"{title}\n\n{table(_HEADER, rows)}")
    return "\n\n".join(parts)
