"""Texts of a report: names that may come from strangers, numbers, lists of words."""

import html
import math
import re
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any


def escape(text: object) -> str:
    """Returns Markdown that shows a text literally, whatever characters it has."""
    text = re.sub(r"([\\`*_\[\]()#+!~-])", r"\\\1", html.escape(str(text), quote=False))
    return re.sub(r"\s+", " ", text).replace("|", "&#124;")


def code(text: object) -> str:
    """Returns a text as code, or escaped if it has characters that code cannot hold."""
    plain = str(text)
    return f"`{plain}`" if re.fullmatch(r"[\w.,:=+/\[\] -]+", plain) else escape(plain)


def plain(markdown: str) -> str:
    """Returns Markdown made by this module as plain text: without code, emphasis and escapes."""
    return html.unescape(re.sub(r"\\(.)|[`*]", lambda match: match[1] or "", markdown))


def shorten(text: str, length: int) -> str:
    """Returns the text, or its beginning and an ellipsis if it is longer than `length`."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def number(value: float, digits: int = 3, sign: str = "") -> str:
    """Returns a number rounded half away from zero, so that its last bit does not matter.

    `sign="+"` gives positive numbers a sign; NaN gives nothing.
    """
    if math.isnan(value):
        return ""
    exact = Decimal(f"{value:.9f}").quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP) + 0
    return f"{exact:{sign if exact else ''}}".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """Returns a number with its sign and three decimals."""
    return number(value, sign="+")


def interval(estimate: Any, signs: bool = False) -> str:
    """Returns the ends of an estimate's interval, or `none`."""
    low, high = (number(end, sign="+" * signs) for end in (estimate.low, estimate.high))
    return f"{low} to {high}" if low else "none"


def p_value(p: float) -> str:
    """Returns a p-value with three decimals."""
    return "<0.001" if p < 0.001 else number(p)


def integers(values: Sequence[int]) -> str:
    """Returns ascending integers, as a range if it has more than two and no gap."""
    if len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))


def count(number: int, noun: str) -> str:
    """Returns a number and a regular noun, as `1 run` or `2,000 runs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def listing(items: Sequence[str]) -> str:
    """Returns items as an English list: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
