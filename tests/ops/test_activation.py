"""Functions that users write down: their values and derivatives against torch's, and what is said of wrong ones."""

import copy
import math
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.present import present
from trainkit.errors import ConfigError, UsageError
from trainkit.ops import activation, build, derivative, library, mode
from trainkit.ops.expression import ARITY, parse

QUICK_GELU = "x * sigmoid(1.702f * x)"
PIECES = "x > 1 ? pow(x, 3) / 3.f : x < -1 || !(x == x) ? -0.5 * square(x) : where(x >= 0 && x <= 1, sin(x), erf(x))"
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float64: 1e-13}


@pytest.fixture(scope="module", autouse=True)
def _no_gpu_code():
    """nvcc takes a while for each, and here there is nothing to run it on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINKIT_CUDA_ARCHS", "none")
        yield


@pytest.fixture(scope="module")
def quick_gelu():
    with pytest.MonkeyPatch.context() as patch:
        if build.find_nvcc():
            patch.setenv("TRAINKIT_CUDA_ARCHS", "9.0")
        return activation(QUICK_GELU, name="quick_gelu")


@pytest.fixture(scope="module")
def every_function():
    """All functions there are, in one."""
    terms = [f"{name}(0.5 + 0.05 * x * x)" for name, count in ARITY.items() if count == 1]
    return activation("+".join(terms) + " + pow(1 + x * x, 1.5) + max(x, 0.3) * min(x, -0.2) + M_PI", name="sum_of_all")


def _points(dtype, shape=(3, 7)):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("which", ["quick_gelu", "every_function"])
def test_values_and_derivatives_are_torchs(which, dtype, request):
    layer = request.getfixturevalue(which)
    x = _points(dtype)
    wide = x.detach().double().requires_grad_()
    found, expected = layer(x), layer.reference(wide)
    assert found.dtype == dtype and layer.op in torch.ops.trainkit_user.__dict__
    (slope,) = torch.autograd.grad(found.sum(), x, create_graph=True)
    (its_slope,) = torch.autograd.grad(expected.sum(), wide, create_graph=True)
    (bend,), (its_bend,) = torch.autograd.grad(slope.sum(), x), torch.autograd.grad(its_slope.sum(), wide)
    for mine, truth in ((found, expected), (slope, its_slope), (bend, its_bend)):
        torch.testing.assert_close(mine.double(), truth, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def test_gradcheck(quick_gelu, every_function):
    for layer in (quick_gelu, every_function):
        x = _points(torch.float64, (5,))
        assert torch.autograd.gradcheck(layer, x) and torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_opcheck(quick_gelu, dtype):
    ops = torch.ops.trainkit_user
    x, g, h = (_points(dtype, (4, 3)) for _ in range(3))
    torch.library.opcheck(getattr(ops, quick_gelu.op), (x,))
    torch.library.opcheck(getattr(ops, f"{quick_gelu.op}_df"), (g, x))
    torch.library.opcheck(getattr(ops, f"{quick_gelu.op}_ddf"), (g.detach(), h.detach(), x.detach()))


@pytest.mark.parametrize("shape", [(0,), (), (1,), (16387,), (2, 0, 3)])
def test_shapes(quick_gelu, shape):
    x = torch.randn(shape)
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))


def test_any_layout(quick_gelu):
    x = torch.randn(6, 4, 5).transpose(0, 2)[::2].requires_grad_()
    torch.testing.assert_close(quick_gelu(x), quick_gelu.reference(x))
    (slope,) = torch.autograd.grad(quick_gelu(x).transpose(0, 1), x, torch.randn(4, 3, 6))
    assert slope.shape == x.shape


def test_in_a_model_compiled_checkpointed_and_under_autocast(quick_gelu):
    model = nn.Sequential(nn.Linear(3, 4), quick_gelu, nn.Linear(4, 1))
    x = torch.randn(5, 3)

    def gradients(run):
        model.zero_grad()
        run(x).square().sum().backward()
        return torch.cat([present(p.grad).flatten() for p in model.parameters()])

    plain = gradients(model)
    torch.testing.assert_close(gradients(torch.compile(model, fullgraph=True)), plain)
    torch.testing.assert_close(gradients(lambda x: checkpoint(model, x, use_reentrant=False)), plain)
    torch.testing.assert_close(gradients(copy.deepcopy(model).requires_grad_(False) and model), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model[:2](x).dtype == torch.bfloat16
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x), model(x)) and repr(again[1]) == f"Activation({QUICK_GELU}, name=quick_gelu)"


def test_kinks_take_the_slope_of_a_side():
    f = parse(PIECES)
    first = present(derivative.derive(f))
    derivative.check(f, first, "pieces", "mend it")
    x = torch.tensor([-2.0, -0.5, 0.5, 2.0], dtype=torch.float64)
    slopes = torch.tensor([2.0, 2 / math.sqrt(math.pi) * math.exp(-0.25), math.cos(0.5), 4.0], dtype=torch.float64)
    torch.testing.assert_close(first.torch(x), slopes)
    for text in ("abs(x)", "relu(x)", "max(x, 0.1f * x)", "fminf(x, 1)"):
        f = parse(text)
        derivative.check(f, present(derivative.derive(f)), text, "mend it")


@pytest.mark.parametrize(
    ("expression", "given"),
    [
        (QUICK_GELU, "sigmoid(1.702f*x) * (1.f + 1.702f * x * (1.f - sigmoid(1.702f*x)))"),
        ("x * std::tanh(log(1.f + expf(x)))", None),
        ("x / (1 + exp(-x))", None),
        ("sign(x) * log1p(abs(x))", "1 / (1 + fabs(x))"),
        ("log(x)", "1 / x"),
    ],
)
def test_right_derivatives_are_taken(expression, given):
    f = parse(expression)
    derivative.check(f, parse(given) if given else present(derivative.derive(f)), expression, "mend it")


@pytest.mark.parametrize(
    ("expression", "given", "text"),
    [
        ("x * x", "2.1 * x", r"at x=-80 the derivative gives -168, the slope is -160; correct derivative="),
        ("tanh(x)", "1 - tanh(x)", r"at x=-80 the derivative gives 2, the slope is 0; correct"),
        ("x * x", "1 / x", r"at x=0 the derivative gives not a real number, the slope is"),
        ("sign(x) * log1p(abs(x))", None, r"at x=0 the derivative gives 0, the slope is 1; give derivative="),
        ("sigmoid(x)", "exp(x) / square(1 + exp(x))", r"at x=\S+ the derivative is \S+, but the formula overflows"),
        ("log(-1 - x * x)", "1 / x", r"has no real value between"),
        ("1 + 2", None, r"does not depend on x"),
    ],
)
def test_wrong_derivatives_are_errors(expression, given, text):
    with pytest.raises(ConfigError, match=text):
        activation(expression, given)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("x * sigmoi(x)", r"column 5: unknown name 'sigmoi'\. Did you mean 'sigmoid'\?"),
        ("y + 1", r"column 1: unknown name 'y'\. It must be one of x, pi, abs"),
        ("x ^ 2", r"column 3: '\^' cannot be read; powers are pow\(x, 2\)"),
        ("x ** 2", r"column 4: '\*' is not expected here"),
        ("pow(x)", r"column 5: pow takes 2 argument\(s\), not 1"),
        ("(x + 1", r"column 7: '\)' is expected here"),
        ("x +", r"column 4: the expression ends too early"),
        ("x ? 1 : 2", r"column 1: a condition such as x > 0"),
        ("where(x, 1, 2)", r"column 7: a condition such as x > 0"),
        ("x > 0 && x", r"column 10: a condition"),
        ("x; system(0)", r"column 2: ';' cannot be read"),
        ("2x", r"column 1: '2' cannot be read"),
        ("x" * 5000, r"5000 characters"),
        ("", r"column 1: the expression ends too early"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_column(expression, text):
    with pytest.raises(ConfigError, match=text):
        activation(expression)


def test_names_and_dtypes(quick_gelu):
    with pytest.raises(ConfigError, match="name='my gelu'"):
        activation("x", name="my gelu")
    with pytest.raises(ConfigError, match=r"not torch\.int64"):
        quick_gelu(torch.arange(3))


def test_a_third_derivative_is_refused(quick_gelu):
    x = _points(torch.float64, (3,))
    (first,) = torch.autograd.grad(quick_gelu(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(UsageError, match="twice, not three times"):
        torch.autograd.grad(second.sum(), x)


def test_the_reference_is_taken_when_asked_for(quick_gelu):
    x = _points(torch.float64)
    mode.use("reference")
    try:
        fresh = activation("x * x * x", name="never_compiled")
        assert not hasattr(torch.ops.trainkit_user, fresh.op)
        assert quick_gelu(x).grad_fn.name() == quick_gelu.reference(x).grad_fn.name()
        assert torch.equal(fresh(x), x * x * x)
    finally:
        mode._fused = True


WITHOUT_COMPILER = """
import torch, trainkit
layer = trainkit.ops.activation("x * sigmoid(1.702f * x)")
x = torch.randn(9, dtype=torch.float64, requires_grad=True)
assert torch.autograd.gradcheck(layer, x) and torch.autograd.gradgradcheck(layer, x)
torch.library.opcheck(getattr(torch.ops.trainkit_user, layer.op), (x,))
from trainkit.ops import mode
mode._require = True
try:
    trainkit.ops.activation("x * x")
except trainkit.errors.ConfigError as error:
    assert "ops.require=true" in str(error), error
else:
    raise SystemExit("no error")
"""


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("trainkit: ")]
    assert "no C++ compiler was found" in line


def test_a_second_of_the_same_is_not_compiled_again(quick_gelu, monkeypatch):
    monkeypatch.setattr(library, "ensure", lambda plan: pytest.fail("compiled again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert activation(QUICK_GELU, name="quick_gelu").op == quick_gelu.op
