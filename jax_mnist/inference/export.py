"""Exporting a trained network to one file, in a format for each use."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from safetensors import numpy as safetensors

from jax_mnist.inference import web_page
from jax_mnist.inference.predict import TrainedNetwork
from jax_mnist.nn.cnn import CNN
from jax_mnist.nn.kernels import PLAIN
from jax_mnist.training import augment

PLATFORMS = ("cpu", "cuda")
_PYTORCH_NAMES = {
    "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var",
}  # fmt: skip


def to_jaxexport(network: TrainedNetwork) -> bytes:
    """Serializes the function from images to class probabilities, including its weights.

    The exported function takes uint8 images `[batch, 28, 28]` with a black (0) background and any
    batch size, and returns float32 probabilities `[batch, 10]`, the mean over the replicas. The
    format is that of `jax.export` (StableHLO), whose documentation promises that a file can be
    read for at least six months.

    Returns:
      Bytes for `jax.export.deserialize`; the function runs on each of `PLATFORMS`.
    """
    plain: Any = network.model
    if isinstance(plain, CNN):
        plain = plain.clone(kernels=PLAIN)  # the order of axes that every platform knows

    @jax.jit
    def probabilities(images: Array) -> Array:
        x = augment.normalize(images[..., None].astype(jnp.float32) / 255, *network.normalization)

        def of_one(variables: dict[str, Any]) -> Array:
            logits: Any = plain.apply(variables, x, train=False)
            return jax.nn.softmax(logits)

        return jax.vmap(of_one)(network.variables).mean(0)

    shape = export.symbolic_shape("batch, 28, 28")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return bytes(export.export(probabilities, platforms=PLATFORMS)(images).serialize())


def to_safetensors(network: TrainedNetwork) -> bytes:
    """Serializes the weights for other frameworks, in the safetensors format.

    Names and shapes are those of a PyTorch `state_dict`, with a leading axis of replicas:
    `conv1.weight` is float32 `[replicas, features, channels, rows, columns]`; `norm1.weight`,
    `norm1.bias`, `norm1.running_mean` and `norm1.running_var` are `[replicas, features]`, for a
    norm that adds 1e-5 to the variance. The metadata have one entry, `network`: a JSON object with
    `layers` (`CNN.layers`), `normalization`, `labels` and `seeds`.
    """
    about = json.dumps(web_page.describe(network))
    tensors = {}
    for module, params in network.variables["params"].items():
        if "kernel" in params:
            weight = np.transpose(params["kernel"], (0, 4, 3, 1, 2))
            tensors[f"{module}.weight"] = np.ascontiguousarray(weight)
            continue
        for name, array in (params | network.variables["batch_stats"][module]).items():
            tensors[f"{module}.{_PYTORCH_NAMES[name]}"] = np.asarray(array)
    return bytes(safetensors.save(tensors, metadata={"network": about}))


FORMATS = {"jaxexport": to_jaxexport, "html": web_page.to_html, "safetensors": to_safetensors}
