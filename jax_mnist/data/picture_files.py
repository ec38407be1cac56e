"""Reading picture files as grey levels."""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from jax_mnist.files import PathLike

MAX_SIDE = 1000  # larger pictures are reduced to this many pixels a side: more only takes time
_DITHER_SIGMA = 0.01  # smooths black and white dots into grey; a fraction of the shorter side


class PictureError(ValueError):
    """A file that is not a picture, or shows no digit; the message is one line."""


def read_grey(path: PathLike) -> np.ndarray:
    """Reads a PNG or JPEG picture, in colour or not, as grey levels.

    A picture of a camera is turned upright. Where a picture is transparent, it contrasts with its
    opaque pixels.

    Returns:
      float64 `[height, width]` in [0, 1], at most `MAX_SIDE` pixels a side.

    Raises:
      PictureError: The file cannot be read, or is not a picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG", "JPEG"]) as picture:
                picture.draft("L", (MAX_SIDE, MAX_SIDE))
                picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
                return _grey_levels(_upright(picture))
    except OSError as error:
        reason = error.strerror or "not a PNG or JPEG picture, or a damaged one"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = f"too large: {error}"
    except (ValueError, SyntaxError, ArithmeticError) as error:  # from Pillow, for damaged files
        reason = f"a damaged picture ({error})"
    raise PictureError(f"{os.fspath(path)!r}: {reason}")


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
