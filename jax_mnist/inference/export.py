"""A trained network as one file that JAX alone can run."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export

from jax_mnist.nn.cnn import CNN
from jax_mnist.nn.operations import PLAIN
from jax_mnist.training import augment

PLATFORMS = ("cpu", "cuda")


def serialize(
    model: CNN, variables: dict[str, Any], normalization: augment.Normalization = augment.MNIST
) -> bytes:
    """The function from images to probabilities, with its weights, by `jax.export` (StableHLO).

    The function takes uint8 `[batch, 28, 28]`, black 0, of any batch size, and gives float32
    `[batch, 10]`; of several replicas, the mean of their probabilities. JAX promises to read what
    it wrote for six months at least, see its documentation of `jax.export`.

    Args:
      model: the network.
      variables: `{"params": ..., "batch_stats": ...}`, each leaf with a leading axis of replicas.
      normalization: that of the training.

    Returns:
      What `jax.export.deserialize` reads, for `PLATFORMS`.
    """
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
