"""Convolution with the batch as the last axis, which XLA compiles to fast CPU code.

XLA's own CPU convolution is slow with few channels, above all its gradient with respect to the
kernel. In arrays `[height, channels, width, batch]`, every operation of the network is a sum
of products of whole vectors of examples, which XLA compiles to plain vector loops. What keeps them
fast, with the processor time that it saves on an AMD EPYC with AVX2, where a training step on 128
images takes 39 ms on one core:

- Each loop is compiled by itself (`xla.separate`); otherwise XLA repeats it inside everything that
  reads its result, and a step takes many times as long.
- A convolution absorbs the affine map before it and the ReLU after it, and the gradients of the map
  are taken from those of the kernel: no pass over the activations is left for any of these. A step
  takes 1.10 times as long without.
- A loop has at most `_MAX_TERMS` products, so that the weights stay in registers. With 45, a step
  takes 1.14 times as long.
- All groups of channels but the first and the last share one compiled loop: a step compiles in 0.8
  of the time, and is no slower.
- A sum is computed as `_PARTIAL_SUMS` interleaved sums, so that an addition need not wait for the
  one before it. With one sum, the second layer takes 1.3 times as long.
- What a loop over positions reads repeatedly fits into a core's second cache (`_MAX_ENTRIES`).
  With blocks of 6x6 positions, a step takes 1.25 times as long.

`operations.BATCH_LAST` makes these available to the network. Results are those of the usual
operations, except for rounding.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jax_mnist.nn.xla import separate

_PARTIAL_SUMS = 4
_MAX_TERMS = 10  # products in one loop of `_add_channels`, but at least one channel
_MAX_POSITIONS = 26  # of the output, in one loop of `_kernel_gradient`
_MAX_ENTRIES = 2**16  # of both arrays that such a loop reads


def _sum(terms: list[Array]) -> Array:
    number = min(_PARTIAL_SUMS, len(terms))
    parts = [functools.reduce(lax.add, terms[i::number]) for i in range(number)]
    return functools.reduce(lax.add, parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def convolve(
    x: Array, kernel: Array, affine: tuple[Array, Array] | None = None, relu: bool = False
) -> Array:
    """Convolves `x * multiplier + offset` with stride 1 and without padding.

    Args:
      x: Activations, `[height, channels, width, batch]`.
      kernel: The kernel, `[rows, columns, channels, features]`.
      affine: The multiplier and the offset, each `[1, channels, 1, batch]`, or `[1, channels, 1,
        1]` if all examples share them; by default 1 and 0.
      relu: Whether to replace negative results by 0.

    Returns:
      Activations, `[height - rows + 1, features, width - columns + 1, batch]`.
    """
    return _convolve_forward(x, kernel, affine, relu)[0]


def _convolve_forward(
    x: Array, kernel: Array, affine: tuple[Array, Array] | None, relu: bool
) -> tuple[Array, Any]:
    y = _correlate(*_absorb(x, kernel, affine), relu=relu)
    return y, (x, kernel, affine, y if relu else None)


def _absorb(
    x: Array, kernel: Array, affine: tuple[Array, Array] | None
) -> tuple[Array, Array, Array | None]:
    """Input, kernel and bias of a plain convolution with the same result."""
    if affine is None:
        return x, kernel, None
    multiplier, offset = affine
    if multiplier.shape[3] > 1:
        return x * multiplier + offset, kernel, None
    bias = (kernel * offset.reshape(-1, 1)).sum((0, 1, 2))
    return x, kernel * multiplier.reshape(-1, 1), bias


def _convolve_backward(relu: bool, saved: Any, dy: Array) -> tuple[Array, Array, Any]:
    """The gradients. Those of the affine map come from kernel gradients of single examples."""
    x, kernel, affine, y = saved
    rows, columns, _, _ = kernel.shape
    if relu:
        dy = jnp.where(y > 0, dy, 0)
    dy = jnp.pad(dy, [(rows - 1, rows - 1), (0, 0), (columns - 1, columns - 1), (0, 0)])
    gradient, bias_gradient = _kernel_gradient(x, dy, rows, columns)
    kernel_of_dx = kernel
    multiplier = None
    if affine is None:
        dkernel, daffine = gradient.sum(-1), None
    else:
        multiplier, offset = affine
        if multiplier.shape[3] == 1:
            kernel_of_dx, multiplier = kernel * multiplier.reshape(-1, 1), None
            gradient, bias_gradient = (g.sum(-1, keepdims=True) for g in (gradient, bias_gradient))
        # Axes: [features, rows, channels, columns, batch].
        weights = kernel.transpose(3, 0, 2, 1)[..., None]
        bias_gradient = jnp.expand_dims(bias_gradient, (1, 2, 3))
        dmultiplier = (weights * gradient).sum((0, 1, 3))
        doffset = (weights.sum((1, 3), keepdims=True) * bias_gradient).sum((0, 1, 3))
        daffine = tuple(d[None, :, None] for d in (dmultiplier, doffset))
        dkernel = (gradient * affine[0][0] + bias_gradient * offset[0]).sum(-1)
    flipped = kernel_of_dx[::-1, ::-1].swapaxes(2, 3)
    return _correlate(dy, flipped, multiplier=multiplier), dkernel.transpose(1, 3, 2, 0), daffine


convolve.defvjp(_convolve_forward, _convolve_backward)


def _correlate(
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    multiplier: Array | None = None,
    relu: bool = False,
) -> Array:
    """Convolves, adds a bias to each feature, applies ReLU, and multiplies."""
    rows, columns, channels, features = kernel.shape
    most = largest_divisor(channels, max(1, _MAX_TERMS // (rows * columns)))
    groups = channels // most
    # Of each group of channels: [groups, terms, features, 1, 1].
    weights = kernel.reshape(rows * columns, groups, most, features).swapaxes(0, 1)
    weights = weights.reshape(groups, -1, features, 1, 1)
    size = (rows, columns, most)

    def add_group(group: ArrayLike, y: Array) -> Array:
        return _add_channels(y, x, weights, group, size=size)

    end = {"multiplier": multiplier, "relu": relu}
    if groups == 1:
        return _add_channels(None, x, weights, 0, bias, size=size, **end)
    y = _add_channels(None, x, weights, 0, bias, size=size)
    if groups > 2:
        y = lax.fori_loop(1, groups - 1, add_group, y)
    return _add_channels(y, x, weights, groups - 1, size=size, **end)


@functools.partial(separate, static_argnames=("size", "relu"))
def _add_channels(
    y: Array | None,
    x: Array,
    weights: Array,
    group: ArrayLike,
    bias: Array | None = None,
    *,
    size: tuple[int, int, int],
    multiplier: Array | None = None,
    relu: bool = False,
) -> Array:
    """Adds to `y` the contribution of one group of input channels."""
    rows, columns, most = size
    block = (x.shape[0] - rows + 1, most, x.shape[2] - columns + 1, x.shape[3])
    group = jnp.asarray(group, jnp.int32)
    # Little of jax.numpy, and no slice where a split will do: a network traces hundreds of these.
    windows = [
        _slice(x, (i, group * most, j, 0), block) for i in range(rows) for j in range(columns)
    ]
    channels = [c for window in windows for c in lax.split(window, (1,) * most, axis=1)]
    weights = _slice(weights, (group, 0, 0, 0, 0), (1, *weights.shape[1:]))[0]
    terms = [c * w for c, w in zip(channels, lax.split(weights, (1,) * len(channels)), strict=True)]
    total = _sum(terms) if y is None else y + _sum(terms)
    if bias is not None:
        total += bias.reshape(-1, 1, 1)
    if relu:
        total = jnp.maximum(total, 0)
    return total if multiplier is None else total * multiplier


def _kernel_gradient(x: Array, dy: Array, rows: int, columns: int) -> tuple[Array, Array]:
    """Sums the products of `x` and `dy` over positions, in blocks of positions.

    Args:
      x: The input of the convolution.
      dy: The gradient of its output, padded by `rows - 1` and `columns - 1` on each side.
      rows: Rows of the kernel.
      columns: Columns of the kernel.

    Returns:
      The gradient of the kernel, `[features, rows, channels, columns, batch]`, and of a bias,
      `[features, batch]`, of each example.
    """
    channels, batch = x.shape[1], x.shape[3]
    height, width = x.shape[0] - rows + 1, x.shape[2] - columns + 1
    features = dy.shape[1]

    def shapes(block: tuple[int, int]) -> list[tuple[int, ...]]:
        h, w = block
        return [(h + rows - 1, channels, w + columns - 1, batch), (h, features, w, batch)]

    def entries(block: tuple[int, int]) -> int:
        return sum(map(math.prod, shapes(block)))

    blocks = [
        block
        for block in itertools.product(_divisors(height), _divisors(width))
        if math.prod(block) <= _MAX_POSITIONS and entries(block) <= _MAX_ENTRIES
    ]
    most = max(blocks, key=lambda block: (math.prod(block), -entries(block)), default=(1, 1))
    x_shape, dy_shape = shapes(most)

    across = width // most[1]

    def add_block(number: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
        h, w = lax.div(number, across) * most[0], lax.rem(number, across) * most[1]
        x_block = _slice(x, (h, 0, w, 0), x_shape)
        dy_block = _slice(dy, (h + rows - 1, 0, w + columns - 1, 0), dy_shape)
        total, total_dy = totals
        return _add_positions(total, x_block, dy_block), total_dy + dy_block.sum((0, 2))

    zeros = (
        jnp.zeros((features, rows, channels, columns, batch), dy.dtype),
        jnp.zeros((features, batch), dy.dtype),
    )
    return lax.fori_loop(0, height // most[0] * across, add_block, zeros)


@separate
def _add_positions(total: Array, x: Array, dy: Array) -> Array:
    features, rows, channels, columns, batch = total.shape
    height, _, width, _ = dy.shape
    dy = dy.reshape((height, features, 1, 1, width, batch))
    terms = [
        lax.slice(x, (h, 0, w, 0), (h + rows, channels, w + columns, batch)) * dy_there
        for h, dy_row in enumerate(lax.split(dy, (1,) * height))
        for w, dy_there in enumerate(lax.split(dy_row, (1,) * width, axis=4))
    ]
    return total + _sum(terms)[0]


# `lax.dynamic_slice`, of which half the code would be about negative indices.
_slice = functools.partial(lax.dynamic_slice, allow_negative_indices=False)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(d for d in _divisors(number) if d <= most)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
