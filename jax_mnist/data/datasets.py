"""MNIST and its relatives as NumPy arrays, through TFDS and without TensorFlow.

The first `load` prepares an ordinary TFDS directory (`<data_dir>/mnist/3.0.1`, in the array_record
format), which any TFDS user can read, and caches the decoded arrays in `<data_dir>/jax_mnist`.
Later loads read and verify only those arrays, and do not import TFDS.
"""

import functools
import hashlib
import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from jax_mnist import files
from jax_mnist.data import idx, image_folder, splits, tfds_builder
from jax_mnist.data.catalogue import CATALOGUE, check_name, is_folder, known_name
from jax_mnist.data.catalogue import NAMES as NAMES  # re-exported
from jax_mnist.data.types import Dataset, DatasetError, first_line

_DEFAULT = "~/tensorflow_datasets"  # as in TFDS


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
    root = files.expand_user(data_dir or os.environ.get("TFDS_DATA_DIR") or _DEFAULT)
    if str(root) == _DEFAULT:  # there is no home
        root = Path(os.devnull, _DEFAULT)
    root = root.absolute()

    if not is_folder(name):
        return _load_known(name, split, root, source_dir or None)
    folder = files.expand_user(name)
    if paths := image_folder.find(folder):
        return _load_pictures(folder, paths, split, root)
    return _load_idx(folder, split)


def _load_known(name: str, split: str, root: Path, source_dir: files.PathLike | None) -> Dataset:
    info = CATALOGUE[name]
    slices = splits.parse(split, info.counts)
    cache = root / "jax_mnist" / f"{name.replace('/', '-')}-{info.version}.npz"
    prepare = functools.partial(tfds_builder.read_or_prepare, name, root, source_dir)
    try:
        data = _read_or_fill(cache, name, slices, prepare, info.space)
    except DatasetError as error:
        # What TFDS prepared can be read even if nothing can be written beside it.
        if prepared := tfds_builder.read(name, root):
            return splits.take(prepared, slices)
        if info.packaged is None or source_dir:
            raise
        _print_once(f"{error}; until then, the copy of {name} in this package is read")
        keys = {key for key, _, _ in slices}
        data = {key: _in_order_of_tfds(info.packaged, key) for key in keys}
    return splits.take(data, slices)


def _in_order_of_tfds(folder: Path, split: str) -> Dataset:
    """Reads a split of original files in the order that TFDS gives it: sorted by salted digests."""
    data = idx.read_split(folder, split)
    keys = [hashlib.md5(f"{split}{number}".encode()).digest() for number in range(len(data.labels))]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Dataset(data.images[order], data.labels[order])


@functools.cache
def _print_once(line: str) -> None:
    if multiprocessing.parent_process() is None:  # every worker would repeat it
        print(line, file=sys.stderr, flush=True)


def _load_pictures(
    folder: Path, paths: Mapping[str, list[Path]], split: str, root: Path
) -> Dataset:
    slices = splits.parse(split, {key: len(part) for key, part in paths.items()})
    folder_digest = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()
    cache = root / "jax_mnist" / f"folder-{folder_digest[:16]}.npz"
    contents = image_folder.fingerprint(paths)
    prepare = functools.partial(image_folder.read, paths)
    space = f"{1 + sum(map(len, paths.values())) // 1000:,} MB"
    data = _read_or_fill(cache, contents, slices, prepare, space)
    _print_summaries(folder, data, slices, image_folder.label_names(paths))
    return splits.take(data, slices)


def _load_idx(folder: Path, split: str) -> Dataset:
    data = {key: idx.read_split(folder, key) for key in ("train", "test")}
    slices = splits.parse(split, {key: len(part.labels) for key, part in data.items()})
    _print_summaries(folder, data, slices, tuple("0123456789"))
    return splits.take(data, slices)


def _print_summaries(
    folder: Path, data: Mapping[str, Dataset], slices: Sequence[splits.Slice], names: Sequence[str]
) -> None:
    """Says on standard error what those splits of a folder hold that `slices` need."""
    for key in dict.fromkeys(key for key, _, _ in slices):
        counts = np.bincount(data[key].labels, minlength=len(names))
        each = ", ".join(f"{label} {count:,}" for label, count in zip(names, counts, strict=True))
        name = known_name(data[key])
        note = f", identical to the original {name}" if name else ""
        _print_once(f"{folder / key}: {counts.sum():,} images ({each}){note}")


def _read_or_fill(
    cache: Path,
    contents: str,
    slices: Sequence[splits.Slice],
    prepare: Callable[[], dict[str, Dataset]],
    space: str,
) -> dict[str, Dataset]:
    """Reads the splits that `slices` need from a cache file, which `prepare` fills if necessary.

    `contents` is what identifies the contents of the file, and `space` what filling it takes.
    """
    keys = {key for key, _, _ in slices}
    if data := _read_cache(cache, contents, keys):
        return data
    import filelock  # imports asyncio, and is needed once for each data set

    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        # The operating system releases the lock however the process ends.
        with filelock.FileLock(cache.with_name("lock")):
            data = _read_cache(cache, contents, keys)  # another process may have written it
            if data is None:
                if cache.exists():
                    logging.warning("%s is damaged or out of date and will be rewritten", cache)
                data = prepare()
                _write_cache(cache, contents, data)
            return data
    except DatasetError:
        raise
    except Exception as error:  # TFDS and array_record report I/O errors as many types
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DatasetError(
            f"cannot prepare {cache.stem} in {cache.parent.parent} ({reason}): as data_dir, name a "
            f"folder that can be written and has {space} free"
        ) from error


def _read_cache(path: Path, contents: str, keys: Iterable[str]) -> dict[str, Dataset] | None:
    """Reads splits from a cache file, an `.npz` file of decoded examples, and verifies them.

    Returns:
      The examples by split, or None if the file is missing, damaged or of other contents.
    """
    data: dict[str, Dataset] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for split in keys:
                data[split] = Dataset(archive[f"{split}_images"], archive[f"{split}_labels"])
                if str(archive[f"{split}_sha256"]) != digest(contents, split, data[split]):
                    return None
    except Exception:  # damaged bytes can make zipfile and NumPy raise almost anything
        return None
    return data


def _write_cache(path: Path, contents: str, data: Mapping[str, Dataset]) -> None:
    """Writes all splits to a cache file, whose folder's lock the caller must hold."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink()  # of a process that was killed while it wrote
    arrays: dict[str, Any] = {}
    for split, part in data.items():
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = part
        arrays[f"{split}_sha256"] = np.array(digest(contents, split, part))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    files.write_atomically(path, buffer.getvalue())


def digest(contents: str, split: str, data: Dataset) -> str:
    """Returns the SHA-256 of a text, the name of a split and its examples, in hexadecimal."""
    result = hashlib.sha256()
    for array in data:
        result.update(f"{contents} {split} {array.dtype} {array.shape} ".encode())
        result.update(np.ascontiguousarray(array).data)
    return result.hexdigest()


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
        if paths := image_folder.find(name):
            names = image_folder.label_names(paths)
            return *names, *(f"unused {n}" for n in range(len(names), image_folder.CLASSES))
        name = known_name(idx.read_split(name, "test")) or "mnist"
    return CATALOGUE[name].label_names
