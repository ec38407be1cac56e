"""Random changes of an image that are not affine: elastic deformation and cutout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

SMOOTHNESS = 4.0  # standard deviation of the smoothing in pixels, as in the reference
_LEFT_OUT = 1e-3  # the largest share of the variance that the basis may lack


def displacement(key: Array, size: tuple[int, ...], strength: ArrayLike) -> Array:
    """Draws a smooth random displacement of every pixel, along each axis.

    White noise, smoothed by a Gaussian of standard deviation `SMOOTHNESS`, has the covariance
    `exp(-distance² / (4 SMOOTHNESS²))`. A field with this covariance is a sum of a few smooth waves
    along each axis, with independent normal coefficients: 98 random numbers for both axes of 28x28
    pixels. Smoothing would take 1,568, and noise beyond the border.

    Args:
      key: A key for this image alone.
      size: Height and width of the image.
      strength: Standard deviation of the displacements, in pixels. The reference's alpha of 34 is
        1.4 here.

    Returns:
      float32 `[2, height, width]`, in pixels, down and to the right.

    References:
      Simard, Steinkraus and Platt, "Best practices for convolutional neural networks applied to
      visual document analysis", 2003.
    """
    rows, columns = _waves(size[0]), _waves(size[1])
    noise = jax.random.normal(key, (2, rows.shape[1], columns.shape[1]))
    return jnp.asarray(strength) * jnp.einsum("yi,aij,xj->ayx", rows, noise, columns)


@functools.cache
def _waves(size: int) -> np.ndarray:
    """`[size, waves]`, whose product with its transpose is the covariance along one axis."""
    places = np.arange(size)
    covariance = np.exp(-((places[:, None] - places) ** 2) / (4 * SMOOTHNESS**2))
    variances, waves = np.linalg.eigh(covariance)  # ascending
    first = np.searchsorted(np.cumsum(variances), _LEFT_OUT * size)
    waves = (waves * np.sign(waves[0]) * np.sqrt(np.maximum(variances, 0)))[:, first:]
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)  # the same variance everywhere
    return waves.astype(np.float32)


def cutout(key: Array, image: Array, side: ArrayLike) -> Array:
    """Sets a square to zero, which is the mean of normalised images.

    Args:
      key: A key for this image alone.
      image: An array `[height, width, channels]`.
      side: Of the square, in pixels. Its centre is uniform over the pixels of the image, so that a
        part of it may lie outside.

    Returns:
      An array of the same shape.

    References:
      DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout",
      arXiv:1708.04552.
    """
    size, half = image.shape[:2], jnp.asarray(side) / 2
    centre = jax.random.randint(key, (2, 1, 1), 0, jnp.array(size)[:, None, None])
    offsets = jnp.indices(size) - centre
    inside = jnp.all((-half <= offsets) & (offsets < half), axis=0)
    return jnp.where(inside[:, :, None], 0, image)
