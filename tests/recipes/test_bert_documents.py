"""Documents in rows without padding: equal to the padded form, apart from one another, and masked alike."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from trainkit.ops import Dropout
from trainkit_recipes.bert.attention import _ByDocument, alibi_slopes
from trainkit_recipes.bert.documents import Documents, Unpadded
from trainkit_recipes.bert.model import TINY, MaskedLanguageModel

VOCAB = 101
LENGTHS = [3, 5, 5, 9, 24]
SMALL = replace(TINY, hidden_size=32, feed_forward_size=64, init_std=0.2)
VARIANTS = [
    (positions, norm, p)
    for positions in ("learned", "rotary", "relative", "alibi")
    for norm, p in (("pre", 0.3), ("post", 0.0))
]


def make_model(dropout: float = 0.0, **changes: Any) -> MaskedLanguageModel:
    torch.manual_seed(0)
    architecture = replace(SMALL, dropout=dropout, attention_dropout=dropout, **changes)
    model = MaskedLanguageModel(architecture, VOCAB).double().train()
    for key, layer in enumerate(part for part in model.modules() if type(part).__name__ == "Dropout"):
        cast(Dropout, layer).see(key, torch.arange(5), 0)
    return model


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """tokens_BT, one document each, and attended_BT."""
    attended = torch.arange(24) < torch.tensor(LENGTHS)[:, None]
    tokens = torch.randint(5, VOCAB, (5, 24), generator=torch.Generator().manual_seed(1))
    return tokens.masked_fill(~attended, 0), attended


def windows() -> tuple[torch.Tensor, torch.Tensor]:
    """The same documents, two and three in a window, with their numbers."""
    tokens, attended = padded()
    rows = [tokens[i][attended[i]] for i in range(5)]
    packed, documents = torch.zeros(2, 32, dtype=torch.int64), torch.full((2, 32), -1)
    for window, members in enumerate(((4, 1), (3, 0, 2))):
        first = 0
        for number in members:
            packed[window, first : first + len(rows[number])] = rows[number]
            documents[window, first : first + len(rows[number])] = 10 + number
            first += len(rows[number])
    return packed, documents


def order_of(unpadded: Unpadded) -> torch.Tensor:
    """Where each row of `unpadded` is among the rows of `padded()` that are attended to."""
    firsts = torch.tensor([0, *LENGTHS]).cumsum(0)
    numbers = torch.repeat_interleave(unpadded.numbers_P - 10, torch.tensor(unpadded.documents.lengths))
    return firsts[numbers] + unpadded.documents.positions_N


@pytest.mark.parametrize(("positions", "norm", "p"), VARIANTS)
def test_rows_without_padding_compute_what_padded_ones_do(positions, norm, p):
    model = make_model(p, positions=positions, norm=norm)
    tokens, attended = padded()
    unpadded = Unpadded.of(*windows())
    ours = model(unpadded.tokens_N, documents=unpadded.documents)
    if p:  # masks are by document and token: with padding the same ones fall
        form = Documents.of([24] * 5, torch.arange(10, 15), attended)
        theirs = model(tokens.flatten(), documents=form)[attended.flatten()]
    else:
        theirs = model(tokens, attended_BT=attended)[attended]
    theirs = theirs[order_of(unpadded)]
    assert (ours - theirs)[:, :VOCAB].abs().max() < 1e-10 * theirs[:, :VOCAB].abs().max()
    direction = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parameters = [*model.parameters()]
    found, expected = (torch.autograd.grad((x * direction).mean(), parameters) for x in (ours, theirs))
    largest = max(float(g.abs().max()) for g in expected)
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) < 1e-10 * largest


@pytest.mark.parametrize(("positions", "norm", "p"), VARIANTS)
def test_chosen_rows_are_those_of_all_rows(positions, norm, p):
    model = make_model(p, positions=positions, norm=norm)
    unpadded = Unpadded.of(*windows())
    chosen = torch.tensor([[0, 7, 45], [11, 3, 3]])
    ours = model(unpadded.tokens_N, chosen, documents=unpadded.documents)
    theirs = model(unpadded.tokens_N, documents=unpadded.documents)[chosen]
    assert torch.allclose(ours, theirs, atol=1e-12)
    direction = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parameters = [*model.parameters()]
    found, expected = (torch.autograd.grad((x * direction).mean(), parameters) for x in (ours, theirs))
    largest = max(float(g.abs().max()) for g in expected)
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) < 1e-12 * largest
    assert model(unpadded.tokens_N, chosen[:0], documents=unpadded.documents).shape == (0, 3, 128)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("positions", ["learned", "rotary", "relative", "alibi"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_no_document_changes_a_bit_of_anothers_logits(positions, p, dtype):
    model = make_model(p, positions=positions).to(dtype)
    tokens, documents = windows()
    before = Unpadded.of(tokens, documents)
    mine = torch.repeat_interleave(before.numbers_P, torch.tensor(before.documents.lengths)) == 12
    logits = model(before.tokens_N, documents=before.documents)[mine]
    others = torch.where(documents == 12, tokens, torch.randint(5, VOCAB, tokens.shape))
    after = Unpadded.of(others, torch.where((documents >= 0) & (documents != 12), documents + 100, documents))
    assert not torch.equal(after.tokens_N, before.tokens_N)
    mine = torch.repeat_interleave(after.numbers_P, torch.tensor(after.documents.lengths)) == 12
    assert torch.equal(model(after.tokens_N, documents=after.documents)[mine], logits)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_gradient_of_attention_is_its_derivative(padding, has_bias):
    generator = torch.Generator().manual_seed(0)
    attended = torch.arange(3) < torch.tensor([2, 3])[:, None] if padding else None
    documents = Documents.of([3, 3] if padding else [1, 2, 2], attended_BL=attended)
    rows = sum(documents.lengths)
    qkv = torch.randn(rows, 3, 2, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    bias = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True) if has_bias else None
    draw = {"p": 0.4, "key": 5, "positions": documents.rows_N, "call": 1}
    inputs = [qkv] if bias is None else [qkv, bias]
    assert torch.autograd.gradcheck(lambda q, b=None: _ByDocument.apply(q, b, documents, draw), inputs)


def test_windows_become_documents_and_rows_again():
    tokens, documents = windows()
    unpadded = Unpadded.of(tokens, documents, torch.tensor([0, 1000]))
    assert unpadded.documents.lengths == (3, 5, 5, 9, 24)
    assert unpadded.documents.groups == [(0, 1, 3), (3, 2, 5), (13, 1, 9), (22, 1, 24)]
    assert unpadded.numbers_P.tolist() == [1010, 11, 1012, 1013, 14]  # those of the second window are another epoch's
    one_by_one = unpadded.one_by_one(padding=7)
    whole, attended = padded()
    assert torch.equal(one_by_one[:, :24], whole.masked_fill(~attended, 7))
    assert (one_by_one[:, 24:] == 7).all()
    assert torch.equal(unpadded.rows(one_by_one), unpadded.tokens_N)
    chosen = unpadded.chosen(torch.tensor([[0, 1, 2]] * 5))
    assert torch.equal(unpadded.tokens_N[chosen], one_by_one[:, :3])
    assert unpadded.chosen(torch.full((5, 1), 31)).flatten().tolist() == [2, 7, 12, 21, 45]  # within the document
    none = Unpadded.of(tokens[:0], documents[:0])
    assert none.documents.lengths == () and none.documents.longest == 0
    assert make_model()(none.tokens_N, documents=none.documents).shape == (0, 128)


def test_alibi_has_the_slopes_of_transformers():
    transformers = pytest.importorskip("transformers", reason="the transformers library is the oracle")
    build = transformers.models.bloom.modeling_bloom.build_alibi_tensor
    for num_heads in (1, 2, 3, 4, 6, 12, 16):
        theirs = build(torch.ones(1, 2, dtype=torch.int64), num_heads, torch.float64)[:, 0, 1]
        assert torch.allclose(torch.tensor(alibi_slopes(num_heads), dtype=torch.float64), theirs)
