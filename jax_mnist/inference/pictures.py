"""Turning a picture of a digit, from a camera, scanner or drawing program, into an MNIST image."""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

SIDE, BOX, CENTRE = 28, 20, 14  # of MNIST: image size, size of the digit, its centre; in pixels
_MAX_SIDE = 1000  # larger pictures are reduced to this many pixels a side: more only takes time
_MIN_CONTRAST = 0.1  # between ink and paper, as a fraction of that between black and white
_DITHER_SIGMA = 0.01  # smooths black and white dots into grey; a fraction of the shorter side
_MIN_PART = 0.05  # smaller connected parts are dirt; a fraction of the largest part's pixels


class PictureError(ValueError):
    """A file that is not a picture of a digit; the message is one line."""


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a PNG or JPEG picture of one digit, of any size, in colour or not.

    Returns:
      uint8 `[28, 28]`, the digit placed as in MNIST; see `centre`.

    Raises:
      PictureError: The file cannot be read, is not a picture, or shows no digit.
    """
    try:
        return centre(_read_grey(path))
    except OSError as error:
        reason = error.strerror or "not a PNG or JPEG picture, or a damaged one"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = f"too large: {error}"
    except PictureError as error:
        reason = str(error)
    except (ValueError, SyntaxError, ArithmeticError) as error:  # from Pillow, for damaged files
        reason = f"a damaged picture ({error})"
    raise PictureError(f"{os.fspath(path)!r}: {reason}")


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


def _read_grey(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a picture file as grey levels, at most `_MAX_SIDE` pixels a side."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=["PNG", "JPEG"]) as picture:
            picture.draft("L", (_MAX_SIDE, _MAX_SIDE))
            picture.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.BOX)
            return _grey_levels(_upright(picture))


def _upright(picture: Image.Image) -> Image.Image:
    """Turns a picture as its EXIF data say; damaged EXIF data are ignored."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # Pillow's EXIF parser raises many kinds
        return picture


def _grey_levels(picture: Image.Image) -> np.ndarray:
    """Returns grey levels in [0, 1]; transparent pixels contrast with the opaque ones."""
    if picture.mode.startswith(("I", "F")):  # 16 or 32 bits
        levels = np.asarray(picture, np.float64)
        return levels / max(levels.max(), 65535 if picture.mode.startswith("I") else 1)
    if picture.mode == "1":  # it may be dithered
        levels = np.asarray(picture, np.float64)
        return np.asarray(ndimage.gaussian_filter(levels, _DITHER_SIGMA * min(levels.shape)))
    layers = np.asarray(picture.convert("LA"), np.float64) / 255
    grey, alpha = layers[..., 0], layers[..., 1]
    opaque = grey[alpha > 0.5]
    paper = 1.0 if opaque.size and opaque.mean() < 0.5 else 0.0
    return alpha * grey + (1 - alpha) * paper if alpha.min() < 1 else grey


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
    chosen = border
    # A stroke may run into the border: it is an outlier there, and is left out of the next fit.
    for _ in range(3):
        plane = terms @ np.linalg.lstsq(terms[chosen], grey[chosen], rcond=None)[0]
        distance = np.abs(grey - plane)
        chosen = border & (distance <= 1.5 * np.median(distance[border]) + 1e-6)
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
