"""Reading and validating IDX files, the format in which MNIST was published.

See http://yann.lecun.com/exdb/mnist/ for a description.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from jax_mnist import files
from jax_mnist.data.types import Dataset, DatasetError, first_line

_PREFIXES = {"train": "train", "test": "t10k"}  # of the file names, by split
_MAX_GZIP_RATIO = 1032  # deflate cannot compress any further


def read_split(folder: files.PathLike, split: str) -> Dataset:
    """Reads and validates the images and labels of one split.

    The files are `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, with `t10k` instead of
    `train` for the test set, each with or without `.gz`. The spelling `train-images.idx3-ubyte`
    is accepted too.

    Args:
      folder: The folder that holds the files.
      split: `"train"` or `"test"`.

    Raises:
      DatasetError: A file is missing or damaged, its size contradicts its header, the images are
        not 28x28, the labels are not 0 to 9, or the numbers of images and labels differ.
    """
    folder = files.expand_user(folder)
    images_file = _find(folder, f"{_PREFIXES[split]}-images", "idx3-ubyte")
    labels_file = _find(folder, f"{_PREFIXES[split]}-labels", "idx1-ubyte")
    images, labels = read_array(images_file, 3), read_array(labels_file, 1)
    if images.shape[1:] != (28, 28):
        size = "x".join(map(str, images.shape[1:]))
        raise DatasetError(f"{images_file} holds images of {size}: the network takes 28x28")
    if len(images) != len(labels) or not len(labels):
        raise DatasetError(
            f"{images_file} holds {len(images):,} images, but {labels_file.name} holds "
            f"{len(labels):,} labels: provide as many labels as images, and at least one"
        )
    if labels.max() > 9:
        raise DatasetError(
            f"{labels_file} holds the label {labels.max()}: the network has the classes 0 to 9"
        )
    return Dataset(images[..., None], labels.astype(np.int32))


def _find(folder: Path, name: str, kind: str) -> Path:
    spellings = [f"{name}{mark}{kind}{end}" for mark in "-." for end in ("", ".gz")]
    for path in map(folder.joinpath, spellings):
        if path.is_file():  # some programs unpack the file into a folder of the same name
            return path
    raise DatasetError(
        f"{folder} holds neither {spellings[0]} nor {spellings[1]}, nor pictures: name a folder of "
        "IDX files, or one with pictures as SPLIT/LABEL/*.png or .jpg"
    )


def read_array(path: Path, dimensions: int) -> np.ndarray:
    """Reads a `dimensions`-dimensional IDX file of bytes; `.gz` files are decompressed.

    Returns:
      A read-only uint8 array.

    Raises:
      DatasetError: The file cannot be read, is not an IDX file of bytes with this many
        dimensions, or does not hold exactly the bytes that its header announces.
    """
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            magic, *shape = np.frombuffer(header, ">u4").tolist()
            if magic != 0x800 + dimensions or len(shape) != dimensions:
                raise ValueError(f"its header is not that of bytes in {dimensions} dimensions")
            size = math.prod(shape)
            if size > min(2**31, path.stat().st_size * (_MAX_GZIP_RATIO if zipped else 1)):
                raise ValueError(f"it is too small for the {size:,} bytes it announces")
            # One byte more reaches the end of the file, where gzip keeps its checksum.
            content = file.read(size + 1)
            if len(content) != size:
                more = "more" if len(content) > size else "fewer"
                raise ValueError(f"it holds {more} than the {size:,} bytes it announces")
    except (OSError, ValueError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DatasetError(f"{path} is damaged or no IDX file ({reason}): replace it") from error
    return np.frombuffer(content, np.uint8).reshape(shape)
