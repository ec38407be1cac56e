"""Data sets in folders of pictures, `FOLDER/SPLIT/LABEL/*.png` or `.jpg`.

The layout is that of TFDS's `ImageFolder`, which needs TensorFlow.
"""

import collections
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from jax_mnist import files
from jax_mnist.data.picture_files import PictureError, read_grey
from jax_mnist.data.types import Dataset, DatasetError

CLASSES, SIDE = 10, 28  # of the network
_SUFFIXES = {".png", ".jpg", ".jpeg"}
_MAX_LABEL = 64  # characters, as in the records of runs


def find(folder: files.PathLike) -> dict[str, list[Path]]:
    """Lists the pictures in subfolders `SPLIT/LABEL` of a folder, by split.

    The order in a split is that of a hash of their names, as in TFDS, so that a slice such as
    `train[:80%]` holds pictures of every class.

    Raises:
      DatasetError: There are more than ten labels, or one is too long to be a name.
    """
    folder = files.expand_user(folder)
    paths: dict[str, list[Path]] = collections.defaultdict(list)
    for path in folder.glob("[!.]*/[!.]*/[!.]*"):
        if path.suffix.lower() in _SUFFIXES:
            paths[path.parts[-3]].append(path)
    labels = label_names(paths)
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
    for part in paths.values():
        part.sort(key=lambda path: hashlib.sha256(_name(path).encode()).digest())
    return dict(sorted(paths.items()))


def _name(path: Path) -> str:
    return "/".join(path.parts[-3:])


def label_names(paths: Mapping[str, list[Path]]) -> tuple[str, ...]:
    """Returns the names of the folders of pictures, sorted: the index of each is its label."""
    return tuple(sorted({path.parts[-2] for part in paths.values() for path in part}))


def fingerprint(paths: Mapping[str, list[Path]]) -> str:
    """Returns a text that changes when a picture is added, removed, renamed or written anew."""
    content = hashlib.sha256()
    for path in (path for part in paths.values() for path in part):
        status = path.stat()
        content.update(f"{_name(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return content.hexdigest()


def read(paths: Mapping[str, list[Path]]) -> dict[str, Dataset]:
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
                split: np.stack([*pool.map(_read_image, part)]) for split, part in paths.items()
            }
        except PictureError as error:
            pool.shutdown(cancel_futures=True)
            raise DatasetError(f"{error}: replace or remove it") from error
    inside = np.zeros((SIDE, SIDE), bool)
    inside[1:-1, 1:-1] = True
    borders = np.concatenate([part[:, ~inside].ravel() for part in images.values()])
    if borders.mean() > 127.5:
        images = {split: 255 - part for split, part in images.items()}
    names = label_names(paths)
    data = {}
    for split, part in paths.items():
        labels = np.array([names.index(path.parts[-2]) for path in part], np.int32)
        data[split] = Dataset(images[split][..., None], labels)
    return data


def _read_image(path: Path) -> np.ndarray:
    grey = read_grey(path).astype(np.float32)
    if grey.shape != (SIDE, SIDE):
        picture = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        grey = np.asarray(picture)
    return np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)
