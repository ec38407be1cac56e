"""The blocks of a report as one HTML page, which needs no other file."""

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from importlib import resources

import markdown

from jax_mnist.analysis.blocks import Block, Choices, Command, Picture, Table

_FILES = resources.files("jax_mnist.analysis")
MAX_UNBROKEN = 24  # characters of a cell that stay in one line
_PARSER = markdown.Markdown(extensions=["toc"])  # which gives headings their identifiers


def self_contained(blocks: Sequence[Block]) -> str:
    """Returns an HTML page that needs no other file, and that runs no script but `report.js`.

    Args:
      blocks: The first is a heading in Markdown. Untrusted texts must be escaped.
    """
    style, script = ((_FILES / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    policy += f"; script-src 'sha256-{digest}'"
    body = _html(blocks)
    title = re.sub("<[^>]*>", "", body[: body.index("</h1>")])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _html(blocks: Sequence[Block]) -> str:
    return "\n".join(map(_block, blocks))


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Picture():
            return block.html()
        case Command(text):
            return (
                f'<div class="command"><pre><code>{html.escape(text)}</code></pre>'
                '<button class="scripted" type="button" hidden>Copy</button></div>'
            )
        case Choices(label, choices):
            options = "".join(f"<option>{html.escape(name)}</option>" for name in choices)
            parts = "\n".join(
                f'<div class="choice"{" hidden" * (number > 0)}>\n{_html(choice)}\n</div>'
                for number, choice in enumerate(choices.values())
            )
            return (
                f'<div class="choices">\n<p class="scripted" hidden><label>{html.escape(label)} '
                f'<select autocomplete="off">{options}</select></label></p>\n{parts}\n</div>'
            )
    return _text(block)


def _text(text: str) -> str:
    return _PARSER.reset().convert(text)


def _cell(text: str) -> str:
    return _text(text).removeprefix("<p>").removesuffix("</p>")


def _table(table: Table) -> str:
    def line(tag: str, cells: Sequence[str], kind: str) -> str:
        written = []
        for number, cell in enumerate(cells):
            kinds = ["more"] * (number >= table.main) + ["short"] * (len(cell) <= MAX_UNBROKEN)
            written.append(f'<{tag} class="{" ".join(kinds)}">{cell}</{tag}>')
        return f'<tr class="{kind}">{"".join(written)}</tr>'

    columns = [*map(_cell, table.columns), *[""] * bool(table.pictures)]
    lines = []
    for number, row in enumerate(table.rows):
        mark = " best" * (number in table.marked)
        cells = [*map(_cell, row), *table.pictures[number : number + 1]]
        lines.append(line("td", cells, f"row{mark}"))
        below = [
            f"{column}: {cell}" if column else cell
            for column, cell in list(zip(columns, cells, strict=True))[table.main :]
            if cell
        ]
        if below:
            cell = f'<td colspan="{table.main}">{" · ".join(below)}</td>'
            lines.append(f'<tr class="below{mark}">{cell}</tr>')
    head, body = line("th", columns, "head"), "\n".join(lines)
    return (
        f'<div class="table"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )
