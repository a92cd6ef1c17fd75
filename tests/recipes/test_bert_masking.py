"""Masking: BERT's statistics, never a special token, and the same for any split of the batch."""

from types import SimpleNamespace

import pytest
import torch

from tests.present import present
from trainkit.errors import ConfigError
from trainkit_recipes.bert.baselines import LEFT_BIGRAM, MOST_FREQUENT, TWO_SIDED, NeighbourCounts
from trainkit_recipes.bert.data import IGNORED, Masking
from trainkit_recipes.bert.losses import masked_loss

VOCAB = 1000
TOKENIZER = SimpleNamespace(vocab_size=VOCAB, pad=0, mask=4, special_tokens=(0, 1, 2, 3, 4))
CPU = torch.device("cpu")


def make(count: int = 2000, length: int = 64) -> torch.Tensor:
    """Windows that begin with [CLS], with a [SEP] in the middle and padding at the end of every other."""
    tokens = torch.randint(5, VOCAB, (count, length), generator=torch.Generator().manual_seed(0))
    tokens[:, 0], tokens[:, 30] = 2, 3
    tokens[::2, 50:] = 0
    return tokens


def masked(tokens: torch.Tensor, share: float = 0.15, seed: int = 1):
    masking = Masking(TOKENIZER, share, CPU)
    draws = masking.num_draws(tokens.shape[1])
    return masking(tokens, torch.rand(len(tokens), draws, generator=torch.Generator().manual_seed(seed)))


def test_shares_are_those_of_bert():
    tokens = make()
    result = masked(tokens)
    used = result.labels_BK != IGNORED
    open_tokens = (tokens >= 5).sum(dim=1)
    assert torch.equal(used.sum(dim=1), (0.15 * open_tokens.double()).round().long())
    seen = result.tokens_BT.gather(1, result.chosen_BK)[used]
    truth = result.labels_BK[used]
    assert (seen == 4).float().mean() == pytest.approx(0.8, abs=0.015)
    assert (seen == truth).float().mean() == pytest.approx(0.1, abs=0.01)
    replaced = seen[(seen != 4) & (seen != truth)]
    assert len(replaced) / len(seen) == pytest.approx(0.1, abs=0.01)
    assert replaced.min() >= 5
    assert replaced.float().mean() == pytest.approx((5 + VOCAB - 1) / 2, rel=0.05)
    places = torch.zeros(64).index_add(0, result.chosen_BK[used], torch.ones(len(truth)))[1:30]
    assert places.std() / places.mean() < 0.15  # no place is favoured


def test_labels_are_the_tokens_and_only_chosen_ones_change():
    tokens = make()
    result = masked(tokens)
    used = result.labels_BK != IGNORED
    assert torch.equal(tokens.gather(1, result.chosen_BK)[used], result.labels_BK[used])
    assert result.labels_BK[used].min() >= 5  # never a special token, never padding
    restored = result.tokens_BT.scatter(1, result.chosen_BK, tokens.gather(1, result.chosen_BK))
    assert torch.equal(restored, tokens)
    assert all(len(set(row.tolist())) == len(row) for row in result.chosen_BK)
    changed = result.tokens_BT != tokens
    assert not changed[tokens < 5].any()


def test_a_sample_has_one_token_masked_and_an_empty_one_none():
    tokens = torch.zeros(3, 64, dtype=torch.int64)
    tokens[:, 0] = 2
    tokens[1, 1] = 7
    tokens[2, 1:4] = 8
    assert (masked(tokens).labels_BK != IGNORED).sum(dim=1).tolist() == [0, 1, 1]


def test_a_sample_is_masked_the_same_in_any_batch():
    tokens = make(32)
    masking = Masking(TOKENIZER, 0.15, CPU)
    uniform = torch.rand(32, masking.num_draws(64), generator=torch.Generator().manual_seed(3))
    whole = masking(tokens, uniform)
    for rank in range(4):
        part = masking(tokens[rank::4], uniform[rank::4])
        assert torch.equal(part.tokens_BT, whole.tokens_BT[rank::4])
        assert torch.equal(part.labels_BK, whole.labels_BK[rank::4])
    none = masking(tokens[:0], uniform[:0])
    assert none.labels_BK.shape == (0, masking.num_slots(64))


def test_the_loss_counts_used_slots_only():
    logits = torch.randn(3, 2, VOCAB, requires_grad=True)
    labels = torch.tensor([[7, IGNORED], [8, 9], [IGNORED, IGNORED]])
    loss, count = masked_loss(logits, labels)
    rows = logits.log_softmax(-1)
    assert count == 3
    assert loss.item() == pytest.approx(-(rows[0, 0, 7] + rows[1, 0, 8] + rows[1, 1, 9]).item() / 3, rel=1e-5)
    empty, none = masked_loss(logits[2:], labels[2:])
    empty.backward()
    assert (empty.item(), none.item()) == (0.0, 0)
    assert not present(logits.grad).any()


def test_a_share_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"mask_share=1\.0"):
        Masking(TOKENIZER, 1.0, CPU)


def test_baselines_count_neighbours():
    #          a  b  c        d  b  e        a  b  c        d  b  c    x  x  x  x  x  x
    text = [2, 5, 6, 7, 3, 2, 8, 6, 9, 3, 2, 5, 6, 7, 3, 2, 8, 6, 7, 3, 10, 10, 10, 10, 10, 10]
    counts = NeighbourCounts.of([torch.tensor([text])], TOKENIZER)
    asked = torch.tensor([[5, 99, 9, 0], [6, 99, 3, 0], [99, 99, 99, 0], [8, 99, 7, 0]])
    predictions = counts.predictions(asked, torch.ones(4, 1, dtype=torch.int64))
    assert predictions[MOST_FREQUENT].flatten().tolist() == [10, 10, 10, 10]
    assert predictions[LEFT_BIGRAM].flatten().tolist() == [6, 7, 10, 6]
    assert predictions[TWO_SIDED].flatten().tolist() == [6, 7, 10, 6]
    between = counts.predictions(torch.tensor([[6, 99, 3]]), torch.tensor([[1]]))
    assert between[TWO_SIDED].item() == 7
    only_right_differs = NeighbourCounts.of([torch.tensor([[5, 6, 7], [5, 8, 9], [5, 8, 9]])], TOKENIZER)
    predictions = only_right_differs.predictions(
        torch.tensor([[5, 99, 7], [5, 99, 9]]), torch.ones(2, 1, dtype=torch.int64)
    )
    assert predictions[LEFT_BIGRAM].flatten().tolist() == [8, 8]
    assert predictions[TWO_SIDED].flatten().tolist() == [6, 8]
