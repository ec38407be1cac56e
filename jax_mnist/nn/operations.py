"""The operations of a network, in three forms: XLA's own, for a GPU, and for a CPU."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_mnist.nn import batch_first, deferred


class Operations(NamedTuple):
    """Operations on activations in one order of axes. Results do not depend on the order.

    Except for images and logits, activations are only passed from one operation to the next: they
    may be anything that the operations agree upon.

    Attributes:
      batch_axis: The batch axis of the activations.
      feature_axis: The channel axis of the activations.
      from_images: Turns images, `[batch, height, width, channels]`, into activations.
      convolve: Convolves activations with a kernel `[rows, columns, channels, features]`, with
        stride 1 and without padding.
      relu: Replaces negative entries by 0.
      normalize: Applies a norm, a Flax module, to activations.
      max_pool: The maximum over windows of 2x2, with stride 2.
      average_pool: The mean over height and width, which keep size 1.
      to_logits: Turns activations of height and width 1 into `[batch, features]`.
    """

    batch_axis: int
    feature_axis: int
    from_images: Callable[[Array], Array]
    convolve: Callable[[Any, Array], Any]
    relu: Callable[[Any], Any]
    normalize: Callable[[nn.Module, Any], Any]
    max_pool: Callable[[Any], Any]
    average_pool: Callable[[Any], Any]
    to_logits: Callable[[Any], Array]


# The usual order, `[batch, height, width, channels]`, and XLA's own operations.
PLAIN = Operations(
    batch_axis=0,
    feature_axis=3,
    from_images=lambda images: images,
    convolve=functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    relu=nn.relu,
    normalize=lambda norm, x: norm(x),
    max_pool=functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2)),
    average_pool=functools.partial(jnp.mean, axis=(1, 2), keepdims=True),
    to_logits=lambda x: x[:, 0, 0],
)

# The same order, for a GPU.
BATCH_FIRST = PLAIN._replace(
    feature_axis=-1,
    convolve=batch_first.convolve,
    relu=deferred.relu,
    normalize=batch_first.normalize,
    max_pool=functools.partial(deferred.max_pool, axes=(1, 2)),
    average_pool=functools.partial(deferred.average_pool, axes=(1, 2)),
    to_logits=lambda x: deferred.compute(x)[:, 0, 0],
)

# `[height, channels, width, batch]`: fast on a CPU.
BATCH_LAST = Operations(
    batch_axis=3,
    feature_axis=1,
    from_images=lambda images: images.transpose(1, 3, 2, 0),
    convolve=deferred.convolve,
    relu=deferred.relu,
    normalize=deferred.normalize,
    max_pool=functools.partial(deferred.max_pool, axes=(0, 2)),
    average_pool=functools.partial(deferred.average_pool, axes=(0, 2)),
    to_logits=lambda x: deferred.compute(x)[0, :, 0].T,
)


def fastest() -> Operations:
    """The operations that are fastest on JAX's default backend."""
    return {"cpu": BATCH_LAST, "gpu": BATCH_FIRST}.get(jax.default_backend(), PLAIN)


def scale_channels(operations: Operations, x: Any, factors: Array) -> Any:
    """Multiplies each channel of each example of activations by a factor, `[batch, channels]`."""
    x = deferred.compute(x)
    axes = (operations.batch_axis, operations.feature_axis % x.ndim)
    others = [axis for axis in range(x.ndim) if axis not in axes]
    return x * jnp.expand_dims(factors if axes[0] < axes[1] else factors.T, others)
