"""The data sets that can be loaded by name, and what is known about each of them."""

import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jax_mnist import files
from jax_mnist.data.types import Dataset, DatasetError


class DatasetInfo(NamedTuple):
    """What is known about a data set before any of its files is read.

    Attributes:
      builder: The name of the class in `tensorflow_datasets.image_classification`.
      label_names: The names of the ten classes, by label, as in TFDS.
      contents: The SHA-256 of all pixels followed by all labels, of the training and the test
        set, computed from files whose own SHA-256 is the one registered by TFDS.
      packaged: The folder of this package that holds the original files, if there is one.
      version: The version in TFDS.
      counts: The number of examples in each split.
      space: The disk space needed to prepare the data set.
    """

    builder: str
    label_names: tuple[str, ...] = tuple("0123456789")
    contents: tuple[str, ...] = ()
    packaged: Path | None = None
    version: str = "3.0.1"
    counts: Mapping[str, int] = {"train": 60_000, "test": 10_000}
    space: str = "200 MB"


CATALOGUE = {
    "mnist": DatasetInfo(
        "MNIST",
        contents=(
            "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
            "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
        ),
        packaged=Path(__file__).parent / "mnist",
    ),
    "fashion_mnist": DatasetInfo(
        "FashionMNIST",
        label_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        contents=(
            "16d82e2b505296aa2b78bd5ea0992634f30419a4c97def7c907d154a35ac6157",
            "9f1ec356a747bfe4ebab3cfb722d3694c9ca737e2570f6f90cf31d7b6fd689d4",
        ),
    ),
    "kmnist": DatasetInfo(
        "KMNIST", label_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    ),
    "emnist/digits": DatasetInfo(
        "EMNIST", version="3.1.0", counts={"train": 240_000, "test": 40_000}, space="1.5 GB"
    ),
}
NAMES = tuple(CATALOGUE)


def known_name(data: Dataset) -> str | None:
    """Returns the name of the data set that has this training or test set, if it is a known one."""
    content = hashlib.sha256(data.images.tobytes())
    content.update(data.labels.astype(np.uint8).tobytes())
    sha256 = content.hexdigest()
    return next((name for name, info in CATALOGUE.items() if sha256 in info.contents), None)


def is_folder(name: str) -> bool:
    """Returns whether `name` is an existing folder rather than one of `NAMES`."""
    return name not in NAMES and name != "" and files.expand_user(name).is_dir()


def check_name(name: str) -> None:
    """Raises `DatasetError` unless `name` is one of `NAMES` or an existing folder."""
    if name not in NAMES and not is_folder(name):
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        expected = f"expected one of {', '.join(NAMES)}, or a folder of IDX files or pictures"
        raise DatasetError(f"unknown dataset or folder {name!r}: {hint}{expected}")
