"""The common rounding rule of tables, plots and the page."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

#: Significant digits of a float; further ones are considered noise of binary arithmetic.
SIGNIFICANT = 12


def rounded(value: float, digits: int = 1, sign: bool = False) -> str:
    """Formats a number with a number of decimals, rounding halves away from zero.

    The printed decimal number (12 significant digits) is rounded, not its binary value: 56.25 is
    56.3 and 38.15 is 38.2, though the float nearest to 38.15 is below it. The page's
    ``roundedText`` in ``core.js`` is the same rule.

    Args:
        value: finite.
        digits: number of decimals.
        sign: also print a plus.

    Returns:
        The text; zero has no minus sign.

    Example:
        >>> rounded(56.25), rounded(-0.05), rounded(2.0, 2, sign=True)
        ('56.3', '-0.1', '+2.00')
    """
    number = Decimal(f"{value:.{SIGNIFICANT}g}").quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    number = number if number else abs(number)
    return f"{number:+f}" if sign else f"{number:f}"
