"""Losses of a batch: pure functions of logits and labels."""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean of `optax.softmax_cross_entropy_with_integer_labels`, to the bit.

    The gradient of optax's indexing is a scatter, for which a GPU needs seven kernels.

    Args:
      logits: float `[batch, classes]`.
      labels: int32 `[batch]`.

    Returns:
      A scalar.
    """
    labelled = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    of_labels = jnp.where(labelled, logits, 0).sum(-1)
    return (jax.nn.logsumexp(logits, axis=-1) - of_labels).mean()
