"""A web page with a trained network inside, that names what is drawn on it."""

import base64
import html
import json
from importlib import resources
from string import Template
from typing import Any

import numpy as np

from jax_mnist.inference.predict import TrainedNetwork
from jax_mnist.nn.cnn import CNN

_FILES = resources.files("jax_mnist.inference") / "web"
_SCRIPTS = ("network.js", "placing.js", "page.js")


def to_html(network: TrainedNetwork) -> bytes:
    """Makes one HTML file that needs no other file and no server.

    The page finds and places what is drawn as `pictures.centre` does, and shows the mean of the
    replicas' probabilities, and each replica's vote.
    """
    record, count = network.records[0], len(network.records)
    digits = record["label_names"] == list("0123456789")
    title = "Draw a digit" if digits else "Draw a picture"
    parameters = f"{record['parameters']:,} parameters"
    who = f"A network of {parameters}" if count == 1 else f"{count} networks of {parameters} each"
    introduction = (
        f"{who}, trained as <i>{html.escape(record['name'])}</i>, "
        f"{'names' if count == 1 else 'name'} it as you draw. "
        "Nothing leaves this page: it works without a server."
    )
    about = describe(network) | {"weights": [*map(_base64, _folded(network))]}
    page = Template(_read("page.html")).substitute(
        title=title,
        style=_read("page.css"),
        introduction=introduction,
        classes_caption="Probabilities" if count == 1 else "Mean of their probabilities",
        seen_caption="What the network sees" if count == 1 else "What the networks see",
        classes="\n".join(map(_class_row, record["label_names"])),
        votes=_votes([record["seed"] for record in network.records]),
        network=json.dumps(about).replace("<", "\\u003c"),  # no text can end the script element
        script="\n".join(map(_read, _SCRIPTS)),
    )
    return page.encode()


def describe(network: TrainedNetwork) -> dict[str, Any]:
    """What has to be known to use the weights of a `CNN`, ready for JSON."""
    record, model = network.records[0], _cnn(network)
    return {
        "name": record["name"],
        "layers": [layer._asdict() for layer in model.layers],
        "normalization": network.normalization._asdict(),
        "labels": record["label_names"],
        "transposed": network.transposed,
        "seeds": [record["seed"] for record in network.records],
    }


def _cnn(network: TrainedNetwork) -> CNN:
    if not isinstance(network.model, CNN):
        raise TypeError(f"only a CNN has layers to describe; got a {type(network.model).__name__}")
    return network.model


def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _class_row(label: str) -> str:
    cells = '<td class="bar"></td><td class="percent"></td>'
    return f'<tr><th scope="row">{html.escape(label)}</th>{cells}</tr>'


def _votes(seeds: list[int]) -> str:
    if len(seeds) == 1:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">Seed {seed}</th><td class="vote"></td><td class="percent"></td></tr>'
        for seed in seeds
    )
    return (
        '<section class="votes">\n<table id="votes">\n<caption>Votes</caption>\n<tbody>\n'
        f"{rows}\n</tbody>\n</table>\n</section>"
    )


def _folded(network: TrainedNetwork) -> np.ndarray:
    """The weights in the order of use, float32 `[replicas, parameters]`.

    Each kernel is followed by the scale and the offset of its norm, if it has one: in inference, a
    norm maps a channel `x` to `scale * x + offset`.
    """
    params, stats = network.variables["params"], network.variables["batch_stats"]
    model = _cnn(network)
    norm: Any = model.norm(use_running_average=True, axis=3, batch_axis=0, name=None)
    arrays: list[np.ndarray] = []
    for number, layer in enumerate(model.layers, start=1):
        arrays.append(params[f"conv{number}"]["kernel"])
        if "norm" in layer.then:
            gain, running = params[f"norm{number}"], stats[f"norm{number}"]
            scale = gain["scale"] / np.sqrt(running["var"] + norm.epsilon)
            arrays += [scale, gain["bias"] - running["mean"] * scale]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], 1)


def _base64(weights: np.ndarray) -> str:
    return base64.b64encode(weights.astype("<f4").tobytes()).decode()
