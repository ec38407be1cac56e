"""Augmentation on the device: pure functions of one key and one image, mapped over a batch.

Images are float arrays `[height, width, 1]` with black 0 and white 1, until `normalize`. The
semantics are those of torchvision's `ColorJitter`, `RandomRotation` and `RandomAffine` on
greyscale images, but in floating point, without rounding to 256 levels in between.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jax_mnist.nn import kernels
from jax_mnist.training.distortions import cutout, displacement


class Normalization(NamedTuple):
    """Mean and standard deviation of the pixels of a training set, in [0, 1]."""

    mean: float
    std: float


MNIST = Normalization(0.1307, 0.3081)


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
      key: A key for this image alone.
      image: An array `[height, width, 1]`, in [0, 1].
      brightness: The factor is uniform in `[max(0, 1 - brightness), 1 + brightness]`.
      contrast: Likewise.

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
    displacement: Array | None = None,
) -> Array:
    """Shears, rotates, scales about the centre, then shifts, with one bilinear interpolation.

    The conventions are those of torchvision's `affine`; pixels from outside the image are zero.

    Args:
      image: An array `[height, width, channels]`.
      rotation: In degrees, clockwise as the image is seen (y points down).
      shift: `(x, y)` in pixels, to the right and down.
      scale: A factor; above 1 the content grows.
      shear: In degrees, along the x axis.
      displacement: Added to the place in `image` that each pixel is read from, in pixels, `(down,
        right)`: `[2, height, width]`.

    Returns:
      A float array of the same shape.
    """
    matrix, offset = _inverse(image.shape[:2], rotation, shift, scale, shear)
    y, x = jnp.mgrid[: image.shape[0], : image.shape[1]]
    places = jnp.stack([matrix[i, 0] * y + matrix[i, 1] * x + offset[i] for i in range(2)])
    if displacement is not None:
        places += displacement
    interpolate = kernels.for_backend(image.dtype).interpolate
    return jax.vmap(interpolate, in_axes=(-1, None), out_axes=-1)(image, places)


def _inverse(
    size: tuple[int, ...],
    rotation: ArrayLike,
    shift: Array | tuple[ArrayLike, ArrayLike],
    scale: ArrayLike,
    shear: ArrayLike,
) -> tuple[Array, Array]:
    """The matrix and offset that map a pixel `(y, x)` of `affine`'s output to its input."""
    cos, sin = _cos_sin(rotation)
    cos_of_shear, sin_of_shear = _cos_sin(shear)
    slant = sin_of_shear / cos_of_shear
    # Undoes the shift, then the scale and rotation, then the shear.
    matrix = jnp.array([[cos, -sin], [sin + slant * cos, cos - slant * sin]]) / scale
    centre = jnp.array([(side - 1) / 2 for side in size])
    place = centre + jnp.array([shift[1], shift[0]])
    return matrix, centre - (matrix * place).sum(-1)  # a GPU's matrix product is less precise


def _cos_sin(degrees: ArrayLike) -> tuple[Array, Array]:
    """Cosine and sine, with the same digits on every processor, unlike those of a C library.

    The polynomials are those of Cephes for single precision; their error is about one unit in the
    last place.
    """
    angle_in_quarters = jnp.asarray(degrees) / 90
    quarter_turns = jnp.round(angle_in_quarters)
    angle = (angle_in_quarters - quarter_turns) * (np.pi / 2)
    square = angle * angle
    sin = angle + angle * square * (
        -1.6666654611e-1 + square * (8.3321608736e-3 - square * 1.9515295891e-4)
    )
    cos = (
        1
        - square / 2
        + square
        * square
        * (4.166664568298827e-2 + square * (-1.388731625493765e-3 + square * 2.443315711809948e-5))
    )
    quadrant = quarter_turns.astype(jnp.int32) % 4
    cos, sin = jnp.where(quadrant % 2 == 0, cos, -sin), jnp.where(quadrant % 2 == 0, sin, cos)
    half_turn = quadrant >= 2
    return jnp.where(half_turn, -cos, cos), jnp.where(half_turn, -sin, sin)


def random_affine(
    key: Array,
    image: Array,
    rotation: ArrayLike = 0.0,
    shift: ArrayLike = 0.0,
    scale: ArrayLike = 0.0,
    shear: ArrayLike = 0.0,
    displacement: Array | None = None,
) -> Array:
    """`affine` with each value drawn from its range.

    With `rotation` alone this is torchvision's `RandomRotation(rotation, BILINEAR)`.

    Args:
      key: A key for this image alone.
      image: An array `[height, width, channels]`.
      rotation: In degrees; the angle is uniform in `[-rotation, rotation]`.
      shift: In pixels; each of the two offsets is uniform in `[-shift, shift]`.
      scale: The factor is uniform in `[1 - scale, 1 + scale]`.
      shear: In degrees; the angle along the x axis is uniform in `[-shear, shear]`.
      displacement: See `affine`.

    Returns:
      A float array of the same shape.
    """
    u = jax.random.uniform(key, (5,), minval=-1, maxval=1)
    return affine(
        image,
        u[0] * rotation,
        u[1:3] * shift,
        scale=1 + u[3] * scale,
        shear=u[4] * shear,
        displacement=displacement,
    )


def augment(
    key: Array,
    image: Array,
    strengths: Mapping[str, ArrayLike],
    normalization: Normalization = MNIST,
    enabled: Sequence[str] = (),
) -> Array:
    """Jitters, warps and normalises one image.

    Args:
      key: A key for this image alone.
      image: A uint8 array `[height, width, 1]`.
      strengths: How strong each change is, by the names of the config's fields. Each may be traced,
        and 0 turns a change off.
      normalization: The constants of `normalize`.
      enabled: Of `elastic` and `cutout`, which to apply; static.

    Returns:
      float32 `[height, width, 1]`, normalised.
    """
    jitter_key, affine_key = jax.random.split(key)
    x = image.astype(jnp.float32) / 255
    x = color_jitter(jitter_key, x, strengths["brightness"], strengths["contrast"])
    waves = None
    if "elastic" in enabled:  # a split of a key makes the keys 0 and 1
        waves = displacement(jax.random.fold_in(key, 2), image.shape[:2], strengths["elastic"])
    warps = {name: strengths[name] for name in ("rotation", "shift", "scale", "shear")}
    x = random_affine(affine_key, x, **warps, displacement=waves)
    x = normalize(x, *normalization)
    if "cutout" in enabled:
        x = cutout(jax.random.fold_in(key, 3), x, strengths["cutout"])
    return x


def normalization_of(images: np.ndarray) -> Normalization:
    """The constants of uint8 `[n, ...]` images, computed in float64, rounded to four digits."""
    # np.bincount makes int64 copies, which would take gigabytes for all images at once.
    parts = (images[start : start + 1000] for start in range(0, len(images), 1000))
    levels = sum(np.bincount(part.ravel(), minlength=256) for part in parts) / images.size
    values = np.arange(256) / 255
    mean = float(levels @ values)
    return Normalization(round(mean, 4), round(float(levels @ (values - mean) ** 2) ** 0.5, 4))
