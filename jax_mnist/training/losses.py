"""Losses of a batch: pure functions of logits and labels."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


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


def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: ArrayLike) -> Array:
    """Cross entropy with `smoothing` of each label's probability spread evenly over all classes.

    Args:
      logits: float `[batch, classes]`.
      labels: int32 `[batch]`.
      smoothing: The share that is spread, in [0, 1].

    Returns:
      A scalar, the mean.

    References:
      Szegedy et al., "Rethinking the inception architecture for computer vision",
      arXiv:1512.00567, section 7.
    """
    uniform = (jax.nn.logsumexp(logits, axis=-1) - logits.mean(-1)).mean()
    share = jnp.asarray(smoothing)
    return (1 - share) * cross_entropy(logits, labels) + share * uniform
