"""Norms as affine maps, which the next layer applies while it reads its input."""

import functools
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_mnist.nn.ghost_batch_norm import (
    Devices,
    GhostBatchNorm,
    Statistics,
    affine_map,
    cut_into_ghosts,
    merge_moments,
    number_of_ghosts,
    without_centre,
)


class Affine(NamedTuple):
    """`x * multiplier + offset`, and then perhaps a ReLU: what is still to be applied to `x`.

    A norm is such a map, and the next convolution applies it while it reads `x`, so that normalised
    activations are never written.

    Attributes:
      multiplier: `[examples, channels]`, or `[1, channels]` if all examples share it.
      offset: Of the same shape.
      relu: Whether negative results are replaced by 0.
    """

    multiplier: Array
    offset: Array
    relu: bool = False

    def __call__(self, x: Array) -> Array:
        """Applies the map to images, `[examples, height, width, channels]`."""
        y = x * self.multiplier[:, None, None] + self.offset[:, None, None]
        return jax.nn.relu(y) if self.relu else y  # jnp.maximum passes half a gradient at 0

    def scaled(self, factors: Array) -> "Affine":
        """The map, and then a product with factors of at least 0, `[examples, channels]`."""
        return self._replace(multiplier=self.multiplier * factors, offset=self.offset * factors)


class Moments(NamedTuple):
    """Means over positions of the entries and of their squares, for norms.

    Attributes:
      examples: Their number.
      positions: Height times width.
      channels: Their number.
      of_examples: Computes both means of each example, `[examples, channels]`.
      of_batch: Computes both means of the batch, `[1, channels]`.
    """

    examples: int
    positions: int
    channels: int
    of_examples: Callable[[], list[Array]]
    of_batch: Callable[[], list[Array]]


def moments_of_sums(sums: Array, squares: Array, positions: int) -> Moments:
    """The moments, given the sums over positions of each example, `[examples, channels]`."""

    def of_examples() -> list[Array]:
        return [a / positions for a in (sums, squares)]

    def of_batch() -> list[Array]:
        return [a.mean(0, keepdims=True) for a in of_examples()]

    return Moments(len(sums), positions, sums.shape[1], of_examples, of_batch)


def moments_of_images(x: Array) -> Moments:
    """The moments of images, `[examples, height, width, channels]`."""
    # Height and width as one axis make XLA keep the order of the axes on a GPU: left to choose, it
    # copies activations from one order to another.
    examples, height, width, channels = x.shape
    flat = x.reshape(examples, height * width, channels)

    def means(axes: tuple[int, ...]) -> list[Array]:
        return [a.mean(axes).reshape(-1, channels) for a in (flat, flat * flat)]

    of_examples, of_batch = (functools.partial(means, axes) for axes in ((1,), (0, 1)))
    return Moments(examples, height * width, channels, of_examples, of_batch)


class GhostNorm(GhostBatchNorm):
    """`GhostBatchNorm` that can tell the map that it is, instead of applying it."""

    def affine(self, moments: Moments) -> Affine:
        """The map that `__call__` applies to activations, given their moments.

        Variables are used and updated as by `__call__`, and errors are those too. The fast variance
        is used whatever `use_fast_variance` says.
        """
        inference = self._is_inference(None)
        running_mean, running_var, scale, bias = self._variables((moments.channels,))
        if inference:
            mean, var = running_mean.value[None], running_var.value[None]
            return _affine(affine_map(mean, var, scale, bias, epsilon=self.epsilon))
        devices = Devices(**self._devices())
        examples = moments.examples * devices.number
        ghosts = number_of_ghosts(examples, self.ghost_batch_size)
        if ghosts == 1:
            _, (mean, second) = devices.average(moments.of_batch(), None)
            var = jnp.maximum(0, second - mean**2)
            entries = jnp.where(devices.index() == 0, examples * moments.positions, 0)
            statistics = Statistics(mean, var, jnp.full(mean.shape, entries, mean.dtype))
            affine = affine_map(mean, var, scale, bias, epsilon=self.epsilon)
        else:
            mean, second = moments.of_examples()
            affine, statistics = cut_into_ghosts(
                [jnp.full(mean.shape, moments.positions, mean.dtype), mean, second],
                scale,
                bias,
                ghosts=ghosts,
                axis=0,
                epsilon=self.epsilon,
                use_fast_variance=True,
                merge=merge_moments,
                devices=devices,
                even=examples % ghosts == 0,
            )
        self._update(running_mean, running_var, statistics)
        return _affine(affine)


class BatchNorm(GhostNorm):
    """`flax.linen.BatchNorm`, computed as one ghost batch."""

    ghost_batch_size: int = sys.maxsize


def _affine(norm: tuple[Array | None, Array, Array | None]) -> Affine:
    _, multiplier, offset = without_centre(norm)
    return Affine(multiplier, jnp.zeros_like(multiplier) if offset is None else offset)
