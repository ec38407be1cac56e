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
    single = count == 1
    introduction = (
        f"{'A network' if single else f'{count} networks'} of {record['parameters']:,} parameters"
        f"{'' if single else ' each'}, trained as <i>{html.escape(record['name'])}</i>, "
        f"{'names' if single else 'name'} it as you draw. "
        "Nothing leaves this page: it works without a server."
    )
    about = describe(network)
    about["weights"] = [base64.b64encode(row.tobytes()).decode() for row in _weights(network)]
    page = Template(_read("page.html")).substitute(
        thing="digit" if record["label_names"] == list("0123456789") else "picture",
        style=_read("page.css"),
        introduction=introduction,
        classes_caption="Probabilities" if single else "Mean of their probabilities",
        seen_caption=f"What the {'network sees' if single else 'networks see'}",
        # No text can end the script element.
        network=json.dumps(about).replace("<", "\\u003c"),
        script="\n".join(map(_read, _SCRIPTS)),
    )
    return page.encode()


def describe(network: TrainedNetwork) -> dict[str, Any]:
    """What has to be known to use the weights of a `CNN`, ready for JSON."""
    record, model = network.records[0], network.model
    if not isinstance(model, CNN):
        raise TypeError(f"only a CNN has layers to describe; got a {type(model).__name__}")
    return {
        "name": record["name"],
        "layers": [layer._asdict() for layer in model.layers],
        "normalization": network.normalization._asdict(),
        "labels": record["label_names"],
        "transposed": network.transposed,
        "seeds": [record["seed"] for record in network.records],
    }


def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _weights(network: TrainedNetwork) -> np.ndarray:
    """The weights in the order of use, little-endian float32 `[replicas, parameters]`.

    Each kernel is followed by the scale and the offset of its norm, if it has one: in inference, a
    norm maps a channel `x` to `scale * x + offset`.
    """
    params, stats = network.variables["params"], network.variables["batch_stats"]
    model: Any = network.model
    norm = model.norm(use_running_average=True, axis=3, batch_axis=0, name=None)
    arrays: list[np.ndarray] = []
    for number, layer in enumerate(model.layers, start=1):
        arrays.append(params[f"conv{number}"]["kernel"])
        if "norm" in layer.then:
            gain, running = params[f"norm{number}"], stats[f"norm{number}"]
            scale = gain["scale"] / np.sqrt(running["var"] + norm.epsilon)
            arrays += [scale, gain["bias"] - running["mean"] * scale]
    flat = [array.reshape(len(array), -1) for array in arrays]
    return np.concatenate(flat, 1).astype("<f4")
