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
    heads = [_cell(column) for column in table.columns]
    labels = [html.escape(html.unescape(re.sub("<[^>]*>", "", head))) for head in heads]

    def cell(number: int, text: str) -> str:
        if number < table.main:
            return f"<td>{_cell(text)}</td>"
        kind = "more" if text else "more empty"
        return f'<td class="{kind}" data-label="{labels[number]}">{_cell(text)}</td>'

    rows = []
    for number, row in enumerate(table.rows):
        cells = "".join(cell(column, text) for column, text in enumerate(row))
        picture = f"<td>{table.pictures[number]}</td>" if table.pictures else ""
        mark = ' class="best"' if number in table.marked else ""
        rows.append(f"<tr{mark}>{cells}{picture}</tr>")
    head = "".join(f"<th>{head}</th>" for head in heads) + "<th></th>" * bool(table.pictures)
    body = "\n".join(rows)
    return (
        f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )
