"""A picture of a digit from anywhere, made into what MNIST's pictures are."""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

SIDE, BOX, CENTRE = 28, 20, 14
_MOST = 1000  # pixels along a side that are looked at; more only take time
_LEAST_CONTRAST = 0.1  # between ink and paper, of black and white
_DITHER = 0.01  # of the shorter side: how far black and white alone are smoothed into grey
_SPECK = 0.05  # of the largest connected part of the ink: what is smaller is dirt


class PictureError(ValueError):
    """A file that is no picture of a digit; the message is one line."""


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """A PNG or JPEG file, of any size, colour or not, as MNIST would hold it.

    Returns:
      uint8 `[28, 28]`, see `centre`.

    Raises:
      PictureError: the file cannot be read, is no picture, or shows no digit.
    """
    name = os.fspath(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG", "JPEG"]) as picture:
                picture.draft("L", (_MOST, _MOST))
                picture.thumbnail((_MOST, _MOST), Image.Resampling.BOX)
                grey = _grey(_upright(picture))
    except OSError as error:
        reason = error.strerror or "not a PNG or JPEG picture, or a damaged one"
        raise PictureError(f"{name!r}: {reason}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{name!r}: too large: {error}") from error
    except (ValueError, SyntaxError, ArithmeticError) as error:  # Pillow's, for damaged files
        raise PictureError(f"{name!r}: a damaged picture ({error})") from error
    try:
        return centre(grey)
    except PictureError as error:
        raise PictureError(f"{name!r}: {error}") from error


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as the camera says; what it says may be damaged, and the picture not."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # Pillow's parser of EXIF raises many
        return picture


def _grey(picture: Image.Image) -> np.ndarray:
    """Grey levels in [0, 1]; what is transparent takes the colour that the rest is not."""
    if picture.mode.startswith(("I", "F")):  # 16 or 32 bits
        levels = np.asarray(picture, np.float64)
        return levels / max(levels.max(), 65535 if picture.mode.startswith("I") else 1)
    if picture.mode == "1":  # grey as dots, perhaps
        levels = np.asarray(picture, np.float64)
        return np.asarray(ndimage.gaussian_filter(levels, _DITHER * min(levels.shape)))
    layers = np.asarray(picture.convert("LA"), np.float64) / 255
    grey, alpha = layers[..., 0], layers[..., 1]
    opaque = grey[alpha > 0.5]
    paper = 1.0 if opaque.size and opaque.mean() < 0.5 else 0.0
    return alpha * grey + (1 - alpha) * paper if alpha.min() < 1 else grey


def centre(grey: np.ndarray) -> np.ndarray:
    """Finds the digit and places it as MNIST's are.

    As http://yann.lecun.com/exdb/mnist/ describes it: the digit, white on black, is scaled with
    its proportions kept, and anti-aliased, to fit a box of 20x20 pixels, and its centre of mass
    is put at the centre of 28x28. Before that, the paper (a plane through the border, since light
    falls unevenly) is taken away, ink is what differs from it most (darker or lighter), cut by
    Otsu's threshold, and specks are left out.

    Args:
      grey: `[height, width]` in [0, 1], dark on light or light on dark.

    Returns:
      uint8 `[28, 28]`, paper 0.

    Raises:
      PictureError: there is no digit to be seen.
    """
    ink = _ink(grey)
    threshold = _otsu(ink)
    parts, number = ndimage.label(ink > threshold, structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=number + 1)[1:]
    kept = np.isin(parts, 1 + np.flatnonzero(sizes >= _SPECK * sizes.max(initial=1)))
    if not kept.any():
        raise PictureError("no digit to be seen")
    rows, columns = (np.flatnonzero(kept.any(axis)) for axis in (1, 0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    # Soft at the edges of the ink, full within it.
    soft = np.clip(ink[window] / threshold - 0.5, 0, 1)
    soft *= ndimage.binary_dilation(kept, np.ones((3, 3)))[window]

    height, width = soft.shape
    scale = BOX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(soft.astype(np.float32)).resize(size, Image.Resampling.BOX))
    small = small / small.max()
    top, left = (round(CENTRE - middle) for middle in ndimage.center_of_mass(small))
    top, left = (
        min(max(0, place), SIDE - length)
        for place, length in zip((top, left), small.shape, strict=True)
    )
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + small.shape[0], left : left + small.shape[1]] = np.rint(255 * small)
    return image


def _ink(grey: np.ndarray) -> np.ndarray:
    """How much each pixel differs from the paper, in the direction of the ink; in [0, 1]."""
    height, width = grey.shape
    if min(height, width) < 3:
        raise PictureError("too small to show a digit")
    y, x = np.mgrid[:height, :width]
    places = np.stack([np.ones_like(grey), y / height, x / width], -1)
    frame = max(1, min(height, width) // 20)
    border = np.ones_like(grey, bool)
    border[frame:-frame, frame:-frame] = False
    # A stroke may run into the border: it is the outlier, the median-like majority is paper.
    chosen = border
    for _ in range(3):
        plane = np.linalg.lstsq(places[chosen], grey[chosen], rcond=None)[0]
        distance = np.abs(grey - places @ plane)
        chosen = border & (distance <= 1.5 * np.median(distance[border]) + 1e-6)
    difference = grey - places @ plane
    low, high = np.percentile(difference, [0.5, 99.5])
    ink = np.clip(difference if high > -low else -difference, 0, 1)
    if ink.max() < _LEAST_CONTRAST:
        raise PictureError("no digit to be seen")
    return ink


def _otsu(values: np.ndarray) -> float:
    """The threshold that leaves the least variance within two classes (Otsu 1979)."""
    counts, edges = np.histogram(values, 256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * middles).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.nanargmax(between[:-1])])
