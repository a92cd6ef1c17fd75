"""The global random generators of Python, NumPy and PyTorch's CPU."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(key: int) -> None:
    """Seeds the global generators of Python, NumPy and torch's CPU from `key`."""
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key)


@contextmanager
def restored() -> Iterator[None]:
    """Context manager that restores the global generators on exit: seeding them for data must not affect training."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
