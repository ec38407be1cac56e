"""Convolutions that XLA compiles to fast GPU code.

With few channels, and above all with several replicas, XLA's own convolutions are unsuitable for a
GPU: `jax.vmap` over kernels makes one grouped convolution of them, and the gradient of its kernels
another one with windows as large as the image. In arrays `[batch, height, width, channels]`, three
other forms map to plain batched operations:

- A convolution, and its gradient with respect to the input, multiply each window by the kernel and
  sum. XLA compiles this to one loop that reads the window where it lies: nothing is copied.
- The gradient with respect to the kernel is one matrix product over all positions. Its left factor
  holds the windows, in blocks of neighbouring columns, so that windows that overlap share entries:
  1.5 times three rows for blocks of `_MAX_BLOCK` columns, instead of 3 times three rows.
- The gradient of pooling finds the maximum by comparing slices, where XLA's own scatters.

Results are those of the usual operations, except for rounding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_mnist.nn.affine import Affine

_MAX_BLOCK = 4


def convolve(x: Array, kernel: Array, affine: Affine | None) -> Array:
    """Convolves `affine(x)` with stride 1 and without padding, as `lax.conv_general_dilated` does.

    Args:
      x: Activations, `[batch, height, width, channels]`.
      kernel: The kernel, `[rows, columns, channels, features]`.
      affine: What is still to be applied to `x`, or None.

    Returns:
      Activations, `[batch, height - rows + 1, width - columns + 1, features]`.
    """
    if affine is not None and affine.relu:
        x, affine = affine(x), None
    maps = None if affine is None else tuple(a[:, None, None] for a in affine[:2])
    return _convolve(jnp.asarray(x), kernel, maps)


@jax.custom_vjp
def _convolve(x: Array, kernel: Array, affine: tuple[Array, Array] | None) -> Array:
    if affine is None:
        return _correlate(x, kernel)
    # The kernel absorbs the map, which need not be applied to the activations.
    multiplier, offset = (part[..., None] for part in affine)
    bias = (kernel * offset).sum((1, 2, 3))
    return _correlate(x, kernel * multiplier) + bias[:, None, None]


def _apply(x: Array, affine: tuple[Array, Array] | None) -> Array:
    return x if affine is None else x * affine[0] + affine[1]


def _correlate(x: Array, kernel: Array) -> Array:
    """Convolves with one kernel, or with one for each example, `[batch, rows, columns, ...]`."""
    kernel = kernel.reshape(-1, *kernel.shape[-4:])
    rows, columns = kernel.shape[1:3]
    if rows == columns == 1:
        return (x[..., None] * kernel).sum(-2)
    return (_windows(x, rows, columns)[..., None] * kernel[:, None, None]).sum((3, 4, 5))


def _windows(x: Array, rows: int, columns: int, step: int = 1) -> Array:
    """The windows of images, one every `step` columns: `[batch, y, x, rows, columns, channels]`."""
    with jax.ensure_compile_time_eval():  # the positions are constants
        y = jnp.arange(x.shape[1] - rows + 1)[:, None] + jnp.arange(rows)
        x_ = jnp.arange(0, x.shape[2] - columns + 1, step)[:, None] + jnp.arange(columns)
    return x[:, y[:, None, :, None], x_[None, :, None, :]]


def kernel_gradient(x: Array, dy: Array, rows: int, columns: int) -> Array:
    """Sums the products of windows of `x` and `dy` over positions and examples."""
    batch, height, width, features = dy.shape
    channels = x.shape[3]
    block = max(d for d in range(1, _MAX_BLOCK + 1) if width % d == 0) if columns > 1 else 1
    wide = block + columns - 1  # columns of all windows of a block together
    positions = batch * height * width // block
    windows = x if rows == wide == 1 else _windows(x, rows, wide, block)
    windows = windows.reshape(positions, rows * wide * channels)
    product = windows.T @ dy.reshape(positions, block * features)
    product = product.reshape(rows, wide, channels, block, features)
    return sum(product[:, i : i + columns, :, i] for i in range(block))  # type: ignore[return-value]


def _convolve_forward(
    x: Array, kernel: Array, affine: tuple[Array, Array] | None
) -> tuple[Array, Any]:
    return _convolve(x, kernel, affine), (x, kernel, affine)


def _convolve_backward(saved: Any, dy: Array) -> tuple[Array, Array, Any]:
    x, kernel, affine = saved
    rows, columns, _, _ = kernel.shape
    border = [(0, 0), (rows - 1, rows - 1), (columns - 1, columns - 1), (0, 0)]
    dz = _correlate(jnp.pad(dy, border), kernel[::-1, ::-1].swapaxes(2, 3))
    if affine is None:
        return dz, kernel_gradient(x, dy, rows, columns), None
    multiplier, offset = affine
    if len(multiplier) != 1:
        dkernel = kernel_gradient(_apply(x, affine), dy, rows, columns)
        daffine = (dz * x).sum((1, 2), keepdims=True), dz.sum((1, 2), keepdims=True)
        return dz * multiplier, dkernel, daffine
    # The gradients of the map follow from those of the kernel that would absorb it, and of a bias.
    product, total = kernel_gradient(x, dy, rows, columns), dy.sum((0, 1, 2))
    dkernel = product * multiplier[0, 0, 0, :, None] + offset[0, 0, 0, :, None] * total
    dmultiplier = (kernel * product).sum((0, 1, 3))
    doffset = (kernel.sum((0, 1)) * total).sum(1)
    return dz * multiplier, dkernel, (dmultiplier[None, None, None], doffset[None, None, None])


_convolve.defvjp(_convolve_forward, _convolve_backward)


def max_pool(x: Array) -> Array:
    """The maximum over windows of 2x2, with stride 2.

    If values tie, the first in the window gets the gradient, as in `flax.linen.max_pool`.

    Args:
      x: Activations, `[batch, height, width, channels]`.
    """
    _, height, width, _ = x.shape
    return _max_pool(x[:, : height // 2 * 2, : width // 2 * 2])


@jax.custom_vjp
def _max_pool(x: Array) -> Array:
    return _max_pool_forward(x)[0]


def _max_pool_forward(x: Array) -> tuple[Array, Array]:
    y, place = x[:, ::2, ::2], jnp.zeros((), jnp.uint8)
    for n in (1, 2, 3):
        part = x[:, n // 2 :: 2, n % 2 :: 2]
        place = jnp.where(part > y, jnp.uint8(n), place)
        y = jnp.maximum(y, part)
    return y, place


def _max_pool_backward(place: Array, dy: Array) -> tuple[Array]:
    batch, height, width, channels = dy.shape
    inside = (2, 4)  # the row and the column in a window, as axes of their own
    window = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    here = jnp.expand_dims(place, inside) == window
    dx = jnp.where(here, jnp.expand_dims(dy, inside), 0)
    return (dx.reshape(batch, 2 * height, 2 * width, channels),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
