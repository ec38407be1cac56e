"""What the HTML page of a report has in place of pictures: curves, intervals, hard images.

All of it can be read without JavaScript. `report.js` adds the boxes that hide variants.
"""

import base64
import io
from collections.abc import Mapping
from html import escape

import numpy as np
from PIL import Image

from jax_mnist.analysis import drawing, study_plots, svg
from jax_mnist.analysis.comparison import Comparison
from jax_mnist.analysis.markup import count
from jax_mnist.analysis.statistics import LEVEL, Estimate


def curves(study: Comparison, metric: drawing.Metric) -> str:
    """Returns a panel for each variant, which opens large, and boxes that hide variants."""
    panels = []
    for number, (name, figure) in enumerate(study_plots.panels(study.variants, metric).items()):
        runs = list(study.variants[name].values())
        epochs = min(len(record["metrics"][metric.key]) for record in runs)
        heights = [metric.heights(record)[epochs - 1] for record in runs]
        mean = metric.mean_text(float(np.mean(heights)))
        text = f"{metric.name} of {name} over the epochs"
        panels.append(
            f'<details class="panel variant-{number}"><summary><b>{escape(name)}</b> '
            f"<span>{mean}</span>{svg.inline(figure, f'{metric.name}-{number}', text)}</summary>"
            f"<p>Mean of {count(len(runs), 'seed')} after {count(epochs, 'epoch')}: {mean}; "
            f"single runs reach from {metric.mean_text(max(heights))} to "
            f"{metric.mean_text(min(heights))}.</p></details>"
        )
    above = boxes(study) if metric is drawing.ACCURACY and len(panels) > 1 else ""
    return (
        f"{above}<h3>{metric.name.capitalize()} over the epochs</h3>"
        f'<div class="panels">{"".join(panels)}</div>'
        f'<p class="legend">{escape(metric.label.capitalize())}. <span class="mean">Blue</span>: '
        "mean over seeds, with its last value, and 95 % interval; "
        "grey: means of the other variants. A panel opens large when "
        "it is tapped.</p>"
    )


def boxes(study: Comparison) -> str:
    """Returns a box for each variant, which hides it in all curves."""
    labels = "".join(
        f'<label><input type="checkbox" checked autocomplete="off" data-variant="{number}"> '
        f"{escape(name)}</label>"
        for number, name in enumerate(study.variants)
    )
    return f'<fieldset class="scripted" hidden><legend>Curves of</legend>{labels}</fieldset>'


def intervals(effects: Mapping[str, Estimate]) -> list[str]:
    """Returns a drawing of each effect and its interval, all on the same scale around zero."""
    ends = np.array([effect[:3] for effect in effects.values()])
    reach = np.nanmax(np.abs(ends), initial=1e-9)

    def drawn(effect: Estimate) -> str:
        mean, low, high = (100 + 94 * value / reach for value in effect[:3])
        line = f'<path class="reach" d="M{low:.1f} 10H{high:.1f}"/>' if low < high else ""
        dot = "shown" if effect.p < LEVEL else "open"
        return (
            '<svg class="interval" viewBox="0 0 200 20" aria-hidden="true"><path class="zero" '
            f'd="M100 0V20"/>{line}<circle class="{dot}" cx="{mean:.1f}" cy="10" r="5"/></svg>'
        )

    return [drawn(effect) for effect in effects.values()]


def intervals_legend() -> str:
    """Returns what `intervals` draws, in words."""
    return (
        '<p class="legend">Drawn are each difference and its 95 % interval; the vertical line is '
        f"no difference, and a filled dot has p below {LEVEL}.</p>"
    )


def hardest(study: Comparison) -> str:
    """Returns the images that most runs get wrong; each opens with who got it wrong."""
    names = [escape(name) for name in study.records[0]["label_names"]]
    images, runs, figures = study.hardest, len(study.records), []
    for image in images:
        rows = []
        for variant, votes in image.by_variant.items():
            total = len(study.variants[variant])
            said = ", ".join(f"{names[c]} ({n})" for c, n in votes.items())
            wrong = f"{sum(votes.values())} of {total}"
            rows.append(f"<tr><td>{escape(variant)}</td><td>{wrong}</td><td>{said}</td></tr>")
        figures.append(
            f'<details><summary><img alt="" src="{_png(image.image)}"> <span>true '
            f"{names[image.label]}, said {names[image.prediction]}</span> <span>{image.votes:,} of "
            f"{runs:,}</span></summary><table><thead><tr><th>variant</th><th>wrong</th><th>said "
            f"(runs)</th></tr></thead><tbody>{''.join(rows)}</tbody></table><p>Image "
            f"{image.position:,} of the {escape(study.images(str))}, counted from 0.</p></details>"
        )
    which = f"The {len(images)} {escape(study.images(str))}" if len(images) > 1 else "The image"
    return (
        f"<p>{which} that most of the {count(runs, 'run')} get wrong, each with the number of "
        "runs that do. Tap an image to see which variants get it wrong.</p>"
        f'<div class="hardest">{"".join(figures)}</div>'
    )


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
