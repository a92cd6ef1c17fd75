"""Activation: an activation function given as a C++ expression, compiled and differentiable twice."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainkit.errors import ConfigError, UsageError
from trainkit.ops import build, derivative, extension, library, mode
from trainkit.ops.expression import Expression, parse

NAMESPACE = "trainkit_user"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_defined: dict[str, torch.library.Library] = {}  # registrations end with their Library
_compiled: set[str] = set()


def activation(expression: str, derivative: str | None = None, *, name: str = "activation") -> "Activation":
    """Makes an activation layer f(x) = `expression`.

    Args:
        expression: C++ in x, made of numbers, pi, + - * /, comparisons, && || !, `? :` and the functions of
            `trainkit.ops.expression.ARITY`. Numbers are real and as precise as x: 1/2 is 0.5.
        derivative: f'(x), another such expression; None: sympy derives it. Either is compared with differences of f
            computed with 60 digits. At a kink of f, any slope between those of its sides is accepted.
        name: for messages and profiles, a C++ name.

    Returns:
        The layer.

    Raises:
        ConfigError: for an expression that cannot be parsed, with the column; for a derivative that is wrong or
            overflows, with the worst x; where sympy finds none; and where compilation fails.

    Example:
        >>> layer = activation("x * sigmoid(1.702f * x)")
        >>> layer.reference(torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.8458])
    """
    return Activation(expression, derivative, name=name)


class Activation(nn.Module):
    """A layer of an activation function given as a C++ expression; see `activation`.

    Takes a tensor of any shape, in float32, bfloat16, float16 or (CPU) float64, and returns one of the same shape and
    dtype; narrow types are computed in float32. Differentiable twice: a third derivative raises UsageError, as does a
    second one where sympy cannot differentiate the given derivative. Layers of the same expression share the compiled
    code, also after copying and unpickling.

    Args:
        expression: f(x).
        derivative: f'(x); None: sympy derives it.
        name: for messages and profiles, a C++ name.

    Raises:
        ConfigError: see `activation`.
    """

    def __init__(self, expression: str, derivative: str | None = None, *, name: str = "activation") -> None:
        super().__init__()
        if not (name.isascii() and name.isidentifier()):
            raise ConfigError(f"activation name={name!r}: must consist of letters, digits and _")
        self.name, self.expression, self.derivative = name, expression, derivative
        self._f, self._df, self._ddf = _parsed(expression, derivative, name)
        self.op = f"{name}_{hashlib.sha256(_functor(self).encode()).hexdigest()[:12]}"
        if mode.is_on():
            _prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        """Computes f(x) for `x` of any shape."""
        if x.dtype not in _DTYPES:
            raise ConfigError(f"{self.name}: x must be float32, bfloat16, float16 or float64, not {x.dtype}")
        if not mode.is_on():
            return self.reference(x)
        if self.op not in _compiled:
            _prepare(self)
        return getattr(getattr(torch.ops, NAMESPACE), self.op)(x.contiguous())

    def reference(self, x: Tensor) -> Tensor:
        """Computes f(x) in plain PyTorch, differentiable any number of times."""
        return self._f.torch(x)

    def extra_repr(self) -> str:
        """Returns the expression, for `repr`."""
        return self.expression if self.name == "activation" else f"{self.expression}, name={self.name}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if mode.is_on():
            _prepare(self)


# -- expressions and derivatives --------------------------------------------------------------------------------------


def _parsed(expression: str, given: str | None, name: str) -> tuple[Expression, Expression, Expression | None]:
    f = parse(expression, name)
    if not f.has_x():
        raise ConfigError(f"{name} {expression!r}: it does not depend on x")
    what = f"{name} {expression!r}"
    df = parse(given, f"{name}, derivative") if given is not None else derivative.derive(f)
    if df is None:
        raise ConfigError(f"{what}: sympy cannot derive it; give derivative=")
    derivative.check(f, df, what, "give derivative=" if given is None else "correct derivative=, or leave it out")
    return f, df, derivative.derive(df)


def _functor(layer: Activation) -> str:
    functions = {"f": layer._f, "df": layer._df, "ddf": layer._ddf}
    lines = [
        f"  template <class T>\n  static TK_HD T {name}(T x) {{\n    return {function.cpp()};\n  }}\n"
        for name, function in functions.items()
        if function is not None
    ]
    if layer._ddf is None:
        lines.append("  template <class T>\n  static TK_HD T ddf(T x) {\n    return x * T(0);\n  }\n")
    return f"struct Activation {{\n{''.join(lines)}}};\n"


# -- compiled ops ----------------------------------------------------------------------------------------------------


def _prepare(layer: Activation) -> None:
    """Registers the layer's ops, compiled where there is a compiler. Done once per process."""
    if layer.op in _compiled:
        return
    if layer.op not in _defined:
        _define(layer)
    devices = {"cpu", "cuda"}
    try:
        with tempfile.TemporaryDirectory() as directory:
            _write(layer, Path(directory))
            loaded = extension.load(build.plan(Path(directory)))
        devices = set() if loaded.archs else {"cuda"}
    except build.NoCompilerError as error:
        library.without(f"{layer.name} {layer.expression!r} is not compiled: {error}", mode.is_required())
    except build.BuildError as error:
        raise ConfigError(f"{layer.name} {layer.expression!r} cannot be compiled: {error}") from error
    _implement_plainly(layer, devices)
    _compiled.add(layer.op)


