"""Convolution with the batch as the first axis, which XLA compiles to fast GPU code.

With few channels, and above all with several replicas, XLA's own convolutions are unsuitable for a
GPU: `jax.vmap` over kernels makes one grouped convolution of them, and the gradient of its kernels
another one with windows as large as the image. In arrays `[batch, height, width, channels]`, three
other forms map to plain batched operations:

- A convolution, and its gradient with respect to the input, multiply each window by the kernel and
  sum. XLA compiles this to one loop that reads the window where it lies: nothing is copied.
- The gradient with respect to the kernel is one matrix product over all positions. Its left factor
  holds the windows, in blocks of neighbouring columns, so that windows that overlap share entries:
  1.5 times three rows for blocks of `_MAX_BLOCK` columns, instead of 3 times three rows.
- The gradient of pooling finds the maximum by comparing slices, where XLA's own scatters
  (`pooling.py`).

`operations.BATCH_FIRST` makes these available to the network. Results are those of the usual
operations, except for rounding.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_mnist.nn import deferred
from jax_mnist.nn.batch_last import largest_divisor
from jax_mnist.nn.deferred import Affine, compute

_MAX_BLOCK = 4


def convolve(x: Array | Affine, kernel: Array) -> Array:
    """Convolves with stride 1 and without padding, as `lax.conv_general_dilated` does.

    Args:
      x: Activations, `[batch, height, width, channels]`, or an affine map of them, whose parts have
        the shape `[batch, 1, 1, channels]`, or `[1, 1, 1, channels]` if all examples share them.
      kernel: The kernel, `[rows, columns, channels, features]`.

    Returns:
      Activations, `[batch, height - rows + 1, width - columns + 1, features]`.
    """
    if isinstance(x, Affine):
        return _convolve(x.x, kernel, x[1:])
    return _convolve(jnp.asarray(x), kernel, None)


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
        return _pointwise(x, kernel)
    return (_windows(x, rows, columns)[..., None] * kernel[:, None, None]).sum((3, 4, 5))


@jax.custom_batching.custom_vmap
def _pointwise(x: Array, kernel: Array) -> Array:
    """Convolves with kernels of one row and column, by an unrolled sum over the channels.

    For a reduction XLA would put the channels last first, in 15 more kernels for the network, and
    copy activations for it. With several replicas, it is the sum that XLA does not compile well.
    """
    return functools.reduce(
        jnp.add, (x[..., c, None] * kernel[..., c, :] for c in range(x.shape[-1]))
    )


@_pointwise.def_vmap
def _pointwise_of_replicas(
    replicas: int, batched: list[bool], x: Array, kernel: Array
) -> tuple[Array, bool]:
    if replicas == 1:
        one = (a[0] if of_each else a for a, of_each in zip((x, kernel), batched, strict=True))
        return _pointwise(*one)[None], True
    axes = [0 if of_each else None for of_each in batched]
    return jax.vmap(lambda x, kernel: (x[..., None] * kernel).sum(-2), axes)(x, kernel), True


def _windows(x: Array, rows: int, columns: int, step: int = 1) -> Array:
    """The windows of images, one every `step` columns: `[batch, y, x, rows, columns, channels]`."""
    with jax.ensure_compile_time_eval():  # the positions are constants
        y = jnp.arange(x.shape[1] - rows + 1)[:, None] + jnp.arange(rows)
        x_ = jnp.arange(0, x.shape[2] - columns + 1, step)[:, None] + jnp.arange(columns)
    return x[:, y[:, None, :, None], x_[None, :, None, :]]


def _kernel_gradient(x: Array, dy: Array, rows: int, columns: int) -> Array:
    """Sums the products of windows of `x` and `dy` over positions and examples."""
    batch, height, width, features = dy.shape
    channels = x.shape[3]
    block = largest_divisor(width, _MAX_BLOCK) if columns > 1 else 1
    wide = block + columns - 1  # columns of all windows of a block together
    positions = batch * height * width // block
    windows = x if rows == wide == 1 else _windows(x, rows, wide, block)
    product = windows.reshape(positions, -1).T @ dy.reshape(positions, block * features)
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
        return dz, _kernel_gradient(x, dy, rows, columns), None
    multiplier, offset = affine
    if len(multiplier) > 1:
        dkernel = _kernel_gradient(_apply(x, affine), dy, rows, columns)
        daffine = (dz * x).sum((1, 2), keepdims=True), dz.sum((1, 2), keepdims=True)
        return dz * multiplier, dkernel, daffine
    # The gradients of the map follow from those of the kernel that would absorb it, and of a bias.
    product, total = _kernel_gradient(x, dy, rows, columns), dy.sum((0, 1, 2))
    dkernel = product * multiplier[0, 0, 0, :, None] + offset[0, 0, 0, :, None] * total
    dmultiplier = (kernel * product).sum((0, 1, 3))
    doffset = (kernel.sum((0, 1)) * total).sum(1)
    return dz * multiplier, dkernel, (dmultiplier[None, None, None], doffset[None, None, None])


_convolve.defvjp(_convolve_forward, _convolve_backward)


def normalize(norm: Any, x: Array | Affine) -> Array | Affine:
    """Applies a norm, or puts off its affine map, see `deferred.normalize`.

    The norm sees height and width as one axis, which makes XLA keep the order of the axes: left to
    choose, it copies activations from one order to another.
    """
    x = compute(x)
    y = deferred.normalize(norm, x.reshape(len(x), -1, x.shape[-1]))
    if isinstance(y, Affine):
        return Affine(x, *(part[:, None] for part in y[1:]))
    return compute(y).reshape(x.shape)
