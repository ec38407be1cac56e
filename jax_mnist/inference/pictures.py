"""Turning a picture of a digit, from a camera, scanner or drawing program, into an MNIST image."""

import os

import numpy as np
from PIL import Image
from scipy import ndimage

from jax_mnist.data.picture_files import PictureError as PictureError  # re-exported
from jax_mnist.data.picture_files import read_grey

SIDE, BOX, CENTRE = 28, 20, 14  # of MNIST: image size, size of the digit, its centre; in pixels
_MIN_CONTRAST = 0.1  # between ink and paper, as a fraction of that between black and white
_MIN_PART = 0.05  # smaller connected parts are dirt; a fraction of the largest part's pixels


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a PNG or JPEG picture of one digit, of any size, in colour or not.

    Returns:
      uint8 `[28, 28]`, the digit placed as in MNIST; see `centre`.

    Raises:
      PictureError: The file cannot be read, is not a picture, or shows no digit.
    """
    grey = read_grey(path)
    try:
        return centre(grey)
    except PictureError as error:
        raise PictureError(f"{os.fspath(path)!r}: {error}") from None


def centre(grey: np.ndarray) -> np.ndarray:
    """Finds the digit in a picture and places it as MNIST's digits are placed.

    As described at http://yann.lecun.com/exdb/mnist/, the digit is scaled, keeping its proportions
    and with anti-aliasing, to fit a box of 20x20 pixels, and its centre of mass is put at the
    centre of 28x28 pixels, white on black. Before that, the paper is subtracted: a plane fitted to
    the border, as light may fall unevenly. Ink is what then differs most, darker or lighter. It is
    separated from the paper by Otsu's threshold, and small specks are dropped.

    Args:
      grey: Grey levels, float `[height, width]` in [0, 1], dark on light or light on dark.

    Returns:
      uint8 `[28, 28]`, with the paper 0.

    Raises:
      PictureError: No digit can be seen.
    """
    ink = _ink(grey)
    return _place(_fit_to_box(_cut_out(ink, _otsu_threshold(ink))))


def _ink(grey: np.ndarray) -> np.ndarray:
    """Returns how much each pixel differs from the paper towards the ink, in [0, 1]."""
    if min(grey.shape) < 3:
        raise PictureError("too small to show a digit")
    difference = grey - _paper(grey)
    low, high = np.percentile(difference, [0.5, 99.5])
    ink = np.clip(difference if high > -low else -difference, 0, 1)
    if ink.max() < _MIN_CONTRAST:
        raise PictureError("no digit to be seen")
    return ink


def _paper(grey: np.ndarray) -> np.ndarray:
    """Returns the grey level of the paper at each pixel: a plane fitted to the border."""
    height, width = grey.shape
    y, x = np.mgrid[:height, :width]
    terms = np.stack([np.ones_like(grey), y / height, x / width], -1)
    frame = max(1, min(height, width) // 20)
    border = np.ones_like(grey, bool)
    border[frame:-frame, frame:-frame] = False
    inliers = border
    # A stroke may run into the border: it is an outlier there, and is left out of the next fit.
    for _ in range(3):
        plane = terms @ np.linalg.lstsq(terms[inliers], grey[inliers], rcond=None)[0]
        distance = np.abs(grey - plane)
        inliers = border & (distance <= 1.5 * np.median(distance[border]) + 1e-6)
    return plane


def _otsu_threshold(values: np.ndarray) -> float:
    """Returns the threshold that minimises the variance within the two classes (Otsu 1979)."""
    counts, edges = np.histogram(values, 256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * middles).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.nanargmax(between[:-1])])


def _cut_out(ink: np.ndarray, threshold: float) -> np.ndarray:
    """Crops to the digit without specks; 0 to 1 across the edges of the ink, 1 within it."""
    parts, number = ndimage.label(ink > threshold, structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=number + 1)[1:]
    digit = np.isin(parts, 1 + np.flatnonzero(sizes >= _MIN_PART * sizes.max(initial=1)))
    if not digit.any():
        raise PictureError("no digit to be seen")
    (window,) = ndimage.find_objects(digit.astype(int))
    edges = ndimage.binary_dilation(digit, np.ones((3, 3)))  # the soft edge of a stroke is kept
    return np.asarray((np.clip(ink / threshold - 0.5, 0, 1) * edges)[window])


def _fit_to_box(digit: np.ndarray) -> np.ndarray:
    """Scales a digit so that its longer side is `BOX` pixels and its maximum 1."""
    height, width = digit.shape
    scale = BOX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(digit.astype(np.float32))
    small = np.asarray(picture.resize(size, Image.Resampling.BOX))
    return np.asarray(small / small.max())


def _place(digit: np.ndarray) -> np.ndarray:
    """Puts the digit's centre of mass at the centre of an image, as far as the digit fits."""
    top, left = (
        min(max(0, round(CENTRE - mass)), SIDE - length)
        for mass, length in zip(ndimage.center_of_mass(digit), digit.shape, strict=True)
    )
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + digit.shape[0], left : left + digit.shape[1]] = np.rint(255 * digit)
    return image
