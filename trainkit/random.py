"""Random numbers that are a pure function of (seed, name, sample position, element).

No state is kept, so none has to be saved, and the split of a batch into ranks, micro-batches or loader workers does not
change a number. The generator is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
2011).
"""

import hashlib
import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def key_of(*parts: int | str) -> int:
    """Hashes the parts that identify a use of randomness, equally on every machine and in every version of Python.

    Args:
        parts: such as a seed and a name.

    Returns:
        63 bits.

    Example:
        >>> key_of(0, "latent") == key_of(0, "latent") != key_of(1, "latent")
        True
    """
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Computes ten rounds of Philox-4x32.

    Args:
        counter: four int64 tensors of 32-bit words, whose shapes broadcast.
        key: two 32-bit words.

    Returns:
        Four int64 tensors of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words may wrap in int64: its bits are correct nevertheless.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & _MASK) ^ c1 ^ k0,
            second & _MASK,
            ((first >> 32) & _MASK) ^ c3 ^ k1,
            first & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words(key: int, positions: Tensor, num_words: int, call: int = 0) -> Tensor:
    """Draws random 32-bit words for each position.

    Args:
        key: from `key_of`.
        positions: int64 [n].
        num_words: words per position.
        call: distinguishes further draws with the same key.

    Returns:
        int64 [n, num_words], on the device of `positions`.
    """
    num_blocks = -(-num_words // 4)
    # Masked only for torch.compile, which makes a plain arange the index of a Triton kernel, in 32 bits, and then
    # cannot multiply it by a larger constant.
    block = (torch.arange(num_blocks, device=positions.device) & _MASK).unsqueeze(0)
    low, high = (positions & _MASK).unsqueeze(1), (positions >> 32).unsqueeze(1)
    call_word = torch.full((), call, dtype=torch.int64, device=positions.device)
    drawn = philox((block, call_word, low, high), (key & _MASK, key >> 32))
    return torch.stack(drawn, dim=-1).flatten(1)[:, :num_words]


def rand(
    key: int, positions: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, call: int = 0
) -> Tensor:
    """Draws from the uniform distribution on [0, 1).

    Each number has 24 random bits, so it is the same in float32 and float64.

    Args:
        key: from `key_of`.
        positions: int64 [n].
        shape: per position.
        dtype: of the result.
        call: distinguishes further draws with the same key.

    Returns:
        [n, *shape], on the device of `positions`.
    """
    drawn = words(key, positions, math.prod(shape), call) >> 8
    return (drawn.to(dtype) * 2.0**-24).view(len(positions), *shape)


def randn(key: int, positions: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws from the standard normal distribution, by the Box-Muller transform in float64.

    Args:
        key: from `key_of`.
        positions: int64 [n].
        shape: per position.
        dtype: of the result.

    Returns:
        [n, *shape], on the device of `positions`.
    """
    count = math.prod(shape)
    uniform = (words(key, positions, 2 * count).to(torch.float64) + 0.5) * 2.0**-32
    first, second = uniform[:, :count], uniform[:, count:]
    normal = torch.sqrt(-2.0 * torch.log(first)) * torch.cos(2.0 * math.pi * second)
    return normal.to(dtype).view(len(positions), *shape)
