"""MNIST and its relatives as NumPy arrays, through TFDS and without TensorFlow.

The first `load` prepares an ordinary TFDS directory (`<data_dir>/mnist/3.0.1`, in the array_record
format), which any TFDS user can read, and keeps the decoded arrays in `<data_dir>/jax_mnist`.
Later loads read and verify only those arrays, and do not import TFDS.
"""

import multiprocessing
import os
import sys
from pathlib import Path

from absl import logging

from jax_mnist.data import cache, files, idx, splits, tfds_builder
from jax_mnist.data.catalogue import CATALOGUE, check_name, is_folder, name_of_contents
from jax_mnist.data.catalogue import NAMES as NAMES  # re-exported, as is digest below
from jax_mnist.data.types import Dataset, DatasetError, first_line
from jax_mnist.data.types import digest as digest


def load(
    name: str,
    split: str,
    data_dir: files.PathLike | None = None,
    source_dir: files.PathLike | None = None,
) -> Dataset:
    """Loads a split of a data set, and prepares the data set on first use.

    Args:
      name: One of `NAMES`, or a folder of IDX files; see `idx.read_split`. Files of a folder are
        validated, and a summary of each split is printed to standard error.
      split: What to load, in TFDS's notation; see `splits.parse`.
      data_dir: The TFDS data folder. The default is that of TFDS: `$TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`. A data set that TFDS prepared there earlier is used if it can be
        read, and never changed.
      source_dir: A folder with the original files (four `.gz` files, or EMNIST's `gzip.zip`),
        whose checksums are verified. By default, `"mnist"` comes from the files in this package
        and the others are downloaded.

    Returns:
      The examples, in the order of TFDS's `as_data_source`, or in the order of the files of a
      folder. As in TFDS, the images of EMNIST are transposed.

    Raises:
      DatasetError: The name is unknown, the split is malformed or empty, a source file is missing
        or damaged, a download failed, or the data folder cannot be written.
    """
    check_name(name)
    if is_folder(name):
        return _load_folder(name, split)
    slices = splits.parse(split, CATALOGUE[name].counts)
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = files.expand_user(root).absolute()
    path = root / "jax_mnist" / f"{name.replace('/', '-')}-{CATALOGUE[name].version}.npz"
    data = cache.read(path, name, {part for part, _, _ in slices})
    if data is None:
        data = _fill_cache(path, name, root, source_dir or None)
    return splits.take(data, slices)


def _load_folder(folder: str, split: str) -> Dataset:
    parts = {key: idx.read_split(folder, key) for key in ("train", "test")}
    slices = splits.parse(split, {key: len(part.data.labels) for key, part in parts.items()})
    if multiprocessing.parent_process() is None:  # otherwise every worker would repeat it
        for key in dict.fromkeys(key for key, _, _ in slices):
            print(parts[key].summary, file=sys.stderr, flush=True)
    return splits.take({key: part.data for key, part in parts.items()}, slices)


def _fill_cache(
    path: Path, name: str, root: Path, source_dir: files.PathLike | None
) -> dict[str, Dataset]:
    """Writes all splits to the cache file `path` unless another process just did."""
    import filelock  # imports asyncio, and is needed once for each data set

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The operating system releases the lock however the process ends.
        with filelock.FileLock(path.with_name("lock")):
            data = cache.read(path, name, CATALOGUE[name].counts)
            if data is None:
                if path.exists():
                    logging.warning("%s is damaged and will be rewritten", path)
                data = tfds_builder.read_or_prepare(name, root, path.parent, source_dir)
                cache.write(path, name, data)
            return data
    except DatasetError:
        raise
    except Exception as error:  # TFDS and array_record report I/O errors as many types
        raise DatasetError(
            f"cannot prepare {name} in {root} ({first_line(error)}): make sure that the folder is "
            f"writable and has {CATALOGUE[name].space} free, or name another one as data_dir"
        ) from error


def label_names(name: str) -> tuple[str, ...]:
    """Returns the names of the ten classes, by label, as they are in TFDS.

    Args:
      name: One of `NAMES`, or a folder of IDX files. If the test set in the folder is that of a
        known data set, the names are those of that data set; otherwise they are the digits.

    Raises:
      DatasetError: The name is unknown, or the folder cannot be read.
    """
    check_name(name)
    if is_folder(name):
        name = name_of_contents(idx.read_split(name, "test").sha256) or "mnist"
    return CATALOGUE[name].label_names
