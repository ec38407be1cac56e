"""Figures as SVG inside an HTML page, in the colours and the font of the page."""

import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

# What a figure is drawn with, and the CSS colour that it becomes.
_COLOURS = {
    "#000000": "currentColor",
    "#999999": "var(--axis)",
    "#e6e6e6": "var(--grid)",
    "#bfbfbf": "var(--others)",
    "#0072b2": "var(--accent)",
}


def inline(figure: Figure, name: str, text: str) -> str:
    """Returns a figure as an `svg` element of any width; its texts stay texts.

    An element whose `gid` is `variant-N` gets that as its class.

    Args:
      figure: The figure, drawn in grey levels and blue of `drawing.STYLE` and `drawing.COLOURS`.
      name: What makes the identifiers in the element unique in the page, such as `loss-0`.
      text: What it shows, for those who do not see it.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jax_mnist"}):
        figure.savefig(buffer, format="svg", metadata=no_metadata, transparent=True)
    svg = ElementTree.fromstring(buffer.getvalue())
    for element in svg.iter():
        element.tag = element.tag.rpartition("}")[2]  # HTML needs no namespaces
        element.text, element.tail = (element.text or "").strip(), None
        attributes = {k.rpartition("}")[2]: v for k, v in element.attrib.items()}
        element.attrib.clear()
        element.attrib |= {k: _value(v, k, name) for k, v in attributes.items()}
        if element.tag == "g" and (group := element.attrib.pop("id", "")).startswith(
            f"{name}-variant-"
        ):
            element.attrib["class"] = group.removeprefix(f"{name}-")
        if element.attrib.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
    viewbox = svg.attrib["viewBox"]
    svg.attrib.clear()
    svg.attrib |= {"viewBox": viewbox, "role": "img", "aria-label": text}
    return re.sub("<g */>", "", ElementTree.tostring(svg, encoding="unicode"))


def _value(value: str, key: str, name: str) -> str:
    """Shortens the value of an attribute, and makes the identifiers in it unique."""
    if key == "id":
        return f"{name}-{value}"
    value = re.sub(r"(^|url\()#(?=[a-z])", rf"\1#{name}-", value) if key != "style" else value
    value = (
        re.sub("#[0-9a-f]{6}", lambda match: _COLOURS[match[0]], value) if key == "style" else value
    )
    value = re.sub(r"font-family: [^;]*; ", "", value)
    return re.sub(r"(?<=\.\d\d)\d+", "", re.sub(r"\s+", " ", value)).strip()
