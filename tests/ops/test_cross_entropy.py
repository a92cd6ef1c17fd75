"""Cross-entropy without stored probabilities, against float64 in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from trainkit.errors import ConfigError, UsageError
from trainkit.ops import cross_entropy, mode
from trainkit.ops.cross_entropy import cross_entropy_reference

IGNORED = -100
DTYPES = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def _inputs(num_rows, num_classes, dtype=torch.float64, device="cpu"):
    torch.manual_seed(num_rows * 100_003 + num_classes)
    logits = (4 * torch.randn(num_rows, num_classes, dtype=torch.float64)).to(dtype)
    labels = torch.randint(num_classes, (num_rows,))
    labels[::3] = IGNORED
    return logits.to(device), labels.to(device)


def _with_gradient(function, logits, labels, factor=0.7, **options):
    leaf = logits.detach().clone().requires_grad_()
    loss = function(leaf * 1, labels, **options)
    (loss * factor).backward()
    return loss.detach(), leaf.grad


def _in_double(logits, labels):
    def function(logits, labels):
        return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")

    return _with_gradient(function, logits.double(), labels)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (5, 1024), (4, 1025), (3, 5003), (2, 30528)], ids=str)
def test_values_and_gradients(shape, dtype, in_place):
    rows, classes = shape
    logits, labels = _inputs(rows, classes, dtype)
    loss, gradient = _with_gradient(cross_entropy, logits, labels, in_place=in_place)
    expected_loss, expected = _in_double(logits, labels)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert gradient.dtype == dtype
    # The arithmetic is in fp32 whatever the logits are; only the gradient is rounded.
    assert (loss.double() - expected_loss).abs() <= max(1e-6, DTYPES[torch.float32]) * max(expected_loss, 1)
    assert (gradient.double() - expected).abs().max() <= DTYPES[dtype]
    assert not gradient[labels == IGNORED].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [6, 2048, 3000])
def test_extreme_logits(dtype, num_classes):
    """Maxima that come late, -inf from the start, NaN and infinity: what PyTorch says of them."""
    logits = torch.zeros(6, num_classes, dtype=dtype)
    logits[0] = torch.linspace(-6e4, 6e4, num_classes)
    logits[1, :-1] = float("-inf")
    logits[2] = float("-inf")
    logits[3, 1] = float("nan")
    logits[4, 1] = float("inf")
    logits[5, 2:] = -1e4
    for row in logits.split(1):
        for label in (0, num_classes - 1):
            labels = torch.tensor([label])
            loss, gradient = _with_gradient(cross_entropy, row, labels)
            expected_loss, expected = _in_double(row, labels)
            torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6, equal_nan=True)
            torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=DTYPES[dtype], equal_nan=True)


def test_an_impossible_class_has_no_gradient_at_all():
    """Or the padded entries of a vocabulary, at -1e4, would be moved by Adam however small it is."""
    logits, labels = _inputs(4, 100, torch.float32)
    logits[:, 90:] = -1e4
    labels = labels.clamp(max=80)
    assert not _with_gradient(cross_entropy, logits, labels)[1][:, 90:].any()


def test_small_probabilities_survive_a_loss_scale_in_fp16():
    """1e-9 is below what fp16 holds; times the scale it is not, and must not have been rounded before."""
    logits = torch.zeros(1, 8, dtype=torch.float16)
    logits[0, 0] = 20.0
    scale = 65536.0
    _, gradient = _with_gradient(cross_entropy, logits, torch.tensor([0]), factor=scale, in_place=True)
    expected = scale * logits.double().softmax(1)[0, 1]
    assert abs(gradient[0, 1].double() - expected) < 1e-2 * expected


def test_reference_is_pytorchs_bit_for_bit():
    logits, labels = _inputs(9, 77, torch.bfloat16)
    loss, gradient = _with_gradient(cross_entropy_reference, logits, labels)
    leaf = logits.clone().requires_grad_()
    expected = F.cross_entropy(leaf.float(), labels, ignore_index=IGNORED, reduction="sum")
    (expected * 0.7).backward()
    assert torch.equal(loss, expected.detach())
    assert torch.equal(gradient, leaf.grad)


@pytest.mark.parametrize("rows", [0, 4])
def test_no_rows_or_none_in_use(rows):
    logits, labels = torch.randn(rows, 5), torch.full((rows,), IGNORED)
    loss, gradient = _with_gradient(cross_entropy, logits, labels)
    assert loss == 0
    assert gradient.shape == (rows, 5)
    assert not gradient.any()


def test_non_contiguous_logits_and_labels():
    logits, labels = _inputs(40, 30)
    views = logits.t()[::2], torch.stack((labels[:15], labels[:15]), dim=1)[:, 0].clamp(max=39)
    expected_loss, expected = _in_double(*views)
    for in_place in (False, True):
        loss, gradient = _with_gradient(lambda x, y, in_place=in_place: cross_entropy(x, y, in_place=in_place), *views)
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(gradient, expected)


def test_gradcheck_with_another_ignored_label():
    logits, labels = _inputs(5, 7)[0], torch.tensor([3, 0, 6, 3, 1])
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels, ignore_index=3), logits.requires_grad_())


def test_opcheck():
    logits, labels = _inputs(5, 7, torch.float32)
    cross_entropy(logits, labels)  # the library is there
    ops = torch.ops.trainkit
    torch.library.opcheck(ops.cross_entropy, (logits.clone().requires_grad_(), labels, IGNORED, False))
    losses, statistics = ops.cross_entropy(logits, labels, IGNORED, False)
    arguments = (torch.ones_like(losses), logits, statistics, labels, IGNORED)
    torch.library.opcheck(ops.cross_entropy_backward, arguments)
    torch.library.opcheck(ops.cross_entropy_backward_, arguments)


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled(in_place):
    logits, labels = _inputs(6, 33, torch.float32)
    compiled = torch.compile(lambda x, y: cross_entropy(x * 1, y, in_place=in_place) * 2, fullgraph=True)
    loss, gradient = _with_gradient(compiled, logits, labels)
    expected_loss, expected = _in_double(logits, labels)
    torch.testing.assert_close(loss.double(), 2 * expected_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), 2 * expected, rtol=0, atol=1e-6)


def test_checkpointed_and_under_autocast():
    weight = torch.randn(20, 8, requires_grad=True)
    x, labels = torch.randn(6, 8), torch.tensor([1, 2, IGNORED, 4, 5, 19])

    def loss_of(weight):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = F.linear(x, weight)
            assert logits.dtype == torch.bfloat16
            return cross_entropy(logits, labels, in_place=True)

    gradient = torch.autograd.grad(loss_of(weight), weight)[0]
    again = torch.autograd.grad(torch.utils.checkpoint.checkpoint(loss_of, weight, use_reentrant=False), weight)[0]
    assert torch.equal(gradient, again)


# -- in place ----------------------------------------------------------------------------------------------------------


def test_in_place_uses_the_storage_of_the_logits_in_backward():
    leaf, labels = torch.randn(6, 9, requires_grad=True), torch.arange(6)
    hidden = leaf * 1
    before = hidden.detach().clone()
    loss = cross_entropy(hidden.view(6, 9), labels, in_place=True)
    assert torch.equal(hidden, before)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.data_ptr() == hidden.data_ptr()


def test_logits_used_elsewhere_are_still_right_or_refused():
    leaf, labels = torch.randn(6, 9, dtype=torch.float64, requires_grad=True), torch.arange(6)

    def total(in_place, other):
        logits = leaf * 1
        # The op that was recorded last is the first whose gradient is computed.
        first = other(logits)
        return first + cross_entropy(logits, labels, in_place=in_place)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total(True, lambda x: x.square().sum()), leaf)
    (expected,) = torch.autograd.grad(total(False, lambda x: 3 * x.sum()), leaf)
    (gradient,) = torch.autograd.grad(total(True, lambda x: 3 * x.sum()), leaf)
    torch.testing.assert_close(gradient, expected)


def test_a_second_backward_is_refused_without_logits():
    leaf, labels = torch.randn(6, 9, requires_grad=True), torch.arange(6)
    loss = cross_entropy(leaf * 1, labels, in_place=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_leaf_is_not_overwritten():
    leaf, labels = torch.randn(3, 2, 9, requires_grad=True), torch.arange(6)
    for logits in (leaf.view(6, 9), torch.randn(6, 9, requires_grad=True)):
        with pytest.raises(UsageError, match="in_place=False"):
            cross_entropy(logits, labels, in_place=True)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_no_second_order_and_what_has_it():
    logits, labels = _inputs(4, 5)
    logits.requires_grad_()

    def penalty():
        (gradient,) = torch.autograd.grad(cross_entropy(logits, labels), logits, create_graph=True)
        return gradient.square().sum()

    with pytest.raises(UsageError, match="ops=reference"):
        penalty().backward()
    mode.use("reference")
    try:
        assert torch.autograd.grad(penalty(), logits)[0].any()
    finally:
        mode.use("fused")


@pytest.mark.parametrize("label", [9, -1, -101])
def test_a_label_out_of_range_is_named(label):
    labels = torch.arange(6)
    labels[4] = label
    with pytest.raises(RuntimeError, match=rf"labels\[4\] is {label}; it must be 0 to 8 or ignore_index=-100"):
        cross_entropy(torch.randn(6, 9), labels)


@pytest.mark.parametrize(
    "logits, labels",
    [
        (torch.randn(2, 3, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.randn(2, 3), torch.zeros(3, dtype=torch.int64)),
        (torch.randn(2, 3), torch.zeros(2, dtype=torch.int32)),
        (torch.ones(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels):
    with pytest.raises(ConfigError, match="they must be"):
        cross_entropy(logits, labels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(7, 3), (5, 1024), (3, 5003), (640, 30528)], ids=str)
def test_cuda_equals_float64(shape, dtype):
    rows, classes = shape
    logits, labels = _inputs(rows, classes, dtype, "cuda")
    expected_loss, expected = _in_double(logits, labels)
    for in_place in (False, True):
        loss, gradient = _with_gradient(cross_entropy, logits, labels, in_place=in_place)
        assert (loss.double() - expected_loss).abs() <= 1e-6 * expected_loss.clamp(min=1)
        assert (gradient.double() - expected).abs().max() <= DTYPES[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_makes_a_label_out_of_range_nan():
    logits = torch.randn(3, 9, device="cuda")
    loss, gradient = _with_gradient(cross_entropy, logits, torch.tensor([1, 9, 2], device="cuda"))
    assert loss.isnan()
    assert gradient.isnan().all(1).tolist() == [False, True, False]
