"""Regularisers that change a batch or the point at which its gradient is taken: pure functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike


def partners(batch: int) -> np.ndarray:
    """The position of each example's partner: neighbours form pairs, an odd last one stays alone.

    The order of the examples is random. Devices that share a batch evenly split no pair.
    """
    return np.minimum(np.arange(batch) ^ 1, batch - 1)


def mixup(key: Array, images: Array, alpha: ArrayLike) -> tuple[Array, Array]:
    """Replaces each image by a weighted mean of itself and its partner.

    `share * x + (1 - share) * x[partners]`, where `share` is drawn from Beta(alpha, alpha) once for
    the batch, as in the authors' program. Since both images of a pair are mixed, `share` and
    `1 - share` give the same batch in another order: the larger of the two is taken.

    Args:
      key: A key.
      images: `[batch, height, width, channels]`.
      alpha: Above 0; small values leave most batches almost as they are.

    Returns:
      The mixed images, and the share, a scalar in [0.5, 1]. The loss of the batch is
      `share * loss(labels) + (1 - share) * loss(labels[partners])`.

    References:
      Zhang et al., "mixup: beyond empirical risk minimization", arXiv:1710.09412.
    """
    share = jax.random.beta(key, alpha, alpha)
    share = jnp.maximum(share, 1 - share)
    return share * images + (1 - share) * images[partners(len(images))], share


def sam_perturbation(params: optax.Params, gradient: optax.Updates, radius: ArrayLike) -> Any:
    """The weights within `radius` with the highest loss, to first order.

    `p + radius * g / |g|`, with the norm over all parameters. Sharpness-aware minimisation updates
    the weights with the gradient at this point.

    Args:
      params: The weights.
      gradient: The gradient of the loss there.
      radius: The distance, rho in the reference.

    Returns:
      Weights, in the structure of `params`.

    References:
      Foret et al., "Sharpness-aware minimization for efficiently improving generalization",
      arXiv:2010.01412.
    """
    tiny = jnp.finfo(jnp.float32).tiny  # a gradient of zero leaves the weights
    scale = radius / jnp.maximum(optax.tree.norm(gradient), tiny)
    return jax.tree.map(lambda p, g: p + scale * g, params, gradient)
