"""Activation: a function that its user writes down as a C++ expression, compiled and differentiable twice."""

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

_defined: dict[str, torch.library.Library] = {}  # what is registered ends with its Library
_compiled: set[str] = set()


def activation(expression: str, derivative: str | None = None, *, name: str = "activation") -> "Activation":
    """A layer of f(x) = `expression`, C++ in x: `activation("x * sigmoid(1.702f * x)")`.

    It may have numbers, pi, + - * /, comparisons, && || !, `? :` and the functions of `trainkit.ops.expression.ARITY`.
    Numbers are real and as precise as x: 1/2 is 0.5.
    derivative: f'(x), another such expression; without it, sympy derives it. Either is held against differences of f
        computed with 60 digits. Where f has a kink, any slope between those of its sides is right.
    name: for messages and profiles, a C++ name.
    Raises ConfigError: for what cannot be read, with its column; for a derivative that is another function's or
    overflows, with the worst x; where sympy finds none; and when the compiler fails.
    """
    return Activation(expression, derivative, name=name)


class Activation(nn.Module):
    """See `activation`. Takes and gives a tensor of any shape, in float32, bfloat16, float16 or (CPU) float64.

    Narrow types are computed in float32. Differentiable twice: a third time raises, as does a second where sympy
    cannot derive the derivative that was given. Two of the same expression share what was compiled; a copy or an
    unpickled one finds it again.
    """

    def __init__(self, expression: str, derivative: str | None = None, *, name: str = "activation") -> None:
        super().__init__()
        if not (name.isascii() and name.isidentifier()):
            raise ConfigError(f"activation name={name!r}: allowed are letters, digits and _")
        self.name, self.expression, self.derivative = name, expression, derivative
        self._f, self._df, self._ddf = _understood(expression, derivative, name)
        self.op = f"{name}_{hashlib.sha256(_functor(self).encode()).hexdigest()[:12]}"
        if mode.is_on():
            _prepare(self)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in _DTYPES:
            raise ConfigError(f"{self.name}: allowed are float32, bfloat16, float16 and float64, not {x.dtype}")
        if not mode.is_on():
            return self.reference(x)
        if self.op not in _compiled:
            _prepare(self)
        return getattr(getattr(torch.ops, NAMESPACE), self.op)(x.contiguous())

    def reference(self, x: Tensor) -> Tensor:
        """The same in plain PyTorch, which derives it by itself."""
        return self._f.torch(x)

    def extra_repr(self) -> str:
        return self.expression if self.name == "activation" else f"{self.expression}, name={self.name}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if mode.is_on():
            _prepare(self)


# -- what is written down --------------------------------------------------------------------------------------------


def _understood(expression: str, given: str | None, name: str) -> tuple[Expression, Expression, Expression | None]:
    f = parse(expression, name)
    if not f.has_x():
        raise ConfigError(f"{name} {expression!r}: it does not depend on x")
    what = f"{name} {expression!r}"
    df = parse(given, f"{name}, derivative") if given is not None else derivative.derive(f)
    if df is None:
        raise ConfigError(f"{what}: sympy cannot derive it; give derivative=")
    derivative.check(f, df, what, "give derivative=" if given is None else "mend derivative=, or leave it out")
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


# -- what it becomes -------------------------------------------------------------------------------------------------


def _prepare(layer: Activation) -> None:
    """Makes the layer's ops run, compiled where there is a compiler. Done once a process."""
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


# What torch.compiler.assume_constant_result sets, without importing the compiler: a traced `forward` calls it outside
# of the trace.
_prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _write(layer: Activation, directory: Path) -> None:
    header = '#include "common/user_activation.h"\n\nnamespace {\n\n' + _functor(layer) + "\n}  // namespace\n\n"
    (directory / "activation.cpp").write_text(f"{header}TK_USER_ACTIVATION({layer.op}, Activation)\n")
    (directory / "activation.cu").write_text(f"{header}TK_USER_ACTIVATION_CUDA({layer.op}, Activation)\n")


def _define(layer: Activation) -> None:
    """The three ops f(x), g f'(x) and g h f''(x), what they give for fake tensors, and how they are derived."""
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
    """Kernels in plain PyTorch, for devices that nothing is compiled for."""
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
