"""Operations that are put off until the next one, which may do both in one pass over the data.

Most of the time on a CPU goes into passes over the activations. A convolution waits for a ReLU,
which its last loop applies. A norm hands on the affine map that it is, and the next convolution
absorbs that: the normalised activations are never written, and the gradients of the map follow from
the kernel's gradient. Activations, `[height, channels, width, batch]`, are thus one of three: an
array, a `Convolution` or an `Affine`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jax_mnist.nn import batch_last, pooling


class Affine(NamedTuple):
    """`x * multiplier + offset`, not computed yet; see `batch_last.convolve` for the shapes."""

    x: Array
    multiplier: Array
    offset: Array


class Convolution(NamedTuple):
    """The convolution of activations with a kernel, not computed yet."""

    x: Array | Affine
    kernel: Array

    def compute(self, relu: bool) -> Array:
        """Convolves, and applies ReLU if asked to."""
        x, affine = (self.x.x, self.x[1:]) if isinstance(self.x, Affine) else (self.x, None)
        return batch_last.convolve(x, self.kernel, affine, relu)


Activations = Array | Affine | Convolution


def compute(x: Activations) -> Array:
    """Computes what has been put off."""
    if isinstance(x, Affine):
        return x.x * x.multiplier + x.offset
    return x.compute(relu=False) if isinstance(x, Convolution) else x


def convolve(x: Activations, kernel: Array) -> Convolution:
    """Puts off a convolution until it is known whether a ReLU follows."""
    return Convolution(x if isinstance(x, Affine) else compute(x), kernel)


def relu(x: Activations) -> Array:
    """Replaces negative entries by 0."""
    return x.compute(relu=True) if isinstance(x, Convolution) else nn.relu(compute(x))


def normalize(norm: Any, x: Activations) -> Activations:
    """Puts off the affine map of a norm, if it can tell it (`affine_map`)."""
    x = compute(x)
    if not hasattr(norm, "affine_map"):
        return norm(x)
    centre, multiplier, offset = norm.affine_map(x)
    if offset is None:
        offset = jnp.zeros_like(multiplier)
    return Affine(x, multiplier, offset if centre is None else offset - centre * multiplier)


def max_pool(x: Activations, axes: tuple[int, int]) -> Array:
    """The maximum over windows of 2x2, with stride 2, of the axes of height and width."""
    return pooling.max_pool(compute(x), axes)


def average_pool(x: Activations, axes: tuple[int, int]) -> Activations:
    """The mean over height and width, which keep size 1; of an affine map, the map of the mean."""
    if isinstance(x, Affine):
        return x._replace(x=x.x.mean(axes, keepdims=True))
    return compute(x).mean(axes, keepdims=True)
