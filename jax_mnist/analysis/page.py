"""A Markdown text and its pictures as one HTML page."""

import base64
import html
import re
from pathlib import Path

import markdown

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: auto; padding: 1rem }
h1, h2 { line-height: 1.2 }
img { display: block; max-width: min(100%, 50rem); height: auto; margin: 1.5rem auto }
.table { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.9rem; white-space: nowrap }
th, td { padding: 0.3rem 0.6rem; text-align: left; border-bottom: 1px solid #8886 }
td { font-variant-numeric: tabular-nums }
code { font-size: 0.95em; overflow-wrap: anywhere }
"""


def self_contained(text: str, folder: Path) -> str:
    """Returns an HTML page that needs no other file.

    Args:
      text: Markdown, whose first line is a heading. Untrusted texts must be escaped.
      folder: Where the PNG files are that the text shows.
    """

    def embedded(match: re.Match[str]) -> str:
        picture = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{picture}"'

    body = markdown.markdown(text, extensions=["tables"])
    body = re.sub(r'src="(\w+\.png)"', embedded, body)
    body = body.replace("<table>", '<div class="table"><table>')
    body = body.replace("</table>", "</table></div>")
    title = html.escape(text.partition("\n")[0].removeprefix("# "))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
