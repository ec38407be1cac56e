"""MNIST and its relatives as NumPy arrays, through TFDS and without TensorFlow.

The first `load` prepares an ordinary TFDS directory (`<data_dir>/mnist/3.0.1`, array_record) that
any TFDS user can read, and keeps the decoded arrays in `<data_dir>/jax_mnist`. Later loads read
and verify those arrays alone, without importing TFDS.
"""

import contextlib
import difflib
import fcntl
import gzip
import hashlib
import io
import math
import multiprocessing
import os
import re
import shutil
import sys
import types
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

NAMES = ("mnist", "fashion_mnist", "kmnist", "emnist/digits")
_VERSIONS = dict.fromkeys(NAMES, "3.0.1") | {"emnist/digits": "3.1.0"}  # in TFDS
_COUNTS = {name: {"train": 60_000, "test": 10_000} for name in NAMES}
_COUNTS["emnist/digits"] = {"train": 240_000, "test": 40_000}
_MOST_ZIPPED = 1032  # bytes that one byte of a gzip file can hold
_PACKAGED = Path(__file__).parent / "mnist"
_SPACE = {"emnist/digits": "1.5 GB"}
_LABELS = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "emnist/digits": tuple("0123456789"),
}

# SHA-256 of all pixels and then all labels, first of the training images, then of the test images;
# taken from files whose own SHA-256 is the one that TFDS registers.
_ORIGINALS = {
    "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b": "mnist",
    "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b": "mnist",
    "16d82e2b505296aa2b78bd5ea0992634f30419a4c97def7c907d154a35ac6157": "fashion_mnist",
    "9f1ec356a747bfe4ebab3cfb722d3694c9ca737e2570f6f90cf31d7b6fd689d4": "fashion_mnist",
}

# TFDS's grammar: train, test[10:], train[:80%]; several joined by +
_PIECE = re.compile(r"([\w-]+)(?:\[(?:(-?[\d_.]+)(%?))?:(?:(-?[\d_.]+)(%?))?\])?")


class DatasetError(RuntimeError):
    """A dataset cannot be had; the message is one line that says why and what to do."""


class Dataset(NamedTuple):
    """Examples in TFDS's order.

    Attributes:
      images: Grey levels 0 to 255, uint8 `[N, 28, 28, 1]`.
      labels: Class indices 0 to 9, int32 `[N]`.
    """

    images: np.ndarray
    labels: np.ndarray


