"""The blocks of which a report consists, and their form in Markdown; `page` has that in HTML.

A string is a block too: Markdown, in which texts that may come from strangers are escaped.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Union


class Table(NamedTuple):
    """A table whose cells are Markdown.

    Attributes:
      columns: The heading of each column.
      rows: The cells of each row.
      main: How many columns a narrow screen shows; the others follow in a line below each row.
      marked: The numbers of the rows that are marked.
      pictures: For each row HTML that the page shows in a last column; texts in it are escaped.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    main: int = 3
    marked: Sequence[int] = ()
    pictures: Sequence[str] = ()


class Picture(NamedTuple):
    """A picture, which is a file beside the Markdown and part of the HTML page.

    Attributes:
      file: The name of the file.
      text: What it shows, for those who do not see it.
      html: Returns the HTML that the page has in its place; texts in it are escaped.
    """

    file: str
    text: str
    html: Callable[[], str]


class Command(NamedTuple):
    """A shell command."""

    text: str


class Choices(NamedTuple):
    """Alternatives by name, of which the first is shown; the page lets its reader choose."""

    label: str
    choices: Mapping[str, Sequence["Block"]]


Block = Union[str, Table, Picture, Command, Choices]  # noqa: UP007 - "Block" is not yet defined


def to_markdown(blocks: Sequence[Block]) -> str:
    """Returns blocks as Markdown."""
    return "\n\n".join(map(_markdown, blocks))


def _markdown(block: Block) -> str:
    match block:
        case Table(columns, rows):
            lines = [columns, ["---"] * len(columns), *rows]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Picture(file, text):
            return f"![{text}]({file})"
        case Command(text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{fence}bash\n{text}\n{fence}"
        case Choices(choices=choices):
            return to_markdown(next(iter(choices.values())))
    return block
