"""Convolutions on a CPU: the kernels of `csrc`, called through XLA's foreign function interface.

Activations are blocks of 16 examples, `[blocks, height, width, channels, 16]`, of which the last
one is filled up with zeros: a register holds one entry of several examples, so that no product
needs a shuffle and every channel count is as good as another. One call computes a convolution with
what surrounds it: the affine map and the ReLU before it, the ReLU after it, and the sums of which
the next norm takes its statistics. Another call computes all its gradients.

Results are those of the usual operations, except for rounding, and have the same digits on any
number of threads and on every processor with AVX2 or AVX-512.
"""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jax_mnist.nn import library
from jax_mnist.nn.affine import Affine, Moments, moments_of_sums

_BLOCK = 16  # examples, as in csrc/kernels.h
_TARGETS = ("ConvolveForward", "ConvolveBackward", "PoolForward", "PoolBackward", "Interpolate")


@functools.cache
def register() -> None:
    """Makes the kernels known to XLA, once they are compiled.

    Raises:
      library.UnavailableError: There are none on this machine.
      ValueError: As from `library.instruction_set`.
    """
    kernels = library.load()
    for name in _TARGETS:
        handler = jax.ffi.pycapsule(getattr(kernels, name))
        jax.ffi.register_ffi_target(f"jax_mnist_{name}", handler, platform="cpu")


@flax.struct.dataclass
class Blocks:
    """Activations of some examples.

    Attributes:
      values: float32 `[blocks, height, width, channels, 16]`.
      examples: Their number.
    """

    values: Array
    examples: int = flax.struct.field(pytree_node=False)


def from_images(images: Array) -> Blocks:
    """Orders images, `[examples, height, width, channels]`, in blocks."""
    examples = len(images)
    blocks = -(-examples // _BLOCK)
    padded = jnp.pad(images, [(0, blocks * _BLOCK - examples), (0, 0), (0, 0), (0, 0)])
    values = padded.reshape(blocks, _BLOCK, *images.shape[1:]).transpose(0, 2, 3, 4, 1)
    return Blocks(values, examples)


def to_images(x: Blocks) -> Array:
    """The reverse of `from_images`."""
    blocks, *shape, lanes = x.values.shape
    return x.values.transpose(0, 4, 1, 2, 3).reshape(blocks * lanes, *shape)[: x.examples]


def convolve(x: Blocks, kernel: Array, affine: Affine | None, relu: bool) -> tuple[Blocks, Moments]:
    """Convolves `affine(x)` with stride 1 and without padding, and applies a ReLU if asked to.

    Args:
      x: The activations.
      kernel: The kernel, float32 `[rows, columns, channels, features]`.
      affine: What is still to be applied to `x`, or None.
      relu: Whether to replace negative results by 0.

    Returns:
      The result, and its moments.

    Raises:
      ValueError: The kernel is larger than the activations, or has other channels.
    """
    _, height, width, channels, _ = x.values.shape
    rows, columns, inputs, _ = kernel.shape
    if rows > height or columns > width or inputs != channels:
        raise ValueError(
            f"a kernel {kernel.shape} does not fit activations of {height}x{width}x{channels}"
        )
    settings = _Settings(x.examples, affine is not None and affine.relu, relu)
    y, sums, squares = _convolve(x.values, kernel, *_map_of(x, affine), settings)
    return Blocks(y, x.examples), moments_of_sums(sums, squares, y.shape[1] * y.shape[2])


def max_pool(x: Blocks, affine: Affine | None) -> Blocks:
    """The maximum of `affine(x)` over windows of 2x2, with stride 2.

    If values tie, the first in the window gets the gradient, as in `flax.linen.max_pool`.
    """
    settings = _Settings(x.examples, affine is not None and affine.relu)
    return Blocks(_max_pool(x.values, *_map_of(x, affine), settings), x.examples)


def interpolate(image: Array, places: Array) -> Array:
    """`jax.scipy.ndimage.map_coordinates(image, places, order=1)`, under any `jax.vmap`.

    Args:
      image: float32 `[height, width]`.
      places: Where to read the image, float32 `[2, height, width]`: rows and columns, in pixels.

    Returns:
      float32 `[height, width]`; what lies outside of the image is 0. It has no gradient.
    """
    places = places.astype(jnp.float32)
    y: Array = _call("Interpolate", (image.shape,), image, places, vmap="broadcast_all")[0]
    return y


class _Settings(NamedTuple):
    """What a call is told beside its arrays."""

    examples: int
    relu_in: bool
    relu_out: bool = False


def _map_of(x: Blocks, affine: Affine | None) -> tuple[Array, Array]:
    if affine is None:
        none = jnp.zeros((0, x.values.shape[3]), jnp.float32)
        return none, none
    return affine.multiplier, affine.offset


def _call(
    name: str, shapes: Any, *arguments: Array, vmap: str = "sequential", **settings: Any
) -> Any:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(f"jax_mnist_{name}", results, vmap_method=vmap)
    return call(*arguments, **settings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _convolve(
    x: Array, kernel: Array, multiplier: Array, offset: Array, settings: _Settings
) -> list[Array]:
    blocks, height, width, _, _ = x.shape
    rows, columns, _, features = kernel.shape
    y = (blocks, height - rows + 1, width - columns + 1, features, _BLOCK)
    moments = (settings.examples, features)
    inputs = (x, kernel, multiplier, offset)
    result: list[Array] = _call(
        "ConvolveForward", (y, moments, moments), *inputs, **settings._asdict()
    )
    return result


def _convolve_forward(
    x: Any, kernel: Any, multiplier: Any, offset: Any, settings: _Settings
) -> tuple[list[Array], Any]:
    # Images need no gradient, unless somebody asks for it.
    input_gradient = x.perturbed or multiplier.perturbed or offset.perturbed
    inputs = tuple(a.value for a in (x, kernel, multiplier, offset))
    result = _convolve(*inputs, settings)
    return result, (inputs, result[0], () if input_gradient else None)


def _convolve_backward(settings: _Settings, saved: Any, gradients: Any) -> tuple[Array, ...]:
    inputs, y, input_gradient = saved
    x, *others = (a.shape for a in inputs)
    shapes = (x if input_gradient is not None else (0, *x[1:]), *others)
    gradients = [  # which JAX may know to be zero
        jnp.zeros(g.shape, g.dtype) if isinstance(g, SymbolicZero) else g for g in gradients
    ]
    dx, *rest = _call("ConvolveBackward", shapes, *inputs, y, *gradients, **settings._asdict())
    return dx if input_gradient is not None else jnp.zeros(x, dx.dtype), *rest


_convolve.defvjp(_convolve_forward, _convolve_backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _max_pool(x: Array, multiplier: Array, offset: Array, settings: _Settings) -> Array:
    blocks, height, width, channels, _ = x.shape
    shape = (blocks, height // 2, width // 2, channels, _BLOCK)
    y: Array = _call("PoolForward", (shape,), x, multiplier, offset, **settings._asdict())[0]
    return y


def _max_pool_backward(settings: _Settings, inputs: Any, dy: Array) -> Any:
    shapes = [a.shape for a in inputs]
    return tuple(_call("PoolBackward", shapes, *inputs, dy, **settings._asdict()))


_max_pool.defvjp(lambda *args: (_max_pool(*args), args[:3]), _max_pool_backward)
