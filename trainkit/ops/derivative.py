"""Derivatives of an Expression: derived by sympy, and compared with differences computed with 60 digits."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from trainkit.errors import ConfigError
from trainkit.ops.expression import ARITY, Expression, number

_DIGITS = 60
_STEP = "1e-20"
_JUMP = 1e-10
TOLERANCE = 1e-5
"""Accepted absolute and relative error of a derivative: constants are given with 7 digits."""
_RANGE = 8.0
_FAR = (-80.0, -50.0, -30.0, -20.0, -12.0, 12.0, 20.0, 30.0, 50.0, 80.0)


def derive(expression: Expression) -> Expression | None:
    """Differentiates an expression with respect to x.

    At a kink it is the derivative of one of the two sides; that of abs is 0.

    Args:
        expression: f(x).

    Returns:
        f'(x); None where sympy's result contains other functions than an Expression has.
    """
    import sympy

    table = _table()
    x = sympy.Symbol("x", real=True)
    formula = _stable(expression.compute(x, sympy.Rational, table.to_sympy))
    derivative = sympy.diff(formula, x).replace(sympy.DiracDelta, lambda *_: sympy.Integer(0))
    return _from_sympy(derivative.doit())


def check(value: Expression, derivative: Expression, what: str, advice: str) -> None:
    """Checks a derivative against differences of the function, and for overflow in float32.

    Args:
        value: f(x).
        derivative: f'(x).
        what: the name of the function, for messages.
        advice: what to do about an error.

    Raises:
        ConfigError: naming the worst x where `derivative` is wrong or overflows.
    """
    points = [_RANGE * (2 * i / 96 - 1) for i in range(97)] + [*_FAR, 1e-3, -1e-3]
    worst, worst_text, num_checked = 0.0, "", 0
    for point in points:
        sides = _differences(value, point)
        given = _precisely(derivative, point)
        if not sides:
            continue
        num_checked += 1
        # At a kink any slope between those of the two sides is accepted.
        low, high = min(sides), max(sides)
        size = 1 + min(abs(low), abs(high))
        error = float("inf") if given is None else float(max(low - given, given - high, 0) / size)
        if error > max(worst, TOLERANCE):
            shown = "not a real number" if given is None else f"{float(given):.9g}"
            worst = error
            worst_text = f"at x={point:.6g} the derivative gives {shown}, the slope is {float(low):.9g}"
    if not num_checked:
        raise ConfigError(f"{what}: it has no real value between -80 and 80")
    if worst_text:
        raise ConfigError(f"{what}: {worst_text}; {advice}")
    _check_in_float32(value, derivative, what, advice)


def _check_in_float32(value: Expression, derivative: Expression, what: str, advice: str) -> None:
    """Raises ConfigError where a correct formula gives 0/0 or inf/inf in float32, which would be a NaN gradient."""
    x = torch.linspace(-100.0, 100.0, 801)
    bad = value.torch(x).isfinite() & ~derivative.torch(x).isfinite()
    for point in x[bad].tolist():
        exact = _precisely(derivative, point)
        if exact is not None and abs(exact) < torch.finfo(torch.float32).max:
            raise ConfigError(
                f"{what}: at x={point:g} the derivative is {float(exact):.6g}, but the formula overflows in "
                f"float32; use sigmoid(x), softplus(x), expm1(x) or log1p(x) where possible, or {advice}"
            )


def _differences(value: Expression, point: float) -> list[Any]:
    """Returns the slopes to the left and to the right of `point`."""
    import mpmath

    with mpmath.workdps(_DIGITS):
        step = mpmath.mpf(_STEP)
        left, here, right = (_precisely(value, mpmath.mpf(point) + sign * step) for sign in (-1, 0, 1))
        pairs = [(a, b) for a, b in ((left, here), (here, right)) if a is not None and b is not None]
        # A function that jumps has no slope there.
        return [(b - a) / step for a, b in pairs if abs(b - a) < _JUMP]


def _precisely(expression: Expression, point: Any) -> Any:
    """Returns the value with 60 digits; None where it is not real."""
    import mpmath

    with mpmath.workdps(_DIGITS):
        try:
            value = expression.compute(mpmath.mpf(point), mpmath.mpf, _table().to_mpmath)
        except (ZeroDivisionError, OverflowError, ValueError):
            return None
        if isinstance(value, mpmath.mpc) or not mpmath.isfinite(value):
            return None
        return +mpmath.mpf(value)


@cache
def _table() -> SimpleNamespace:
    """Returns the functions of sympy and mpmath by name; sympy takes half a second to import."""
    import mpmath
    import sympy

    class sigmoid(sympy.Function):
        def fdiff(self, argindex: int = 1) -> Any:
            return self * (1 - self)

    class softplus(sympy.Function):
        def fdiff(self, argindex: int = 1) -> Any:
            return sigmoid(self.args[0])

    class expm1(sympy.Function):
        def fdiff(self, argindex: int = 1) -> Any:
            return sympy.exp(self.args[0])

    class log1p(sympy.Function):
        def fdiff(self, argindex: int = 1) -> Any:
            return 1 / (1 + self.args[0])

    own = {"sigmoid": sigmoid, "softplus": softplus, "expm1": expm1, "log1p": log1p}
    plain = ("atan", "cos", "cosh", "erf", "erfc", "exp", "log", "sin", "sinh", "sqrt", "tan", "tanh")
    return SimpleNamespace(
        own=own,
        plain=plain,
        to_sympy={**{name: getattr(sympy, name) for name in plain}, **own, **_sympy_functions()},
        to_mpmath={**{name: getattr(mpmath, name) for name in plain}, **_mpmath_functions()},
    )


def _sympy_functions() -> Mapping[str, Callable[..., Any]]:
    import sympy

    def where(condition: Any, yes: Any, no: Any) -> Any:
        return sympy.Piecewise((yes, condition), (no, True))

    return {
        "where": where,
        "abs": lambda a: sympy.Piecewise((a, a > 0), (-a, a < 0), (0, True)),
        "sign": lambda a: sympy.Piecewise((1, a > 0), (-1, a < 0), (0, True)),
        "relu": lambda a: where(a > 0, a, 0),
        "max": lambda a, b: where(a > b, a, b),
        "min": lambda a, b: where(a < b, a, b),
        "pow": sympy.Pow,
        "rsqrt": lambda a: 1 / sympy.sqrt(a),
        "square": lambda a: a**2,
        "&&": sympy.And,
        "||": sympy.Or,
        "!": sympy.Not,
        "==": sympy.Eq,
        "!=": sympy.Ne,
    }


def _mpmath_functions() -> Mapping[str, Callable[..., Any]]:
    import mpmath

    return {
        "sigmoid": lambda a: 1 / (1 + mpmath.exp(-a)),
        "softplus": lambda a: mpmath.log1p(mpmath.exp(a)),
        "expm1": mpmath.expm1,
        "log1p": mpmath.log1p,
        "where": lambda condition, yes, no: yes if condition else no,
        "abs": abs,
        "sign": mpmath.sign,
        "relu": lambda a: max(a, 0),
        "max": max,
        "min": min,
        "pow": mpmath.power,
        "rsqrt": lambda a: 1 / mpmath.sqrt(a),
        "square": lambda a: a * a,
        "&&": lambda a, b: a and b,
        "||": lambda a, b: a or b,
        "!": lambda a: not a,
    }


def _stable(formula: Any) -> Any:
    """Rewrites 1 / (1 + exp(u)) and log(1 + exp(u)) as sigmoid and softplus, whose derivatives do not overflow."""
    import sympy

    own = _table().own
    u = sympy.Wild("u")

    def is_sum(node: Any) -> Any:
        return node.match(1 + sympy.exp(u)) if node.is_Add and len(node.args) == 2 else None

    def power(base: Any, exponent: Any) -> Any:
        found = is_sum(base)
        return own["sigmoid"](-found[u]) ** -exponent if found and exponent.is_negative else base**exponent

    def log(inside: Any) -> Any:
        found = is_sum(inside)
        return own["softplus"](found[u]) if found else sympy.log(inside)

    return sympy.sympify(formula).replace(sympy.Pow, power).replace(sympy.log, log)


def _from_sympy(node: Any) -> Expression | None:
    """Converts a sympy formula; None where it contains something that an Expression cannot."""
    try:
        return _converted(node)
    except _UnknownError:
        return None


class _UnknownError(Exception):
    pass


_RELATIONS = {"Equality": "==", "Unequality": "!=", "StrictLessThan": "<", "LessThan": "<="}
_RELATIONS |= {"StrictGreaterThan": ">", "GreaterThan": ">=", "And": "&&", "Or": "||", "Not": "!"}


def _converted(node: Any) -> Expression:
    kind = type(node).__name__
    if node.is_Symbol:
        return Expression("x")
    if kind in ("BooleanTrue", "BooleanFalse"):
        return Expression("<", (number(0), number(int(kind == "BooleanTrue"))))
    if node.is_number and node.is_real:
        return _number(node)
    return _composed(node, kind)


def _composed(node: Any, kind: str) -> Expression:
    if kind == "Piecewise":
        return _piecewise(node.args)
    if kind == "Pow":
        return _power(node.base, node.exp)
    if kind == "Mul":
        return _product(node)
    args = tuple(_converted(arg) for arg in node.args)
    if kind == "Add":
        return _chain("+", args)
    if kind in _RELATIONS:
        return Expression("!", args) if kind == "Not" else _chain(_RELATIONS[kind], args)
    if kind == "ITE":
        return _chain("||", (_chain("&&", args[:2]), _chain("&&", (Expression("!", args[:1]), args[2]))))
    name = {"Abs": "abs"}.get(kind, kind)
    if ARITY.get(name) == len(args) == 1:
        return Expression(name, args)
    raise _UnknownError


def _number(node: Any) -> Expression:
    found = number(int(abs(node)) if node.is_Integer else repr(float(abs(node))))
    return Expression("-", (found,)) if node < 0 else found


def _piecewise(branches: Any) -> Expression:
    (value, condition), *rest = branches
    # Where no branch applies, sympy leaves the value undefined; here the last branch applies.
    if condition == True or not rest:  # noqa: E712 (sympy's own True)
        return _converted(value)
    return Expression("where", (_converted(condition), _converted(value), _piecewise(rest)))


def _power(base: Any, exponent: Any) -> Expression:
    if exponent.is_number and exponent < 0:
        return Expression("/", (number(1), _power(base, -exponent)))
    if exponent == 1:
        return _converted(base)
    if exponent.is_Rational and exponent.q == 2 and exponent.p == 1:
        return Expression("sqrt", (_converted(base),))
    return Expression("pow", (_converted(base), _converted(exponent)))


def _product(node: Any) -> Expression:
    factor, rest = node.as_independent(*node.free_symbols, as_Add=False)
    if factor == -1:
        return Expression("-", (_converted(rest),))
    factors = rest.args if rest.is_Mul else (rest,)
    below = [arg for arg in factors if arg.is_Pow and arg.exp.is_number and arg.exp < 0]
    above = [_converted(arg) for arg in factors if arg not in below]
    if factor != 1 or not above:
        above.insert(0, _number(factor))
    if not below:
        return _chain("*", above)
    return Expression("/", (_chain("*", above), _chain("*", [_power(arg.base, -arg.exp) for arg in below])))


def _chain(sign: str, args: Sequence[Expression]) -> Expression:
    found = args[0]
    for arg in args[1:]:
        found = Expression(sign, (found, arg))
    return found
