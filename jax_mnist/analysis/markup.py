"""Building blocks of Markdown: tables, texts that may come from strangers, numbers."""

import html
import math
import re
from collections.abc import Callable, Iterable, Sequence

from jax_mnist.analysis.statistics import Estimate


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; the cells are Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: object) -> str:
    """Returns Markdown that shows a text literally, whatever characters it has."""
    text = re.sub(r"([\\`*_\[\]()#+!~-])", r"\\\1", html.escape(str(text), quote=False))
    return re.sub(r"\s+", " ", text).replace("|", "&#124;")


def code(text: object) -> str:
    """Returns a text as code, or escaped if it has characters that code cannot hold."""
    plain = str(text)
    return f"`{plain}`" if re.fullmatch(r"[\w.,:=+/\[\] -]+", plain) else escape(plain)


def signed(value: float) -> str:
    """Returns a number with its sign and three decimals."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def interval(of: Estimate, number: Callable[[float], str] = "{:.3f}".format) -> str:
    """Returns the ends of an interval, or `none`."""
    return f"{number(of.low)} to {number(of.high)}" if math.isfinite(of.low) else "none"


def p_value(p: float) -> str:
    """Returns a p-value with three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def integers(values: Sequence[int]) -> str:
    """Returns ascending integers, as a range if it has more than two and no gap."""
    if len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))
