"""The one rule by which figures are rounded, on tables, plots and the page alike."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

#: Digits of a float that are taken to be meant; what follows is the noise of binary arithmetic.
SIGNIFICANT = 12


def rounded(value: float, digits: int = 1, sign: bool = False) -> str:
    """A figure with so many digits after the point, halves away from zero, as people round.

    What is rounded is the number as it is printed (12 significant digits), not its binary form:
    56.25 is 56.3 and 38.15 is 38.2, though the float nearest to 38.15 is below it. The page's
    ``roundedText`` in ``core.js`` is the same rule.

    Args:
        value: finite.
        digits: after the point.
        sign: print a plus, too.

    Returns:
        The text; zero has no minus sign.

    Example:
        >>> rounded(56.25), rounded(-0.05), rounded(2.0, 2, sign=True)
        ('56.3', '-0.1', '+2.00')
    """
    number = Decimal(f"{value:.{SIGNIFICANT}g}").quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    number = number if number else abs(number)
    return f"{number:+f}" if sign else f"{number:f}"
