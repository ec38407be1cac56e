"""MNIST and its relatives as NumPy arrays, through TFDS and without TensorFlow.

The first `load` prepares an ordinary TFDS directory (`<data_dir>/mnist/3.0.1`, in the array_record
format), which any TFDS user can read, and keeps the decoded arrays in `<data_dir>/jax_mnist`.
Later loads read and verify only those arrays, and do not import TFDS.
"""

import hashlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from absl import logging

from jax_mnist import files
from jax_mnist.data import cache, idx, image_folder, splits, tfds_builder
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
      name: One of `NAMES`, or a folder of IDX files, see `idx.read_split`, or of pictures, see
        `image_folder`. Files of a folder are validated, and a summary of each split is printed to
        standard error.
      split: What to load, in TFDS's notation; see `splits.parse`.
      data_dir: The TFDS data folder. The default is that of TFDS: `$TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`. A data set that TFDS prepared there earlier is used if it can be
        read, and never changed.
      source_dir: A folder with the original files (four `.gz` files, or EMNIST's `gzip.zip`),
        whose checksums are verified. By default, `"mnist"` comes from the files in this package
        and the others are downloaded.

    Returns:
      The examples, in the order of TFDS's `as_data_source`, or in the order of the IDX files or
      of `image_folder.find`. As in TFDS, the images of EMNIST are transposed.

    Raises:
      DatasetError: The name is unknown, the split is malformed or empty, a source file is missing
        or damaged, a download failed, or the data folder cannot be written.
    """
    check_name(name)
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = files.expand_user(root).absolute()
    if is_folder(name):
        pictures = image_folder.find(name)
        return _load_pictures(pictures, split, root) if pictures else _load_idx(name, split)
    slices = splits.parse(split, CATALOGUE[name].counts)
    path = root / "jax_mnist" / f"{name.replace('/', '-')}-{CATALOGUE[name].version}.npz"
    data = cache.read(path, name, {part for part, _, _ in slices})
    if data is None:

        def prepare() -> dict[str, Dataset]:
            return tfds_builder.read_or_prepare(name, root, path.parent, source_dir or None)

        space = CATALOGUE[name].space
        data = _fill_cache(path, name, CATALOGUE[name].counts, prepare, space)
    return splits.take(data, slices)


def _load_idx(folder: str, split: str) -> Dataset:
    parts = {key: idx.read_split(folder, key) for key in ("train", "test")}
    slices = splits.parse(split, {key: len(part.data.labels) for key, part in parts.items()})
    _report({key: part.summary for key, part in parts.items()}, slices)
    return splits.take({key: part.data for key, part in parts.items()}, slices)


def _load_pictures(pictures: image_folder.ImageFolder, split: str, root: Path) -> Dataset:
    counts = {key: len(paths) for key, paths in pictures.paths.items()}
    slices = splits.parse(split, counts)
    _report({key: image_folder.summary(pictures, key) for key in counts}, slices)
    name = hashlib.sha256(str(pictures.folder.absolute()).encode()).hexdigest()[:16]
    path = root / "jax_mnist" / f"folder-{name}.npz"
    contents = image_folder.fingerprint(pictures)
    data = cache.read(path, contents, {part for part, _, _ in slices})
    if data is None:
        space = f"{1 + sum(counts.values()) // 1000:,} MB"
        data = _fill_cache(path, contents, counts, lambda: image_folder.read(pictures), space)
    return splits.take(data, slices)


def _report(summaries: Mapping[str, str], slices: Sequence[splits.Slice]) -> None:
    """Prints the summaries of the splits of a folder that are used."""
    if multiprocessing.parent_process() is None:  # otherwise every worker would repeat it
        for key in dict.fromkeys(key for key, _, _ in slices):
            print(summaries[key], file=sys.stderr, flush=True)


def _fill_cache(
    path: Path,
    name: str,
    parts: Iterable[str],
    prepare: Callable[[], dict[str, Dataset]],
    space: str,
) -> dict[str, Dataset]:
    """Writes all splits to the cache file `path` unless another process just did."""
    import filelock  # imports asyncio, and is needed once for each data set

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The operating system releases the lock however the process ends.
        with filelock.FileLock(path.with_name("lock")):
            data = cache.read(path, name, parts)
            if data is None:
                if path.exists():
                    logging.warning("%s is damaged or out of date and will be rewritten", path)
                data = prepare()
                cache.write(path, name, data)
            return data
    except DatasetError:
        raise
    except Exception as error:  # TFDS and array_record report I/O errors as many types
        raise DatasetError(
            f"cannot prepare {path.stem} in {path.parent.parent} ({first_line(error)}): make sure "
            f"that the folder is writable and has {space} free, or name another one as data_dir"
        ) from error


def label_names(name: str) -> tuple[str, ...]:
    """Returns the names of the ten classes, by label, as they are in TFDS.

    Args:
      name: One of `NAMES`, or a folder. In a folder of pictures, the names are those of the
        labels, and `"unused N"` for classes that it does not have. In a folder of IDX files whose
        test set is that of a known data set, they are those of that data set, otherwise digits.

    Raises:
      DatasetError: The name is unknown, or the folder cannot be read.
    """
    check_name(name)
    if is_folder(name):
        if pictures := image_folder.find(name):
            unused = range(len(pictures.label_names), image_folder.CLASSES)
            return *pictures.label_names, *(f"unused {number}" for number in unused)
        name = name_of_contents(idx.read_split(name, "test").sha256) or "mnist"
    return CATALOGUE[name].label_names
