"""Numbers as text, one way for the terminal and the report."""

import math
import numbers
import re
from collections.abc import Sequence

MISSING = "–"
_LOOKS_NUMERIC = re.compile(
    r"[+\-−<>≈~]?\s*\d[\d,.\s]*(e[+\-−]?\d+)?\s*(±\s*[\d.,]+)?\s*"
    r"([%×xkKMG]|ms|s|min|h|[KMG]i?B)?"  # a unit after it
)


def is_number(value) -> bool:
    """Whether `value` is a real number, NumPy's scalars included; True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def format_number(value) -> str:
    """One number in at most about six characters: 1,234 · 0.0123 · 1.23e-06 · –  (for None and NaN)."""
    if value is None or value != value:
        return MISSING
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    value = float(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:,.{_decimals(value)}f}"


def format_column(cells: Sequence) -> tuple[list[str], bool]:
    """The cells of one table column as text, and whether they are numbers, to be set flush right.

    Floats of a column get the same count of decimals (four figures for the largest). Text passes as it is.
    """
    floats = [float(c) for c in cells if is_number(c) and not isinstance(c, numbers.Integral) and math.isfinite(c)]
    decimals = _decimals(max(map(abs, floats), default=0))
    even = bool(floats) and all(x == 0 or 10**-decimals <= abs(x) < 1e5 for x in floats)

    def text(cell) -> str:
        if cell is None:
            return MISSING
        if not is_number(cell):
            return str(cell)
        if even and not isinstance(cell, numbers.Integral) and math.isfinite(cell):
            return f"{float(cell):,.{decimals}f}"
        return format_number(cell)

    texts = [text(cell) for cell in cells]
    filled = [t for t in texts if t not in ("", MISSING)]
    return texts, bool(filled) and all(_LOOKS_NUMERIC.fullmatch(t.strip()) or t in ("∞", "−∞") for t in filled)


def _decimals(value: float) -> int:
    """Decimals that show four figures of a number, but never more than four."""
    return 4 if value == 0 else min(4, max(0, 3 - math.floor(math.log10(abs(value)))))
