"""Norms as affine maps, which the next layer applies while it reads its input."""

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
    updated_statistics,
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

    @classmethod
    def identity(cls, like: Array) -> "Affine":
        """The map that changes nothing, of the shape of an array."""
        return cls(jnp.ones_like(like), jnp.zeros_like(like))

    def scaled(self, factors: Array) -> "Affine":
        """The map, and then a product with factors of at least 0, `[examples, channels]`."""
        return self._replace(multiplier=self.multiplier * factors, offset=self.offset * factors)


class Moments(NamedTuple):
    """Means over positions of entries and of their squares, computed when a norm asks for them.

    Attributes:
      examples: Their number.
      positions: Height times width.
      channels: Their number.
      means: Both means of each example, `[examples, channels]`; of the batch, `[1, channels]`, if
        its argument is true.
    """

    examples: int
    positions: int
    channels: int
    means: Callable[[bool], list[Array]]


def moments_of_sums(sums: Array, squares: Array, positions: int) -> Moments:
    """The moments, given the sums over positions of each example, `[examples, channels]`."""

    def means(of_batch: bool) -> list[Array]:
        of_examples = [a / positions for a in (sums, squares)]
        return [a.mean(0, keepdims=True) for a in of_examples] if of_batch else of_examples

    return Moments(len(sums), positions, sums.shape[1], means)


def moments_of_images(x: Array) -> Moments:
    """The moments of images, `[examples, height, width, channels]`."""
    # Height and width as one axis make XLA keep the order of the axes on a GPU: left to choose, it
    # copies activations from one order to another.
    examples, height, width, channels = x.shape
    flat = x.reshape(examples, height * width, channels)

    def means(of_batch: bool) -> list[Array]:
        axes = (0, 1) if of_batch else (1,)
        return [a.mean(axes).reshape(-1, channels) for a in (flat, flat * flat)]

    return Moments(examples, height * width, channels, means)


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
            _, (mean, second) = devices.average(moments.means(True), None)
            var = jnp.maximum(0, second - mean**2)
            entries = jnp.where(devices.index() == 0, examples * moments.positions, 0)
            statistics = Statistics(mean, var, jnp.full(mean.shape, entries, mean.dtype))
            affine = affine_map(mean, var, scale, bias, epsilon=self.epsilon)
        else:
            mean, second = moments.means(False)
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
        if not self.is_initializing():
            running = running_mean.value, running_var.value
            updated = updated_statistics(self, running, statistics, self._devices())
            running_mean.value, running_var.value = updated
        return _affine(affine)


class BatchNorm(GhostNorm):
    """`flax.linen.BatchNorm`, computed as one ghost batch."""

    ghost_batch_size: int = sys.maxsize


def _affine(norm: tuple[Array | None, Array, Array | None]) -> Affine:
    _, multiplier, offset = without_centre(norm)
    return Affine(multiplier, jnp.zeros_like(multiplier) if offset is None else offset)
