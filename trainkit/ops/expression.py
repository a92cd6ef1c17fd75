"""Expression: a formula in x, written in C++, which is checked, printed as C++ and evaluated."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainkit.errors import ConfigError, nearest

ARITY = {
    **dict.fromkeys(("abs", "atan", "cos", "cosh", "erf", "erfc", "exp", "expm1", "log", "log1p", "relu"), 1),
    **dict.fromkeys(("rsqrt", "sigmoid", "sign", "sin", "sinh", "softplus", "sqrt", "square", "tan", "tanh"), 1),
    **dict.fromkeys(("max", "min", "pow"), 2),
    "where": 3,
}
"""Functions and the numbers of their arguments; `expf`, `std::exp`, `fabs`, `fmaxf` and the like are synonyms."""
CONSTANTS = {"pi": "3.141592653589793238462643383279502884"}
_ALIASES = {"fabs": "abs", "fmax": "max", "fmin": "min", "M_PI": "pi"}
_BINARY = (("||",), ("&&",), ("==", "!="), ("<", "<=", ">", ">="), ("+", "-"), ("*", "/"))  # by rising precedence
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_LOGIC = ("&&", "||", "!")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)[fFlL]?(?![\w.])|(?P<name>(?:std::|::)?[A-Za-z_]\w*)"
    r"|(?P<sign>\|\||&&|[=!<>]=|[-+*/()<>?:,!]))"
)
_MAX_CHARS = 4000
_MAX_MULTIPLIED = 16


@dataclass(frozen=True)
class Expression:
    """A node of a formula: `x`, a number, or a function or operator with arguments.

    Every number is real and has x's precision, whatever its suffix: `1/2` is 0.5, and `1.702f` is 1.702 in float64.

    Args:
        name: `x`, `number`, or a function or operator.
        args: its arguments.
        digits: of a number.
    """

    name: str
    args: tuple["Expression", ...] = ()
    digits: str = ""

    @property
    def is_condition(self) -> bool:
        """Whether its value is true or false."""
        return self.name in _COMPARISONS or self.name in _LOGIC

    def has_x(self) -> bool:
        """Whether x occurs in it."""
        return self.name == "x" or any(arg.has_x() for arg in self.args)

    def cpp(self) -> str:
        """Returns C++ code for a `T x`; its functions are those of `csrc/common/functions.h`."""
        if self.name == "x":
            return "x"
        if self.name == "number":
            return f"T({self.digits if any(c in self.digits for c in '.eE') else self.digits + '.0'})"
        args = [arg.cpp() for arg in self.args]
        if self.name == "where":
            return f"({args[0]} ? {args[1]} : {args[2]})"
        if self.name in ARITY:
            if self.name == "pow" and (times := _small_integer(self.args[1])):
                return f"tk::power<{times}>({args[0]})"
            return f"tk::{self.name}({', '.join(args)})"
        return f"({self.name}{args[0]})" if len(args) == 1 else f"({args[0]} {self.name} {args[1]})"

    def compute(self, x: Any, number: Callable[[str], Any], functions: Mapping[str, Callable[..., Any]]) -> Any:
        """Evaluates it.

        Args:
            x: the value of x.
            number: digits -> number.
            functions: by name; operators that are missing are Python's.

        Returns:
            The value.
        """
        if self.name == "x":
            return x
        if self.name == "number":
            return number(self.digits)
        args = [arg.compute(x, number, functions) for arg in self.args]
        return (functions.get(self.name) or _PYTHON[self.name])(*args)

    def torch(self, x: Tensor) -> Tensor:
        """Evaluates it by element, in float32 for narrower types; torch can differentiate it any number of times.

        Args:
            x: a tensor of any shape.

        Returns:
            A tensor of the same shape and dtype.
        """
        wide = x if x.dtype == torch.float64 else x.float()
        value = self.compute(
            wide, lambda digits: torch.full((), float(digits), dtype=wide.dtype, device=x.device), _TORCH
        )
        return value.expand_as(x).to(x.dtype)


def number(digits: str | int | float) -> Expression:
    """Makes an Expression of a number that is not negative."""
    return Expression("number", digits=str(digits))


def parse(text: str, what: str = "activation") -> Expression:
    """Parses an expression.

    Args:
        text: made of x, numbers, pi, + - * /, comparisons, && || !, `? :` and the functions of ARITY.
        what: the name of the function, for messages.

    Returns:
        The expression.

    Raises:
        ConfigError: naming the column and what is expected there.

    Example:
        >>> parse("x > 0 ? x : 0.1 * x").cpp()
        '((x > T(0.0)) ? x : (T(0.1) * x))'
    """
    return _Parser(text, what).parse()


class _Parser:
    def __init__(self, text: str, what: str) -> None:
        self.text, self.what = text, what
        if len(text) > _MAX_CHARS:
            raise ConfigError(f"{what}: {len(text)} characters; it must have at most {_MAX_CHARS}")
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._error(at + len(text[at:]) - len(text[at:].lstrip()), self._strange(text[at:].strip()))
            assert match.lastgroup is not None
            self.tokens.append((match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
            at = match.end()
        self.tokens.append(("end", "", len(text)))
        self.next = 0

    def parse(self) -> Expression:
        found = self._real(self._choice)
        kind, token, at = self.tokens[self.next]
        if kind != "end":
            raise self._error(at, f"{token!r} is not expected here")
        return found

    def _choice(self) -> Expression:
        at = self.tokens[self.next][2]
        found = self._binary(0)
        if self._takes("?"):
            self._require_condition(found, at)
            first = self._real(self._choice)
            self._expect(":")
            return Expression("where", (found, first, self._real(self._choice)))
        return found

    def _binary(self, level: int) -> Expression:
        if level == len(_BINARY):
            return self._unary()
        at = self.tokens[self.next][2]
        found = self._binary(level + 1)
        while self.tokens[self.next][0] == "sign" and (sign := self.tokens[self.next][1]) in _BINARY[level]:
            self.next += 1
            second_at = self.tokens[self.next][2]
            second = self._binary(level + 1)
            if sign in _LOGIC:
                self._require_condition(found, at)
                self._require_condition(second, second_at)
            else:
                found, second = _as_real(found), _as_real(second)
            found = Expression(sign, (found, second))
        return found

    def _unary(self) -> Expression:
        if self._takes("-"):
            return Expression("-", (_as_real(self._unary()),))
        if self._takes("+"):
            return _as_real(self._unary())
        if self._takes("!"):
            at = self.tokens[self.next][2]
            found = self._unary()
            self._require_condition(found, at)
            return Expression("!", (found,))
        return self._primary()

    def _primary(self) -> Expression:
        kind, token, at = self.tokens[self.next]
        self.next += 1
        if kind == "number":
            return number(token)
        if kind == "name":
            return self._named(token, at)
        if token == "(":
            found = self._choice()
            self._expect(")")
            return found
        problem = "the expression ends too early" if kind == "end" else f"{token!r} is not expected here"
        raise self._error(at, problem)

    def _named(self, token: str, at: int) -> Expression:
        name = token.removeprefix("std").removeprefix("::")
        known = _ALIASES.get(name, name)
        if known == "x":
            return Expression("x")
        if known in CONSTANTS:
            return number(CONSTANTS[known])
        if known not in ARITY:
            known = _ALIASES.get(name.removesuffix("f"), name.removesuffix("f"))
        if known in ARITY:
            return Expression(known, self._arguments(known))
        allowed = ["x", *CONSTANTS, *ARITY]
        hint = nearest(name, allowed) or f" It must be one of {', '.join(allowed)}."
        raise self._error(at, f"unknown name {name!r}.{hint}")

    def _arguments(self, name: str) -> tuple[Expression, ...]:
        self._expect("(")
        at = self.tokens[self.next][2]
        args = [self._choice() if name == "where" else self._real(self._choice)]
        while self._takes(","):
            args.append(self._real(self._choice))
        if len(args) != ARITY[name]:
            raise self._error(at, f"{name} takes {ARITY[name]} argument(s), not {len(args)}")
        if name == "where":
            self._require_condition(args[0], at)
        self._expect(")")
        return tuple(args)

    def _real(self, parse_one: Callable[[], Expression]) -> Expression:
        return _as_real(parse_one())

    def _takes(self, sign: str) -> bool:
        taken = self.tokens[self.next][:2] == ("sign", sign)
        self.next += taken
        return taken

    def _expect(self, sign: str) -> None:
        if not self._takes(sign):
            raise self._error(self.tokens[self.next][2], f"{sign!r} is expected here")

    def _require_condition(self, found: Expression, at: int) -> None:
        if not found.is_condition:
            raise self._error(at, "a condition such as x > 0 is expected here")

    def _strange(self, rest: str) -> str:
        hint = "; powers are pow(x, 2) or square(x)" if rest[0] == "^" else ""
        return f"{rest[0]!r} cannot be read{hint}"

    def _error(self, at: int, problem: str) -> ConfigError:
        return ConfigError(f"{self.what} {self.text!r}, column {at + 1}: {problem}")


def _as_real(found: Expression) -> Expression:
    """Converts a condition to 1 or 0."""
    return Expression("where", (found, number(1), number(0))) if found.is_condition else found


def _small_integer(exponent: Expression) -> int:
    """Returns the exponent where a power is faster as a product, else 0."""
    if exponent.name != "number" or float(exponent.digits) != int(float(exponent.digits)):
        return 0
    return int(float(exponent.digits)) if float(exponent.digits) <= _MAX_MULTIPLIED else 0


def _minus(*args: Any) -> Any:
    return -args[0] if len(args) == 1 else args[0] - args[1]


_PYTHON: Mapping[str, Callable[..., Any]] = {
    "-": _minus,
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
_TORCH: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name, count in ARITY.items() if count == 1 and hasattr(torch, name)},
    # torch's own softplus is x itself above 20.
    "softplus": lambda a: torch.logaddexp(a, torch.zeros_like(a)),
    "max": torch.maximum,
    "min": torch.minimum,
    "pow": torch.pow,
    "where": torch.where,
    "&&": torch.logical_and,
    "||": torch.logical_or,
    "!": torch.logical_not,
}
