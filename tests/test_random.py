"""Keyed randomness against published vectors, moments, and independence of the split."""

import pytest
import torch

from trainkit.random import key_of, philox, rand, randn, words


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers for philox4x32-10 of the Random123 distribution (kat_vectors)
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    first, second, third, fourth = map(torch.tensor, counter)
    drawn = philox((first, second, third, fourth), key)
    assert tuple(int(word) for word in drawn) == expected


def test_a_draw_depends_on_its_own_position_alone():
    key = key_of(3, "latent")
    positions = torch.tensor([5, 9, 2**40 + 1, 0])
    together = randn(key, positions, (3, 2))
    for i, position in enumerate(positions):
        assert torch.equal(randn(key, position.view(1), (3, 2))[0], together[i])


def test_names_seeds_calls_and_elements_differ():
    positions = torch.arange(4)
    drawn = [
        rand(key_of(seed, name), positions, (8,), call=call)
        for seed, name, call in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    ]
    assert len(torch.unique(torch.stack(drawn))) == 4 * 4 * 8


def test_words_do_not_depend_on_how_many_are_asked_for():
    positions = torch.arange(3)
    assert torch.equal(words(7, positions, 10)[:, :5], words(7, positions, 5))


def test_moments():
    positions = torch.arange(1000)
    uniform = rand(key_of(0, "u"), positions, (200,), torch.float64)
    normal = randn(key_of(0, "n"), positions, (200,), torch.float64)
    # Five standard errors of each statistic over 200,000 draws.
    assert abs(uniform.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / 200_000**0.5
    assert abs(normal.mean()) < 5 / 200_000**0.5
    assert abs(normal.var() - 1) < 5 * 2**0.5 / 200_000**0.5
    assert abs((normal**4).mean() - 3) < 5 * 96**0.5 / 200_000**0.5
    assert uniform.min() >= 0 and uniform.max() < 1


def test_float32_and_float64_agree():
    positions = torch.arange(10)
    assert torch.equal(rand(1, positions, (7,)).double(), rand(1, positions, (7,), torch.float64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_compiled_or_not():
    positions, key = torch.tensor([5, 9, 2**40 + 1, 0]), key_of(3, "latent")
    expected = words(key, positions, 5000, call=2)
    for draw in (words, torch.compile(words, dynamic=False)):
        assert torch.equal(draw(key, positions.cuda(), 5000, call=2).cpu(), expected)
