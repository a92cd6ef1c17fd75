"""Masking of whole words and of spans: beside a slow form in plain Python, and the published distribution."""

from collections import Counter
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch

from trainkit.data import Normalizer, WordPiece
from trainkit.errors import ConfigError, DataError
from trainkit_recipes.bert.data import IGNORED, LONGEST_WORD, Kind, Masking

VOCAB = 1000
CONTINUATIONS = range(600, VOCAB)  # 40 % of the tokens
TOKENIZER = SimpleNamespace(
    vocab_size=VOCAB, pad=0, mask=4, special_tokens=(0, 1, 2, 3, 4), continuations=CONTINUATIONS
)
CPU = torch.device("cpu")


def text(count: int, length: int, end: int = 30) -> torch.Tensor:
    tokens = torch.randint(5, VOCAB, (count, length), generator=torch.Generator().manual_seed(0))
    tokens[:, 0], tokens[:, end] = 2, 3
    tokens[::2, length - 7 :] = 0
    return tokens


def masked(tokens: torch.Tensor, kind: Kind, share: float = 0.15):
    masking = Masking(TOKENIZER, share, CPU, kind)
    uniform = torch.rand(len(tokens), masking.num_draws(tokens.shape[1]), generator=torch.Generator().manual_seed(1))
    return masking, uniform, masking(tokens, uniform)


def words_of(tokens: list[int]) -> list[list[int]]:
    """Places of the tokens of each word."""
    words: list[list[int]] = []
    for place, token in enumerate(tokens):
        if token < 5:
            continue
        is_next = bool(words) and words[-1][-1] == place - 1 and token in CONTINUATIONS
        if is_next and len(words[-1]) < LONGEST_WORD:
            words[-1].append(place)
        else:
            words.append([place])
    return words


def units_of(words: list[list[int]], kind: str, uniform: list[float]) -> list[list[list[int]]]:
    """The words of each unit."""
    if kind == "words":
        return [[word] for word in words]
    weights = [0.2 * 0.8**n for n in range(10)]
    draws = iter(uniform)
    units: list[list[list[int]]] = []
    left = 0
    for word in words:
        is_begin = left == 0
        if is_begin:
            draw = next(draws)
            left = 1 + sum(sum(weights[: n + 1]) / sum(weights) <= draw for n in range(9))
        left -= 1
        if is_begin or units[-1][-1][-1] != word[0] - 1:
            units.append([])
        units[-1].append(word)
    return units


def expected(masking: Masking, tokens: list[int], uniform: list[float], kind: str) -> tuple[list[int], dict[int, int]]:
    """What is seen, and the labels by place."""
    length, num_slots = len(tokens), masking.num_slots(len(tokens))
    scores, action, other = (
        uniform[:length],
        uniform[length : length + num_slots],
        uniform[length + num_slots : length + 2 * num_slots],
    )
    arc, *draws = uniform[length + 2 * num_slots :]
    words = words_of(tokens)
    units = sorted(units_of(words, kind, draws), key=lambda unit: scores[unit[0][0]])
    circle = [(place, unit[0][0], word[0]) for unit in units for word in unit for place in word]
    num_open = len(circle)
    wanted = min(num_open, max(1, round(masking.share * num_open)))
    begin = int(arc * num_open)
    circle = [*circle[begin:], *circle[:begin]]
    arc_words = {word for place, _, word in circle[:wanted] if place == word}
    seen, labels, slot_of = [*tokens], {}, {}
    for slot, (place, unit, _) in enumerate(circle):
        if place == unit:
            slot_of[unit] = slot
    for slot, (place, unit, word) in enumerate(circle):
        if word not in arc_words:
            continue
        labels[place] = tokens[place]
        first = slot_of[unit]
        draw = action[first if first < num_slots else 0]
        if draw < 0.8:
            seen[place] = 4
        elif draw < 0.9:
            seen[place] = 5 + int(other[slot] * (VOCAB - 5))
    return seen, labels


@pytest.mark.parametrize("kind", ["words", "spans"])
@pytest.mark.parametrize(("length", "share"), [(64, 0.15), (64, 0.3), (9, 0.9), (40, 0.6), (1, 0.5)])
def test_it_is_the_plain_form(kind, length, share):
    tokens = text(64, length, end=min(30, length - 1))
    tokens[1, 1:] = 0
    tokens[3, 1:] = 700  # one word, longer than any
    masking, uniform, result = masked(tokens, kind, share)
    for row in range(len(tokens)):
        seen, labels = expected(masking, tokens[row].tolist(), uniform[row].tolist(), kind)
        assert result.tokens_BT[row].tolist() == seen
        is_used = result.labels_BK[row] != IGNORED
        found = dict(zip(result.chosen_BK[row][is_used].tolist(), result.labels_BK[row][is_used].tolist(), strict=True))
        assert found == labels
        assert len(set(result.chosen_BK[row].tolist())) == masking.num_slots(length)


