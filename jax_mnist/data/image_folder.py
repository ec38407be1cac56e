"""Data sets in folders of pictures, `FOLDER/SPLIT/LABEL/*.png` or `.jpg`.

The layout is that of TFDS's `ImageFolder`, which needs TensorFlow.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jax_mnist import files
from jax_mnist.data.picture_files import PictureError, read_grey
from jax_mnist.data.types import Dataset, DatasetError

CLASSES, SIDE = 10, 28  # of the network
_SUFFIXES = {".png", ".jpg", ".jpeg"}
_MAX_LABEL = 64  # characters, as in the records of runs


class ImageFolder(NamedTuple):
    """The pictures of a folder, before they are read.

    Attributes:
      folder: The folder.
      paths: The pictures of each split. Their order is that of a hash of their names, as in TFDS,
        so that a slice such as `train[:80%]` holds pictures of every class.
      label_names: The names of the folders of pictures, sorted: at most ten.
    """

    folder: Path
    paths: Mapping[str, list[Path]]
    label_names: tuple[str, ...]


def find(folder: files.PathLike) -> ImageFolder | None:
    """Lists the pictures of a folder; None if it holds none in subfolders `SPLIT/LABEL`.

    Raises:
      DatasetError: There are more than ten labels, or one is too long to be a name.
    """
    folder = files.expand_user(folder)
    found: dict[str, list[Path]] = {}
    for path in folder.glob("[!.]*/[!.]*/[!.]*"):
        if path.suffix.lower() in _SUFFIXES:
            found.setdefault(path.parts[-3], []).append(path)
    if not found:
        return None
    labels = sorted({path.parts[-2] for paths in found.values() for path in paths})
    for label in labels:
        if not label.isprintable() or len(label) > _MAX_LABEL:
            raise DatasetError(
                f"the folder {label!r} in {folder} cannot be a label: rename it to at most "
                f"{_MAX_LABEL} printable characters"
            )
    if len(labels) > CLASSES:
        raise DatasetError(
            f"{folder} holds pictures with {len(labels)} labels, from {labels[0]!r} to "
            f"{labels[-1]!r}: the network has {CLASSES} classes"
        )
    for paths in found.values():
        paths.sort(key=lambda path: hashlib.sha256("/".join(path.parts[-3:]).encode()).digest())
    return ImageFolder(folder, dict(sorted(found.items())), tuple(labels))


def fingerprint(pictures: ImageFolder) -> str:
    """Returns a text that changes when a picture is added, removed, renamed or written anew."""
    content = hashlib.sha256()
    for paths in pictures.paths.values():
        for path in paths:
            status = path.stat()
            content.update(f"{'/'.join(path.parts[-3:])} {status.st_size} ".encode())
            content.update(f"{status.st_mtime_ns}\n".encode())
    return content.hexdigest()


def read(pictures: ImageFolder) -> dict[str, Dataset]:
    """Reads all pictures as grey images of 28x28.

    Pictures of another size are resized to it (bilinearly, with anti-aliasing), whatever their
    proportions. If the borders of all pictures together are lighter than middle grey, every
    picture is inverted, so that the background is dark, as in MNIST.

    Raises:
      DatasetError: A picture cannot be read.
    """
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        try:
            images = {
                split: np.stack([*pool.map(_read_image, paths)])
                for split, paths in pictures.paths.items()
            }
        except PictureError as error:
            pool.shutdown(cancel_futures=True)
            raise DatasetError(f"{error}: replace or remove it") from error
    inside = np.zeros((SIDE, SIDE), bool)
    inside[1:-1, 1:-1] = True
    borders = np.concatenate([part[:, ~inside].ravel() for part in images.values()])
    if borders.mean() > 127.5:
        images = {split: 255 - part for split, part in images.items()}
    return {
        split: Dataset(part[..., None], _labels(pictures, split)) for split, part in images.items()
    }


def _read_image(path: Path) -> np.ndarray:
    grey = read_grey(path).astype(np.float32)
    if grey.shape != (SIDE, SIDE):
        picture = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        grey = np.asarray(picture)
    return np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)


def _labels(pictures: ImageFolder, split: str) -> np.ndarray:
    numbers = {label: number for number, label in enumerate(pictures.label_names)}
    return np.array([numbers[path.parts[-2]] for path in pictures.paths[split]], np.int32)


def summary(pictures: ImageFolder, split: str) -> str:
    """Returns one line that says what was found in a split."""
    counts = np.bincount(_labels(pictures, split), minlength=len(pictures.label_names))
    each = (f"{name} {n:,}" for name, n in zip(pictures.label_names, counts, strict=True))
    return f"{pictures.folder / split}: {counts.sum():,} pictures ({', '.join(each)})"
