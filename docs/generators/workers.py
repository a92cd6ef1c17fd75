"""Tables of what it costs to have batches fetched ahead."""

from docs.generators.markdown import Results, number, table

_HEADER = ["data", "fetched by", "a batch, us", "CPU time of training, us", "over torch's DataLoader"]


def handing_over(results: Results) -> str:
    """For each data set and each way the time of a batch, also over that of torch's DataLoader."""
    rows = []
    for result in results:
        title = f"{result['case']}, {result['num_bytes'] / 1e6:.2g} MB"
        for name, one in result["contenders"].items():
            over = one["over_torch"]
            cells = [_range(one["batch_us"]), _range(one["cpu_us"]), "" if over is None else _range(over)]
            rows.append([title, name, *cells])
    turns = results[0]["num_turns"]
    return f"Median and quartiles of {turns} turns; the number of workers is beside.\n\n{table(_HEADER, rows)}"


def _range(spread: dict[str, float]) -> str:
    return f"{_short(spread['median'])} ({_short(spread['lower_quartile'])} to {_short(spread['upper_quartile'])})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else number(round(value, 2))
