"""Population: what follows a generation in population-based training (Jaderberg et al. 2017, arXiv:1711.09846).

Members train for some evaluations, a generation; then the worst quarter goes on from the checkpoints of the best
quarter (exploit), with values that are perturbed (explore), and all others go on as they were. A generation follows
when the one before has ended, so that what is drawn depends on the seed alone, and not on which member was faster.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainkit.config.variation import Variation

FACTORS = (0.8, 1.2)  # of the paper's appendix A
_SHARE = 4  # a quarter is replaced
_RESAMPLED = 0.25  # of the values of explored members


@dataclass(frozen=True)
class Member:
    """A member of the next generation.

    Args:
        parent: the index of the member whose checkpoint it goes on from.
        params: the value of each key.
    """

    parent: int
    params: Mapping[str, Any]


def following(
    values: Sequence[float], params: Sequence[Mapping[str, Any]], varied: Mapping[str, Variation], *, seed: int
) -> list[Member]:
    """The members of the generation after one.

    Args:
        values: of each member; lower is better, and what is not finite the worst.
        params: of each member.
        varied: the values that each key may take.
        seed: of what is drawn.
    """
    draw = np.random.default_rng(seed)
    order = sorted(range(len(values)), key=lambda i: (values[i] if math.isfinite(values[i]) else math.inf, i))
    num = max(1, len(values) // _SHARE) if len(values) > 1 else 0
    best, worst = order[:num], {*order[len(order) - num :]}
    found = []
    for index, own in enumerate(params):
        if index not in worst and math.isfinite(values[index]):
            found.append(Member(index, own))
            continue
        parent = best[int(draw.integers(num))] if num else index
        explored = {key: _explored(params[parent][key], variation, draw) for key, variation in varied.items()}
        found.append(Member(parent, explored))
    return found


def _explored(value: Any, variation: Variation, draw: np.random.Generator) -> Any:
    """A value near another one, or now and then any."""
    if variation.choices:
        place = variation.choices.index(value) + int(draw.integers(2)) * 2 - 1
        if draw.random() < _RESAMPLED:
            place = int(draw.integers(len(variation.choices)))
        return variation.choices[min(max(place, 0), len(variation.choices) - 1)]
    low, high = variation.low, variation.high
    if draw.random() < _RESAMPLED:
        drawn = math.exp(draw.uniform(math.log(low), math.log(high))) if variation.log else draw.uniform(low, high)
    else:
        drawn = value * FACTORS[int(draw.integers(2))]
    step = variation.step or (1 if variation.is_integer else None)
    if step is not None:
        drawn = low + round((drawn - low) / step) * step
    drawn = min(max(drawn, low), high)
    return int(drawn) if variation.is_integer else float(drawn)
