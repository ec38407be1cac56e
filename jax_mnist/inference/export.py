"""Exporting a trained network to one file that JAX alone can run."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, export

from jax_mnist.nn.cnn import CNN
from jax_mnist.nn.operations import PLAIN
from jax_mnist.training import augment

PLATFORMS = ("cpu", "cuda")


def serialize(
    model: nn.Module,
    variables: dict[str, Any],
    normalization: augment.Normalization = augment.MNIST,
) -> bytes:
    """Serializes the function from images to class probabilities, including its weights.

    The exported function takes uint8 images `[batch, 28, 28]` with a black (0) background and any
    batch size, and returns float32 probabilities `[batch, 10]`, the mean over the replicas. The
    format is that of `jax.export` (StableHLO), whose documentation promises that a file can be
    read for at least six months.

    Args:
      model: The network.
      variables: `{"params": ..., "batch_stats": ...}`, each leaf with a leading axis of replicas.
      normalization: Mean and standard deviation of the pixels, as in training.

    Returns:
      Bytes for `jax.export.deserialize`; the function runs on each of `PLATFORMS`.
    """
    plain = model
    if isinstance(model, CNN):
        plain = model.clone(operations=PLAIN)  # the order of axes that every platform knows

    @jax.jit
    def probabilities(images: Array) -> Array:
        x = augment.normalize(images[..., None].astype(jnp.float32) / 255, *normalization)

        def of_one(variables: dict[str, Any]) -> Array:
            logits: Any = plain.apply(variables, x, train=False)
            return jax.nn.softmax(logits)

        return jax.vmap(of_one)(variables).mean(0)

    shape = export.symbolic_shape("batch, 28, 28")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return bytes(export.export(probabilities, platforms=PLATFORMS)(images).serialize())