@pytest.mark.parametrize("kind", ["words", "spans"])
def test_words_are_whole_and_each_has_the_same_probability(kind):
    tokens = text(1, 32).expand(40000, 32).contiguous()
    tokens[:, 25:] = 0
    _, _, result = masked(tokens, kind, share=0.27)
    is_used = result.labels_BK != IGNORED
    chosen = torch.zeros(tokens.shape).scatter(1, result.chosen_BK, is_used.float())
    num_open = int((tokens[0] >= 5).sum())
    wanted = round(0.27 * num_open)
    counts = chosen.sum(1)
    assert counts.mean() == pytest.approx(wanted, abs=5 * counts.std().item() / 200)
    for word in words_of(tokens[0].tolist()):
        assert (chosen[:, word] == chosen[:, word[:1]]).all()
        assert chosen[:, word[0]].mean() == pytest.approx(wanted / num_open, abs=5 * 0.5 / 200)
    assert counts.max() < wanted + LONGEST_WORD


def test_by_brute_force_every_word_is_chosen_equally_often():
    tokens = torch.tensor([2, 5, 6, 700, 7, 701, 702, 3, 8, 0])  # words of 1, 2, 3 and 1 tokens
    masking = Masking(TOKENIZER, 0.4, CPU, "words")
    num_slots = masking.num_slots(10)
    rows = [
        [*(score[word] / 4 if word >= 0 else 0.0 for word in (-1, 0, 1, 1, 2, 2, 2, -1, 3, -1)),
         *[0.5] * (2 * num_slots), begin / 7]
        for score in permutations(range(4)) for begin in range(7)
    ]  # fmt: skip
    result = masking(tokens.expand(len(rows), 10), torch.tensor(rows, dtype=torch.float64) + 1e-9)
    is_masked = result.tokens_BT == 4
    assert [int(is_masked[:, place].sum()) * 7 for place in (1, 2, 3, 4, 5, 6, 8)] == [3 * len(rows)] * 7
    assert not is_masked[:, [0, 7, 9]].any()


@pytest.mark.parametrize("kind", ["words", "spans"])
def test_a_whole_unit_becomes_the_same(kind):
    tokens = text(4000, 64)
    _, _, result = masked(tokens, kind)
    is_chosen = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, result.chosen_BK, result.labels_BK != IGNORED)
    actions: Counter[str] = Counter()
    for row in range(1000):
        seen = result.tokens_BT[row]
        for word in words_of(tokens[row].tolist()):
            if not is_chosen[row, word[0]]:
                continue
            is_mask = seen[word] == 4
            assert is_mask.all() or not is_mask.any()
            actions["mask" if is_mask[0] else "same" if torch.equal(seen[word], tokens[row, word]) else "other"] += 1
    total = actions.total()
    assert actions["mask"] / total == pytest.approx(0.8, abs=0.04)
    assert actions["same"] / total == pytest.approx(0.1, abs=0.03)


def test_spans_have_published_lengths_within_a_document():
    """SpanBERT, section 3.1: geometric with p = 0.2, at most 10 words, 3.8 in the mean."""
    length = 4096
    tokens = torch.full((8, length), 5)  # each token is a word
    masking = Masking(TOKENIZER, 0.01, CPU, "spans")
    uniform = torch.rand(8, masking.num_draws(length), generator=torch.Generator().manual_seed(2))
    _, firsts = masking._firsts(tokens, tokens >= 5, uniform[:, -length:])
    spans = torch.cat([row.unique(return_counts=True)[1][:-1] for row in firsts])  # the last one is cut
    assert spans.double().mean() == pytest.approx(3.8, abs=5 * 2.6 / len(spans) ** 0.5)
    shares = spans.bincount(minlength=11)[1:] / len(spans)
    weights = torch.tensor([0.2 * 0.8**n for n in range(10)])
    assert (shares - weights / weights.sum()).abs().max() < 5 * (0.25 / len(spans)) ** 0.5
    assert len(shares) == 10

    tokens[:, 100::100] = 3
    _, firsts = masking._firsts(tokens, tokens >= 5, uniform[:, -length:])
    places = torch.arange(length)
    is_open = tokens[0] >= 5
    assert (places // 100 == firsts // 100)[:, is_open].all()


@pytest.mark.parametrize("kind", ["words", "spans"])
def test_a_sample_is_masked_the_same_in_any_batch(kind):
    tokens = text(32, 64)
    masking, uniform, whole = masked(tokens, kind)
    for rank in range(4):
        part = masking(tokens[rank::4], uniform[rank::4])
        assert torch.equal(part.tokens_BT, whole.tokens_BT[rank::4])
        assert torch.equal(part.labels_BK, whole.labels_BK[rank::4])
    assert masking(tokens[:0], uniform[:0]).labels_BK.shape == (0, masking.num_slots(64))


def test_a_tokenizer_says_what_continues_a_word():
    numbers = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "##turns": 5, "re": 6, "##s": 7}
    assert WordPiece.from_vocabulary(numbers, Normalizer()).continuations == [5, 7]


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"recipe\.masking=letters: must be one of tokens, words, spans"):
        Masking(TOKENIZER, 0.15, CPU, "letters")  # type: ignore[arg-type]
    other = SimpleNamespace(vocab_size=9, mask=4, special_tokens=(0,))
    with pytest.raises(DataError, match=r"recipe\.masking=words: SimpleNamespace has no `continuations`"):
        Masking(other, 0.15, CPU, "words")
