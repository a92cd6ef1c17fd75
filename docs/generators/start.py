"""Tables of starts on data: of many files, and of many samples."""

from docs.generators.markdown import Results, table


def starts(results: Results) -> str:
    """For each number of files: a first start, and later ones."""
    rows = []
    for result in results:
        for point in (*result["measured"], *result["extrapolated"]):
            together, is_measured = point.get("two at once"), "two at once" in point
            in_a_run = point.get("in a run")
            rows.append(
                [
                    f"{point['num']:,} {result['what']}{'' if is_measured else ', extrapolated'}",
                    f"{point['first']['seconds']:.3g}",
                    f"{point['again']['seconds']:.3g}",
                    f"{point['again']['cpu_seconds']:.3g}",
                    # A straight line through starts that do not grow with the files says nothing.
                    f"{in_a_run['seconds']:.2g} ({in_a_run['cpu_seconds']:.2g})" if in_a_run and is_measured else "",
                    f"{in_a_run['compared_after_seconds']:.3g}" if "compared_after_seconds" in (in_a_run or {}) else "",
                    f"{max(0.0, point['again']['mb']):.1f}",
                    f"{together['seconds']:.3g}" if together else "",
                    f"{together['mb']:.1f}" if together else "",
                    f"{point['kept_mb']:.3g}",
                ]
            )
    header = [
        "",
        "first start, s",
        "again, s",
        "of CPU, s",
        "again in a run, s (CPU)",
        "all compared after, s",
        "again, MB",
        "two at once, s",
        "MB of the other",
        "kept on disk, MB",
    ]
    return table(header, rows)


def many_samples(results: Results) -> str:
    """For each number of samples: the first batch, and the memory of a rank."""
    rows = [
        [
            f"{result['num']:,}",
            where,
            f"{point['seconds']:.2f}",
            f"{point['RssAnon MB']:.1f}",
            f"{point['RssFile MB']:,.0f}",
        ]
        for result in results
        for where, point in result["points"].items()
    ]
    header = ["samples", "", "until the first batch, s", "own memory, MB", "mapped files, MB"]
    return table(header, rows)
