"""Augmentation on the device: pure functions of one key and one image, mapped over a batch.

Images are float arrays `[height, width, 1]` with black 0 and white 1, until `normalize`. The
semantics are those of torchvision's `ColorJitter`, `RandomRotation` and `RandomAffine` on
greyscale images, in floating point: no rounding to 256 levels on the way.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from jax_mnist.nn.xla import separate


class Normalization(NamedTuple):
    """Mean and standard deviation of the pixels of a training set, in [0, 1]."""

    mean: float
    std: float


MNIST = Normalization(0.1307, 0.3081)


@flax.struct.dataclass
class Strengths:
    """How strong each random change is; 0 turns it off. Traced values, not constants.

    Attributes:
      brightness: the factor is uniform in `[max(0, 1 - brightness), 1 + brightness]`.
      contrast: likewise.
      rotation: degrees; the angle is uniform in `[-rotation, rotation]`.
      shift: pixels; each of the two offsets is uniform in `[-shift, shift]`.
      scale: the factor is uniform in `[1 - scale, 1 + scale]`.
      shear: degrees; the angle along the x axis is uniform in `[-shear, shear]`.
    """

    brightness: ArrayLike = 0.0
    contrast: ArrayLike = 0.0
    rotation: ArrayLike = 0.0
    shift: ArrayLike = 0.0
    scale: ArrayLike = 0.0
    shear: ArrayLike = 0.0


def normalize(image: Array, mean: ArrayLike = MNIST.mean, std: ArrayLike = MNIST.std) -> Array:
    """`(image - mean) / std`, for an array of any shape."""
    return (image - mean) / std


def adjust_brightness(image: Array, factor: ArrayLike) -> Array:
    """Multiplies by `factor`, clipped to [0, 1] (torchvision's `adjust_brightness`)."""
    return jnp.clip(image * factor, 0, 1)


def adjust_contrast(image: Array, factor: ArrayLike) -> Array:
    """Scales the distance to the image's mean, clipped to [0, 1].

    torchvision's `adjust_contrast` of a float image: `factor` 0 gives a uniform grey, 1 the image.
    """
    return jnp.clip(factor * image + (1 - factor) * image.mean(), 0, 1)


def color_jitter(key: Array, image: Array, brightness: ArrayLike, contrast: ArrayLike) -> Array:
    """Random brightness and contrast, in random order (torchvision's `ColorJitter`).

    Args:
      key: a key for this image alone.
      image: `[height, width, 1]`, in [0, 1].
      brightness: see `Strengths`.
      contrast: see `Strengths`.

    Returns:
      An array of the same shape, in [0, 1].
    """
    u = jax.random.uniform(key, (3,))
    least = jnp.maximum(0, 1 - jnp.array([brightness, contrast]))
    most = 1 + jnp.array([brightness, contrast])
    b, c = least + u[:2] * (most - least)
    return jnp.where(
        u[2] < 0.5,
        adjust_contrast(adjust_brightness(image, b), c),
        adjust_brightness(adjust_contrast(image, c), b),
    )


def affine(
    image: Array,
    rotation: ArrayLike = 0.0,
    shift: Array | tuple[ArrayLike, ArrayLike] = (0.0, 0.0),
    scale: ArrayLike = 1.0,
    shear: ArrayLike = 0.0,
) -> Array:
    """Shears, rotates, scales about the centre, then shifts, with one bilinear interpolation.

    The conventions are those of torchvision's `affine`; what comes from outside is zero.

    Args:
      image: `[height, width, channels]`.
      rotation: degrees, clockwise as the image is seen (y points down).
      shift: `(x, y)` in pixels, right and down.
      scale: factor; above 1 the content grows.
      shear: degrees along the x axis.

    Returns:
      A float array of the same shape.
    """
    matrix, offset = _inverse(image.shape[:2], rotation, shift, scale, shear)
    y, x = jnp.mgrid[: image.shape[0], : image.shape[1]]
    places = [matrix[i, 0] * y + matrix[i, 1] * x + offset[i] for i in range(2)]

    def warp(channel: Array) -> Array:
        return map_coordinates(channel, places, order=1, mode="constant")

    return jax.vmap(warp, in_axes=-1, out_axes=-1)(image)


@functools.partial(separate, static_argnums=0)  # rounded alike in every program
def _inverse(
    size: tuple[int, int],
    rotation: ArrayLike,
    shift: Array | tuple[ArrayLike, ArrayLike],
    scale: ArrayLike,
    shear: ArrayLike,
) -> tuple[Array, Array]:
    """Matrix and offset that lead from a pixel `(y, x)` of `affine`'s output to its input."""
    angle, slant = jnp.deg2rad(rotation), jnp.tan(jnp.deg2rad(shear))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Undone in this order: the shift, the scale and rotation, the shear.
    matrix = jnp.array([[cos, -sin], [sin + slant * cos, cos - slant * sin]]) / scale
    centre = jnp.array([(side - 1) / 2 for side in size])
    moved = centre + jnp.array([shift[1], shift[0]])
    return matrix, centre - (matrix * moved).sum(-1)  # a product on a GPU would be rounded


def random_affine(
    key: Array,
    image: Array,
    rotation: ArrayLike = 0.0,
    shift: ArrayLike = 0.0,
    scale: ArrayLike = 0.0,
    shear: ArrayLike = 0.0,
) -> Array:
    """`affine` with each value drawn from its range; see `Strengths` for the ranges.

    With `rotation` alone this is torchvision's `RandomRotation(rotation, BILINEAR)`.

    Args:
      key: a key for this image alone.
      image: `[height, width, channels]`.
      rotation: degrees.
      shift: pixels (not rounded to whole ones).
      scale: fraction.
      shear: degrees.

    Returns:
      A float array of the same shape.
    """
    u = jax.random.uniform(key, (5,), minval=-1, maxval=1)
    return affine(image, u[0] * rotation, u[1:3] * shift, 1 + u[3] * scale, u[4] * shear)


def augment(
    key: Array, image: Array, strengths: Strengths, normalization: Normalization = MNIST
) -> Array:
    """Jitter, warp and normalise one image.

    Args:
      key: a key for this image alone.
      image: uint8 `[height, width, 1]`.
      strengths: how strong each change is.
      normalization: constants of `normalize`.

    Returns:
      float32 `[height, width, 1]`, normalised.
    """
    jitter_key, affine_key = jax.random.split(key)
    s = strengths
    x = image.astype(jnp.float32) / 255
    x = color_jitter(jitter_key, x, s.brightness, s.contrast)
    x = random_affine(affine_key, x, s.rotation, s.shift, s.scale, s.shear)
    return normalize(x, *normalization)


def normalization_of(images: np.ndarray) -> Normalization:
    """Of uint8 `[n, ...]` images, in float64, then to four digits, as such constants are given."""
    # NumPy counts in arrays of int64: of a few images at a time, or they take gigabytes.
    parts = (images[start : start + 1000] for start in range(0, len(images), 1000))
    levels = sum(np.bincount(part.ravel(), minlength=256) for part in parts) / images.size
    values = np.arange(256) / 255
    mean = float(levels @ values)
    return Normalization(round(mean, 4), round(float(levels @ (values - mean) ** 2) ** 0.5, 4))


@functools.partial(separate, static_argnums=3)
def augment_batch(
    keys: Array, images: Array, strengths: Strengths, normalization: Normalization = MNIST
) -> Array:
    """`augment` over uint8 `[batch, height, width, 1]`, each image with its own key."""
    return jax.vmap(lambda key, image: augment(key, image, strengths, normalization))(keys, images)