def load(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads a split of a dataset, preparing the dataset on first use.

    Args:
      name: One of `NAMES`, or a folder of IDX files, see `read_folder`; what was checked there is
        said on standard error, in a line per split.
      split: What to load, in TFDS's words: `"train"`, `"test[:100]"`, `"train[80%:]"`,
        `"train[:100]+test"`. TFDS's `shard` unit is not supported.
      data_dir: The TFDS data folder; by default TFDS's own, which is `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`. A dataset that TFDS prepared there before is read where it can
        be and is never changed.
      source_dir: A folder with the original files (four `.gz`, or EMNIST's `gzip.zip`), which are
        verified. By default the files of this package for `"mnist"`, else a download.

    Returns:
      The examples, in the order in which TFDS's `as_data_source` gives them; of a folder, in its
      own. (Of EMNIST, as in TFDS, the images are mirrored and turned by 90 degrees.)

    Raises:
      DatasetError: For an unknown name, a malformed or empty split, a missing or damaged source
        file, a failed download, or a data folder that cannot be written.
    """
    if is_folder(name):
        own = read_folder(name)
        counts = {key: len(part.data.labels) for key, part in own.items()}
        slices = _parse_split(split, counts)
        if multiprocessing.parent_process() is None:  # else each worker would repeat it
            for key in dict.fromkeys(key for key, _, _ in slices):
                print(own[key].checked, file=sys.stderr, flush=True)
        return _cut({key: part.data for key, part in own.items()}, slices)
    check_name(name)
    slices = _parse_split(split, _COUNTS[name])
    splits = {part for part, _, _ in slices}
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    root = _path(root).absolute()
    cache = root / "jax_mnist" / f"{name.replace('/', '-')}-{_VERSIONS[name]}.npz"
    data = _read_cache(cache, name, splits)
    if data is None:
        try:
            with _lock(cache.parent):
                data = _read_cache(cache, name, splits)  # another process may have made it
                if data is None:
                    if cache.exists():
                        logging.warning("%s is damaged and is written anew", cache)
                    data = _read_or_prepare(name, root, source_dir or None)
                    _write_cache(cache, name, data)
        except DatasetError:
            raise
        except Exception as error:  # TFDS and array_record report I/O errors in many types
            reason = _first_line(error)
            raise DatasetError(
                f"cannot prepare {name} in {root} ({reason}): make sure that it is writable and "
                f"has {_SPACE.get(name, '200 MB')} free, or name another folder as data_dir"
            ) from error
    return _cut(data, slices)


def label_names(name: str) -> tuple[str, ...]:
    """Returns the names of the ten classes of dataset `name`, by label, as TFDS has them.

    Of a folder they are the labels themselves, unless its test images are those of a known name.

    Raises:
      DatasetError: For an unknown name, or a folder that cannot be read.
    """
    if is_folder(name):
        name = _ORIGINALS.get(_read_split(_path(name), "t10k").sha256, "mnist")
    check_name(name)
    return _LABELS[name]


def is_folder(name: str) -> bool:
    """Whether `name`, which is none of `NAMES`, is a folder."""
    return name not in NAMES and name != "" and _path(name).is_dir()


def check_name(name: str) -> None:
    """Raises `DatasetError` unless `name` is one of `NAMES` or a folder."""
    if name not in NAMES and not is_folder(name):
        near = difflib.get_close_matches(str(name), NAMES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        what = "no folder" if "/" in str(name) and not near else "unknown dataset"
        known = f"known are {', '.join(NAMES)}, and folders of IDX files"
        raise DatasetError(f"{what} {name!r}: {hint}{known}")


def _path(name: str | os.PathLike[str]) -> Path:
    return Path(os.path.expanduser(name))  # Path's own raises where there is no such user


class Part(NamedTuple):
    """A split of a folder of IDX files.

    Attributes:
      data: The examples, in the order of the files.
      sha256: Of all pixels, and then all labels, as bytes.
      checked: What was checked, in a line.
    """

    data: Dataset
    sha256: str
    checked: str


def read_folder(folder: str | os.PathLike[str]) -> dict[str, Part]:
    """Reads the four files of a data set in MNIST's own format, and checks what can be checked.

    They are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, and both with `t10k` (the test
    images), each as it is or with `.gz`; `train-images.idx3-ubyte` is as good. The format is on
    http://yann.lecun.com/exdb/mnist/.

    Args:
      folder: The files' folder.

    Returns:
      `"train"` and `"test"`.

    Raises:
      DatasetError: A file is missing or damaged, its size is not what its header says, images are
        not 28x28, labels are not 0 to 9, or there are not as many of both.
    """
    folder = _path(folder)
    return {"train": _read_split(folder, "train"), "test": _read_split(folder, "t10k")}


def _read_split(folder: Path, prefix: str) -> Part:
    images, images_file = _read_idx(folder, f"{prefix}-images", 3)
    labels, labels_file = _read_idx(folder, f"{prefix}-labels", 1)
    if images.shape[1:] != (28, 28):
        size = "x".join(map(str, images.shape[1:]))
        raise DatasetError(f"{images_file} holds images of {size}: the network takes 28x28")
    if len(images) != len(labels) or not len(labels):
        raise DatasetError(
            f"{images_file} holds {len(images):,} images, {labels_file.name} {len(labels):,} "
            "labels: they must be as many, and some"
        )
    if labels.max() > 9:
        raise DatasetError(
            f"{labels_file} holds the label {labels.max()}: the network has the classes 0 to 9"
        )
    of_class = np.bincount(labels)
    low, high = of_class[of_class > 0].min(), of_class.max()
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    gzips = sum(file.suffix == ".gz" for file in (images_file, labels_file))
    sizes = ("sizes", "sizes and one gzip checksum", "sizes and gzip checksums")[gzips]
    content = hashlib.sha256(images.data)
    content.update(labels.data)
    sha256 = content.hexdigest()
    found = f"SHA-256 of pixels and labels {sha256}"
    if sha256 in _ORIGINALS:
        found = f"pixels and labels are those of the original {_ORIGINALS[sha256]}"
    checked = (
        f"{images_file}: {len(labels):,} images of 28x28, {np.count_nonzero(of_class)} classes, "
        f"{each} images of each; {sizes} are right, {found}"
    )
    return Part(Dataset(images[..., None], labels.astype(np.int32)), sha256, checked)


def _read_idx(folder: Path, name: str, dimensions: int) -> tuple[np.ndarray, Path]:
    """The array in an IDX file of bytes, and the file's path."""
    kind = f"idx{dimensions}-ubyte"
    spellings = [f"{name}{mark}{kind}{end}" for mark in "-." for end in ("", ".gz")]
    # A folder of that name is what some programs unpack the file into.
    path = next((p for p in map(folder.joinpath, spellings) if p.is_file()), None)
    if path is None:
        raise DatasetError(
            f"{folder} holds no {spellings[0]} or {spellings[1]}: name a folder of IDX files"
        )
    try:
        zipped = path.suffix == ".gz"
        with gzip.open(path) if zipped else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            magic, *shape = np.frombuffer(header, ">u4").tolist()
            if magic != 0x800 + dimensions or len(shape) != dimensions:
                raise ValueError(f"it does not begin as one of bytes in {dimensions} dimensions")
            size = math.prod(shape)
            if size > min(2**31, path.stat().st_size * (_MOST_ZIPPED if zipped else 1)):
                raise ValueError(f"it is too small for the {size:,} bytes it claims")
            content = file.read(size + 1)  # one more: to its end, where gzip has its checksum
    except (OSError, ValueError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise DatasetError(f"{path} is damaged or no IDX file ({reason}): replace it") from error
    if len(content) != size:
        more = "more" if len(content) > size else "fewer"
        raise DatasetError(
            f"{path} is damaged: it holds {more} than the {size:,} bytes it claims; replace it"
        )
    return np.frombuffer(content, np.uint8).reshape(shape), path


def _cut(data: dict[str, Dataset], slices: list[tuple[str, int, int]]) -> Dataset:
    parts = [(data[s].images[start:stop], data[s].labels[start:stop]) for s, start, stop in slices]
    if len(parts) == 1:
        return Dataset(*parts[0])
    images, labels = zip(*parts, strict=True)
    return Dataset(np.concatenate(images), np.concatenate(labels))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":") if lines else type(error).__name__


def _parse_split(split: str, counts: dict[str, int]) -> list[tuple[str, int, int]]:
    """Returns the `(split, start, stop)` that a split string names, as TFDS reads it.

    TFDS's own parser costs an import of half a second to three seconds on every start.
    """
    slices = []
    try:
        for piece in re.split(r"\s*\+\s*", split):
            slices += _parse_piece(piece, counts)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"bad split {split!r}: {_first_line(error)}; write 'train', 'test', 'train[:50000]', "
            "'train[80%:]' or 'train[:100]+test'"
        ) from error
    return slices


def _parse_piece(piece: str, counts: dict[str, int]) -> list[tuple[str, int, int]]:
    match = _PIECE.fullmatch(piece)
    if not match:
        raise ValueError(f"{piece!r} is not a split name with an optional [from:to]")
    split, low, low_unit, high, high_unit = match.groups()
    if piece == "all":
        return [(part, 0, count) for part, count in counts.items()]
    if split not in counts:
        raise ValueError(f"the splits are {', '.join(counts)}, not {split!r}")
    if "[" in piece and low is None and high is None:
        raise ValueError("[:] names no bounds")
    count = counts[split]

    def bound(text: str | None, default: int) -> int:
        if text is None:
            return default
        percent = low_unit or high_unit  # TFDS: on one bound it counts for both
        value = float(text) if percent else int(text)
        if abs(value) > (100 if percent else count):
            raise ValueError(f"{text} is beyond the {count} examples of {split}")
        index = round(value * count / 100.0) if percent else int(value)
        return index + count if index < 0 else index

    start, stop = bound(low, 0), bound(high, count)
    if start >= stop:
        raise ValueError(f"{piece!r} holds no examples")
    return [(split, start, stop)]


def digest(name: str, split: str, data: Dataset) -> str:
    """SHA-256 of these words and the examples."""
    result = hashlib.sha256()
    for array in data:
        result.update(f"{name} {split} {array.dtype} {array.shape} ".encode())
        result.update(np.ascontiguousarray(array).data)
    return result.hexdigest()


def _read_cache(cache: Path, name: str, splits: Iterable[str]) -> dict[str, Dataset] | None:
    """Returns the wanted splits from the cache, or None where it is missing or damaged."""
    data: dict[str, Dataset] = {}
    try:
        with np.load(cache, allow_pickle=False) as archive:
            for split in splits:
                data[split] = Dataset(archive[f"{split}_images"], archive[f"{split}_labels"])
                if str(archive[f"{split}_sha256"]) != digest(name, split, data[split]):
                    return None
    except Exception:  # damaged bytes can raise anything on their way through zipfile and NumPy
        return None
    return data


def _write_cache(cache: Path, name: str, data: dict[str, Dataset]) -> None:
    arrays: dict[str, Any] = {}
    for split, part in data.items():
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = part
        arrays[f"{split}_sha256"] = np.array(digest(name, split, part))
    temporary = cache.with_suffix(".incomplete")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(cache)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process alone; the system frees it however the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_or_prepare(
    name: str, root: Path, source_dir: str | os.PathLike[str] | None
) -> dict[str, Dataset]:
    """Returns both splits from TFDS's directory, which is prepared where there is none.

    A directory that is there but cannot be read (tfrecord, which only TensorFlow reads, or
    damaged) may be someone else's: it stays as it is, and one of our own is made beside it.
    """
    folder, own = (place / name / _VERSIONS[name] for place in (root, root / "jax_mnist"))
    if not folder.exists():
        return _prepare(name, root, folder, source_dir)
    try:
        return _decode(name, folder)
    except Exception as error:  # array_record and protobuf have their own types
        reason = _first_line(error)
        logging.warning("cannot read %s (%s): it stays, %s is used instead", folder, reason, own)
    if own.exists():
        try:
            return _decode(name, own)
        except Exception as error:
            logging.warning("%s is damaged (%s) and is written anew", own, _first_line(error))
            shutil.rmtree(own)
    return _prepare(name, root, own, source_dir)


def _decode(name: str, folder: Path) -> dict[str, Dataset]:
    """Reads both splits of a TFDS directory; array_record verifies a hash of every record."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    data = {}
    for split, count in _COUNTS[name].items():
        # Pillow directly: TFDS would use it too, after advising to install OpenCV.
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        if len(source) != count:
            raise ValueError(f"{split} holds {len(source)} examples instead of {count}")
        images = np.empty((count, 28, 28, 1), np.uint8)
        labels = np.empty(count, np.int32)
        for i, example in enumerate(source.__getitems__(range(count))):
            image = np.asarray(Image.open(io.BytesIO(example["image"])))
            if image.shape != (28, 28) or image.dtype != np.uint8:
                raise ValueError(f"{split} holds an image of shape {image.shape}, {image.dtype}")
            images[i, :, :, 0], labels[i] = image, example["label"]
        if labels.min() < 0 or labels.max() > 9:
            raise ValueError(f"{split} holds labels outside 0 to 9")
        data[split] = Dataset(images, labels)
    return data


def _prepare(
    name: str, root: Path, folder: Path, source_dir: str | os.PathLike[str] | None
) -> dict[str, Dataset]:
    """Writes the TFDS directory `folder` and returns its contents."""
    import tensorflow_datasets as tfds

    builder_class = _builder_class(name, download=source_dir is None and name != "mnist")
    if source_dir is not None:
        _verify(builder_class, _path(source_dir), "get it from {}")
    elif name == "mnist":
        source_dir = _PACKAGED
        _verify(builder_class, _PACKAGED, "reinstall jax_mnist")
    print(f"Preparing {name} in {folder} (once, a minute or so)", file=sys.stderr, flush=True)
    # TFDS works in a folder of ours, which only the holder of the lock uses: whatever an
    # interrupted run left there can go, and nothing appears in place before it was read back.
    staging = root / "jax_mnist" / "incomplete"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        tfds.disable_progress_bar()
        builder = builder_class(config=name.partition("/")[2] or None, data_dir=staging)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints there
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    manual_dir=source_dir, try_download_gcs=False
                ),
                file_format="array_record",
            )
        data = _decode(name, builder.data_path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(builder.data_path, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return data


def _builder_class(name: str, download: bool) -> Any:
    """Returns TFDS's builder of `name` without the two steps that need TensorFlow."""
    import tensorflow_datasets as tfds

    original: Any = {
        "mnist": tfds.image_classification.MNIST,
        "fashion_mnist": tfds.image_classification.FashionMNIST,
        "kmnist": tfds.image_classification.KMNIST,
        "emnist/digits": tfds.image_classification.EMNIST,
    }[name]

    class Builder(original, skip_registration=True):  # type: ignore[misc, call-arg]
        url_infos = original.url_infos  # TFDS looks for them beside the class's own module

        def _split_generators(self, dl_manager: Any) -> Any:
            # The .gz files stay as they are: TFDS unzips with TensorFlow.
            unextracted = types.SimpleNamespace(
                download_and_extract=dl_manager.download, extract=lambda files: files
            )
            if name == "emnist/digits":
                unextracted.download_and_extract = lambda url: self._unpack(
                    dl_manager.download(url)
                )
            if not download:
                return super()._split_generators(unextracted)
            files = ", ".join(info.filename for info in self.url_infos.values())
            advice = f"name a folder that holds {files} as source_dir"
            print(f"Downloading from {self.URL} (or {advice})", file=sys.stderr, flush=True)
            try:
                # Asked first, since TFDS tries for over three minutes where there is no network.
                urllib.request.urlopen(next(iter(self.url_infos)), timeout=10).close()
                return super()._split_generators(unextracted)
            except Exception as error:
                reason = _first_line(error)
                raise DatasetError(
                    f"cannot download from {self.URL} ({reason}): {advice}"
                ) from error

        def _unpack(self, archive: Any) -> str:
            folder = Path(self.data_dir).parent / "unpacked"  # below the folder of this preparation
            with zipfile.ZipFile(archive) as file:
                wanted = [m for m in file.namelist() if m.startswith("gzip/emnist-digits-")]
                file.extractall(folder, wanted)
            return str(folder)

        def _generate_examples(
            self, num_examples: int, data_path: Any, label_path: Any
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            with gzip.open(data_path) as file:
                pixels = np.frombuffer(file.read(), np.uint8, offset=16)
            with gzip.open(label_path) as file:
                labels = np.frombuffer(file.read(), np.uint8, offset=8)
            images = pixels.reshape(num_examples, 28, 28)
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                png = io.BytesIO()  # encoded here: TFDS encodes arrays with TensorFlow
                Image.fromarray(image).save(png, "PNG", compress_level=1)
                png.seek(0)
                yield i, {"image": png, "label": int(label)}

    Builder.name = name.partition("/")[0]
    return Builder


def _verify(builder_class: Any, source_dir: Path, remedy: str) -> None:
    """Refuses a folder whose four files are not those that TFDS has registered."""
    for url, info in builder_class.url_infos.items():
        path, advice = source_dir / info.filename, remedy.format(url)
        try:
            with path.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DatasetError(f"cannot read {path} ({error.strerror}): {advice}") from error
        if checksum != info.checksum:
            raise DatasetError(f"{path} is damaged or another file (SHA-256 differs): {advice}")
