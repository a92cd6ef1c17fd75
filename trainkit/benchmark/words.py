"""Words: figures as text, of few digits and with their units."""

PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float) -> str:
    """A number of three or four digits.

    Example:
        >>> number(12345.6), number(0.123456), number(98.76)
        ('12,346', '0.1235', '98.8')
    """
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.4g}"


def percent(fraction: float) -> str:
    """A fraction in percent.

    Example:
        >>> percent(0.4567), percent(0.0123)
        ('46 %', '1.2 %')
    """
    return f"{100 * fraction:.0f} %" if abs(fraction) >= 0.0995 else f"{100 * fraction:.1f} %"


def flops(value: float) -> str:
    """Operations per second.

    Example:
        >>> flops(39_871_325_165.6)
        '39.9 GFLOP/s'
    """
    size, prefix = next(((size, prefix) for size, prefix in PREFIXES if value >= size), (1.0, ""))
    return f"{value / size:.3g} {prefix}FLOP/s"


def dollars(value: float) -> str:
    """US dollars.

    Example:
        >>> dollars(1234.5), dollars(1.5), dollars(0.0123)
        ('$1,234', '$1.50', '$0.0123')
    """
    if value >= 100:
        return f"${value:,.0f}"
    return f"${value:.2f}" if value >= 1 else f"${value:.3g}"
