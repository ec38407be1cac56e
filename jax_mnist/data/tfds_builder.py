"""Preparing and reading TFDS directories without TensorFlow.

TFDS is imported by the functions that need it: the import takes seconds, and most loads are served
from the cache.
"""

import contextlib
import hashlib
import io
import os
import shutil
import sys
import types
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from jax_mnist import files
from jax_mnist.data import idx
from jax_mnist.data.catalogue import CATALOGUE
from jax_mnist.data.types import Dataset, DatasetError, first_line


def read(name: str, root: Path) -> dict[str, Dataset] | None:
    """Reads all splits from the TFDS directory of a data set.

    Args:
      name: A name in the catalogue.
      root: The TFDS data folder.

    Returns:
      The examples; None if there is no directory or it cannot be read. It may belong to someone
      else, be damaged, or be in the tfrecord format, which only TensorFlow reads.
    """
    folder = root / name / CATALOGUE[name].version
    if folder.exists():
        try:
            return _decode(name, folder)
        except Exception as error:  # array_record and protobuf have their own types
            message = "cannot read %s (%s): it is left as it is, and not used"
            logging.warning(message, folder, first_line(error))
    return None


def read_or_prepare(name: str, root: Path, source_dir: files.PathLike | None) -> dict[str, Dataset]:
    """Reads all splits from the TFDS directory of a data set, and creates it if necessary.

    Args:
      name: A name in the catalogue.
      root: The TFDS data folder. What is not yet complete lies in its `jax_mnist/incomplete`.
      source_dir: The folder of the original files, or None for the default; see `datasets.load`.

    Raises:
      DatasetError: TFDS cannot be imported, a source file is missing or damaged, or a download
        failed.
      Exception: A file could not be written; TFDS and array_record raise errors of many types.
    """
    try:
        import tensorflow_datasets  # noqa: F401
    except Exception as error:  # it raises more than ImportError where its libraries do not fit
        raise DatasetError(
            f"cannot prepare {name}, since tensorflow-datasets cannot be imported "
            f"({first_line(error)}): reinstall it"
        ) from error
    return read(name, root) or _prepare(name, root, source_dir)


def _decode(name: str, folder: Path) -> dict[str, Dataset]:
    """Reads all splits of a TFDS directory; array_record verifies a hash of every record."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    data = {}
    for split, count in CATALOGUE[name].counts.items():
        # TFDS would decode with Pillow too, but only after advising to install OpenCV.
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
        if not 0 <= labels.min() <= labels.max() <= 9:
            raise ValueError(f"{split} holds labels outside 0 to 9")
        data[split] = Dataset(images, labels)
    return data


def _prepare(name: str, root: Path, source_dir: files.PathLike | None) -> dict[str, Dataset]:
    import tensorflow_datasets as tfds

    source_dir = source_dir or CATALOGUE[name].packaged
    builder_class = _builder_class(name, download=source_dir is None)
    if source_dir is not None:
        source_dir = files.expand_user(source_dir)
        _verify(builder_class, source_dir)
    message = f"Preparing {name} in {root} (only once; this takes about ten seconds)"
    print(message, file=sys.stderr, flush=True)
    staging = root / "jax_mnist" / "incomplete"
    shutil.rmtree(staging, ignore_errors=True)  # what an interrupted process left
    try:
        tfds.disable_progress_bar()
        builder = builder_class(config=name.partition("/")[2] or None, data_dir=staging)
        config = tfds.download.DownloadConfig(manual_dir=source_dir, try_download_gcs=False)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints there
            builder.download_and_prepare(download_config=config, file_format="array_record")
        data = _decode(name, builder.data_path)  # only what can be read is moved into place
        folder = root / name / CATALOGUE[name].version
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(builder.data_path, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return data


def _builder_class(name: str, download: bool) -> Any:
    """Returns a subclass of TFDS's builder without the two steps that need TensorFlow.

    These are the extraction of archives and the encoding of images.
    """
    import tensorflow_datasets as tfds

    original: Any = getattr(tfds.image_classification, CATALOGUE[name].builder)

    class Builder(original, skip_registration=True):  # type: ignore[misc, call-arg]
        url_infos = original.url_infos  # TFDS looks for them beside the class's own module

        def _split_generators(self, dl_manager: Any) -> Any:
            def fetch(urls: Any) -> Any:
                archives = dl_manager.download(urls)
                if name != "emnist/digits":
                    return archives
                folder = Path(self.data_dir).parent / "unpacked"  # in the staging folder
                with zipfile.ZipFile(archives) as file:
                    members = [m for m in file.namelist() if m.startswith("gzip/emnist-digits-")]
                    file.extractall(folder, members)
                return str(folder)

            manager = types.SimpleNamespace(download_and_extract=fetch, extract=lambda path: path)
            if not download:
                return super()._split_generators(manager)
            names = ", ".join(info.filename for info in self.url_infos.values())
            advice = f"name a folder that holds {names} as source_dir"
            print(f"Downloading from {self.URL} (or {advice})", file=sys.stderr, flush=True)
            try:
                # Without a network, TFDS itself would retry for more than three minutes.
                urllib.request.urlopen(next(iter(self.url_infos)), timeout=10).close()
                return super()._split_generators(manager)
            except Exception as error:
                message = f"cannot download from {self.URL} ({first_line(error)}): {advice}"
                raise DatasetError(message) from error

        def _generate_examples(
            self, num_examples: int, data_path: Any, label_path: Any
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            images = idx.read_array(Path(data_path), 3)
            labels = idx.read_array(Path(label_path), 1)
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                file = io.BytesIO()
                Image.fromarray(image).save(file, "PNG", compress_level=1)
                yield i, {"image": file.getvalue(), "label": int(label)}

    Builder.name = name.partition("/")[0]
    return Builder


def _verify(builder_class: Any, source_dir: Path) -> None:
    """Raises `DatasetError` unless the source files have the SHA-256 registered by TFDS."""
    for url, info in builder_class.url_infos.items():
        path = source_dir / info.filename
        try:
            with path.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
            reason = None if checksum == info.checksum else "its SHA-256 is another"
        except OSError as error:
            reason = error.strerror
        if reason:
            raise DatasetError(f"cannot use {path} ({reason}): get it from {url}")