# As torch.compiler.assume_constant_result sets it, without an import of the compiler: a traced `forward` calls it
# outside of the trace.
_prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _write(layer: Activation, directory: Path) -> None:
    header = '#include "common/user_activation.h"\n\nnamespace {\n\n' + _functor(layer) + "\n}  // namespace\n\n"
    (directory / "activation.cpp").write_text(f"{header}TK_USER_ACTIVATION({layer.op}, Activation)\n")
    (directory / "activation.cu").write_text(f"{header}TK_USER_ACTIVATION_CUDA({layer.op}, Activation)\n")


def _define(layer: Activation) -> None:
    """Registers the ops f(x), g f'(x) and g h f''(x), their fake implementations and their derivatives."""
    own = torch.library.Library(NAMESPACE, "FRAGMENT")
    own.define(f"{layer.op}(Tensor x) -> Tensor")
    own.define(f"{layer.op}_df(Tensor g, Tensor x) -> Tensor")
    own.define(f"{layer.op}_ddf(Tensor g, Tensor h, Tensor x) -> Tensor")
    names = [f"{NAMESPACE}::{layer.op}{end}" for end in ("", "_df", "_ddf")]
    for name in names:
        torch.library.register_fake(name, _fake, lib=own)
    ops = getattr(torch.ops, NAMESPACE)
    df, ddf = getattr(ops, f"{layer.op}_df"), getattr(ops, f"{layer.op}_ddf")
    what = f"{layer.name} {layer.expression!r}"
    has_second = layer._ddf is not None

    def first(ctx: Any, gradient: Tensor) -> Tensor:
        return df(gradient.contiguous(), *ctx.saved_tensors)

    def second(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        g, x = ctx.saved_tensors
        gradient = gradient.contiguous()
        if not has_second and ctx.needs_input_grad[1]:
            raise UsageError(f"{what}: it has no second derivative: sympy cannot derive {layer.derivative!r}")
        return (
            df(gradient, x) if ctx.needs_input_grad[0] else None,
            ddf(gradient, g, x) if ctx.needs_input_grad[1] else None,
        )

    def third(ctx: Any, gradient: Tensor) -> None:
        raise UsageError(f"{what}: it can be differentiated twice, not three times; use its reference(x)")

    for name, backward in zip(names, (first, second, third), strict=True):
        torch.library.register_autograd(name, backward, setup_context=_save, lib=own)
    _defined[layer.op] = own


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _fake(*inputs: Tensor) -> Tensor:
    return torch.empty_like(inputs[-1], memory_format=torch.contiguous_format)


def _implement_plainly(layer: Activation, devices: set[str]) -> None:
    """Registers kernels in plain PyTorch, for devices without compiled ones."""
    what = f"{layer.name} {layer.expression!r}"

    def value(expression: Expression | None, x: Tensor) -> Tensor:
        assert expression is not None
        if x.device.type == "cuda":
            library.without(f"{what} was compiled without nvcc; install the CUDA toolkit", mode.is_required())
        return expression.torch(x).contiguous()

    def f(x: Tensor) -> Tensor:
        return value(layer._f, x)

    def df(g: Tensor, x: Tensor) -> Tensor:
        return g * value(layer._df, x)

    def ddf(g: Tensor, h: Tensor, x: Tensor) -> Tensor:
        return g * h * value(layer._ddf, x)

    own = _defined[layer.op]
    for device in devices:
        for end, kernel in (("", f), ("_df", df), ("_ddf", ddf)):
            own.impl(f"{layer.op}{end}", kernel, device.upper())
