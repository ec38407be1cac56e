"""Pooling of activations in any order of the axes, with a gradient that does not scatter."""

import functools

import jax
import jax.numpy as jnp
from jax import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Array, axes: tuple[int, int]) -> Array:
    """The maximum over windows of 2x2, with stride 2.

    If values tie, the first in the window gets the gradient, as in `flax.linen.max_pool`.

    Args:
      x: Activations, of four axes.
      axes: The axes of height and width, in this order; both are of even size.
    """
    return _max_pool_forward(x, axes)[0]


def _max_pool_forward(x: Array, axes: tuple[int, int]) -> tuple[Array, Array]:
    def part(n: int) -> Array:
        """The entries at one of the four places of each window."""
        index = [slice(None)] * x.ndim
        index[axes[0]], index[axes[1]] = slice(n // 2, None, 2), slice(n % 2, None, 2)
        return x[tuple(index)]

    y, place = part(0), jnp.zeros((), jnp.uint8)
    for n in (1, 2, 3):
        place = jnp.where(part(n) > y, jnp.uint8(n), place)
        y = jnp.maximum(y, part(n))
    return y, place


def _max_pool_backward(axes: tuple[int, int], place: Array, dy: Array) -> tuple[Array]:
    inside = axes[0] + 1, axes[1] + 2  # the row and the column in a window, as axes of their own
    others = [a for a in range(dy.ndim + 2) if a not in inside]
    window = jnp.expand_dims(jnp.arange(4, dtype=jnp.uint8).reshape(2, 2), others)
    here = jnp.expand_dims(place, inside) == window
    dx = jnp.where(here, jnp.expand_dims(dy, inside), 0)
    return (dx.reshape([n * 2 if a in axes else n for a, n in enumerate(dy.shape)]),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
