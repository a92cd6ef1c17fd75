"""Fits the factors of trainkit.planning.nccl to the fitted half of the published rows, and prints them. A minute.

    python benchmarks/fit_predictions.py

The loss is nearly the sum of absolute log errors. Each factor is also held weakly at what NCCL's tuner expects, and
within a factor of 4 of it, since beyond that some stand in for others. The figures in use are the results of this,
rounded to two digits. Those of trainkit.topology.staging and benchmarks/machines.py are means over one or two machines
each, set by hand. What the tuner knows nothing of, such as EFA, starts from a guess.
"""

import math
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.predictions import Row, predict, rows

nccl = import_module("trainkit.planning.nccl")  # its factors are no interface: only a fit sets them

REACH, PRIOR, SCALE = 4.0, 0.02, 0.03


def _step(link: str, protocol: str) -> Callable[[float], None]:
    return lambda value: nccl.STEP_FACTOR[link].update({protocol: value})


def _of_gpus(value: float) -> None:
    nccl.GPU_FACTOR["volta"] = nccl.GPU_FACTOR["ampere"] = value


def _of_channels(value: float) -> None:
    table = nccl.NVLS_TREE_CHANNEL_GB_PER_S
    table["hopper"] = (value, table["hopper"][1])


# What a factor is called, the figure in use, that of NCCL's tuner, and how it is set.
FACTORS: dict[str, tuple[float, float, Callable[[float], None]]] = {
    "NVLink steps, LL": (nccl.STEP_FACTOR["nvlink"]["LL"], 1.0, _step("nvlink", "LL")),
    "NVLink steps, Simple": (nccl.STEP_FACTOR["nvlink"]["Simple"], 1.0, _step("nvlink", "Simple")),
    "steps between hosts, LL128": (nccl.STEP_FACTOR["nic"]["LL128"], 1.0, _step("nic", "LL128")),
    "steps between hosts, Simple": (nccl.STEP_FACTOR["nic"]["Simple"], 1.0, _step("nic", "Simple")),
    "GPUs before Hopper": (nccl.GPU_FACTOR["ampere"], 1.4, _of_gpus),
    "EFA": (nccl.NETWORK_FACTOR, 2.0, lambda value: setattr(nccl, "NETWORK_FACTOR", value)),
    "LL's bandwidth": (nccl.LL_FACTOR, 1.0, lambda value: setattr(nccl, "LL_FACTOR", value)),
    "NVLS, us": (nccl.NVLS_US, 80.0, lambda value: setattr(nccl, "NVLS_US", value)),
    "NVLS over hosts, us": (nccl.NVLS_TREE_US, 80.0, lambda value: setattr(nccl, "NVLS_TREE_US", value)),
    "NVLS step, us": (nccl.NVLS_TREE_STEP_US, 20.9, lambda value: setattr(nccl, "NVLS_TREE_STEP_US", value)),
    "NVLS channel, GB/s": (nccl.NVLS_TREE_CHANNEL_GB_PER_S["hopper"][0], 57.7, _of_channels),
}


def fit(some: list[Row]) -> dict[str, float]:
    """The factors that fit rows best.

    Args:
        some: the rows.

    Returns:
        The factors by what they are called. The module holds them afterwards.
    """
    in_use = np.log([factor[0] for factor in FACTORS.values()])
    expected = np.log([factor[1] for factor in FACTORS.values()])

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        for (_, _, put), value in zip(FACTORS.values(), np.exp(logs), strict=True):
            put(float(value))
        predict.cache_clear()
        errors = [math.log(predict(row) / row.published) for row in some]
        return np.array([*errors, *(PRIOR * (logs - expected))])

    reach = math.log(REACH)
    bounds = (expected - reach, expected + reach)
    found = least_squares(
        residuals,
        np.clip(in_use, bounds[0] + 0.01, bounds[1] - 0.01),
        bounds=bounds,
        loss="soft_l1",
        f_scale=SCALE,
        max_nfev=40,
        diff_step=1e-2,
    )
    return dict(zip(FACTORS, (float(value) for value in np.exp(found.x)), strict=True))


def main() -> None:
    """Prints each factor beside the figure in use and the tuner's."""
    found = fit([row for row in rows() if row.fitted])
    print(f"{'':30} {'fitted':>8} {'in use':>8} {'tuner':>8}")
    for name, (used, expected, _) in FACTORS.items():
        print(f"{name:30} {found[name]:8.3g} {used:8.3g} {expected:8.3g}")


if __name__ == "__main__":
    main()
