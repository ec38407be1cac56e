"""The convolutions of the network on JAX's default backend."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.ndimage import map_coordinates
from jax.typing import DTypeLike

from jax_mnist.nn import cpu, gpu, library
from jax_mnist.nn.affine import Affine, Moments, moments_of_images


class Kernels(NamedTuple):
    """What a network computes with. All kinds give the same results, except for rounding.

    Activations are only passed from one function to the next: each kind has its own form of them.

    Attributes:
      convolve: Convolves `affine(x)` with a kernel `[rows, columns, channels, features]`, with
        stride 1 and without padding, and then replaces negative results by 0 if `relu`:
        `convolve(x, kernel, affine, relu)`. Returns activations and their moments.
      max_pool: The maximum of `affine(x)` over windows of 2x2, with stride 2:
        `max_pool(x, affine)`.
      from_images: Turns images, `[examples, height, width, channels]`, into activations.
      to_images: The reverse.
      interpolate: An image, `[height, width]`, at places, `[2, height, width]`, in pixels; 0 beyond
        its border. This is `map_coordinates(image, places, order=1)` of SciPy; it need not have a
        gradient.
    """

    convolve: Callable[[Any, Array, Affine | None, bool], tuple[Any, Moments]]
    max_pool: Callable[[Any, Affine | None], Any]
    from_images: Callable[[Array], Any] = lambda images: images
    to_images: Callable[[Any], Array] = lambda images: images
    interpolate: Callable[[Array, Array], Array] = functools.partial(map_coordinates, order=1)


def _convolve(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# XLA's own gradient of a kernel is a convolution with a window as large as the image. On a CPU,
# inside a loop over steps, it makes a step take 414 ms on one core instead of 51.
_convolve_portably = jax.custom_vjp(_convolve)


def _backward(inputs: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    rows, columns, _, _ = kernel.shape
    border = [(0, 0), (rows - 1, rows - 1), (columns - 1, columns - 1), (0, 0)]
    dx = _convolve(jnp.pad(dy, border), kernel[::-1, ::-1].swapaxes(2, 3))
    return dx, gpu.kernel_gradient(x, dy, rows, columns)


_convolve_portably.defvjp(lambda x, kernel: (_convolve(x, kernel), (x, kernel)), _backward)


def _on_images(
    convolve: Callable[[Array, Array, Affine | None], Array], max_pool: Callable[[Array], Array]
) -> Kernels:
    """Kernels whose activations are images, given their convolution and pooling."""

    def convolve_and_sum(
        x: Array, kernel: Array, affine: Affine | None, relu: bool
    ) -> tuple[Array, Moments]:
        y = convolve(x, kernel, affine)
        y = nn.relu(y) if relu else y
        return y, moments_of_images(y)

    return Kernels(convolve_and_sum, lambda x, affine: max_pool(_apply(x, affine)))


def _apply(x: Array, affine: Affine | None) -> Array:
    return x if affine is None else affine(x)


# XLA's own.
PLAIN = _on_images(
    lambda x, kernel, affine: _convolve(_apply(x, affine), kernel),
    functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2)),
)
# For CPUs that have no kernels of their own.
PORTABLE = _on_images(
    lambda x, kernel, affine: _convolve_portably(_apply(x, affine), kernel), gpu.max_pool
)
GPU = _on_images(gpu.convolve, gpu.max_pool)
CPU = Kernels(cpu.convolve, cpu.max_pool, cpu.from_images, cpu.to_images, cpu.interpolate)


def for_backend(dtype: DTypeLike = jnp.float32) -> Kernels:
    """The fastest kernels on JAX's default backend for images of this type.

    Raises:
      ValueError: As from `library.instruction_set`.

    Warns:
      UserWarning: There are none for this CPU, or they cannot be compiled; says what to do.
    """
    match jax.default_backend():
        case "gpu":
            return GPU
        case "cpu" if dtype == jnp.float32:
            return _for_cpu()
    return PLAIN


@functools.cache  # warns once
def _for_cpu() -> Kernels:
    try:
        cpu.register()
    except library.UnavailableError as error:
        warnings.warn(str(error), stacklevel=2)
        return PORTABLE
    return CPU
