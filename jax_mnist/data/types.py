"""What the modules of this package exchange."""

from typing import NamedTuple

import numpy as np


class DatasetError(RuntimeError):
    """A data set cannot be loaded; the message is one line that says why and what to do."""


class Dataset(NamedTuple):
    """Labelled images.

    Attributes:
      images: Grey levels from 0 to 255, uint8 `[N, 28, 28, 1]`.
      labels: Class indices from 0 to 9, int32 `[N]`.
    """

    images: np.ndarray
    labels: np.ndarray


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":") if lines else type(error).__name__
