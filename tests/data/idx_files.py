"""Small data sets of real digits, and comparisons that the tests of several modules share."""

import collections
import functools
import gzip
import hashlib
import importlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from jax_mnist.data import datasets, idx
from jax_mnist.data.catalogue import CATALOGUE

SOURCE = CATALOGUE["mnist"].packaged
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
ALL_FILES = sum(FILES.values(), ())
COUNTS = {"train": 300, "test": 100}  # so that the cache is larger than the padded shards


def tfds_can_be_imported():
    try:
        return bool(tfds.builder)  # imports it
    except Exception:  # protobuf has its own types
        return False


needs_tfds = pytest.mark.skipif(
    not tfds_can_be_imported(), reason="tensorflow-datasets cannot be imported"
)


@functools.cache
def read_mnist(split):
    """The images and labels of the packaged files."""
    images, labels = FILES[split]
    return idx.read_array(SOURCE / images, 3), idx.read_array(SOURCE / labels, 1)


def digits(split):
    """The first few images and labels of the packaged files."""
    return tuple(array[: COUNTS[split]] for array in read_mnist(split))


def idx_bytes(array):
    """An array of bytes in the format of the original files."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def url_info(path):
    """What TFDS registers about a file."""
    content = path.read_bytes()
    return checksums.UrlInfo(
        size=tfds.core.units.Size(len(content)),
        checksum=hashlib.sha256(content).hexdigest(),
        filename=path.name,
    )


def write_source(folder):
    """Writes the four files of a small data set."""
    for split, names in FILES.items():
        for name, array in zip(names, digits(split), strict=True):
            (folder / name).write_bytes(gzip.compress(idx_bytes(array)))


def shrink_kmnist(monkeypatch, source, url="http://localhost/"):
    """Makes the files in `source` pass for the originals of KMNIST."""
    module = importlib.import_module("tensorflow_datasets.image_classification.mnist")
    infos = {url + name: url_info(source / name) for name in ALL_FILES}
    monkeypatch.setattr(module.KMNIST, "URL", url)
    monkeypatch.setattr(module.KMNIST, "url_infos", infos)
    monkeypatch.setattr(module, "_TRAIN_EXAMPLES", COUNTS["train"])
    monkeypatch.setattr(module, "_TEST_EXAMPLES", COUNTS["test"])
    monkeypatch.setitem(CATALOGUE, "kmnist", CATALOGUE["kmnist"]._replace(counts=COUNTS))


def as_multiset(images, labels):
    return collections.Counter(zip((i.tobytes() for i in images), labels.tolist(), strict=True))


def check_kmnist(data_dir, source_dir=None):
    for split in ("train", "test"):
        part = datasets.load("kmnist", split, data_dir, source_dir)
        assert as_multiset(*part) == as_multiset(*digits(split))


def files_below(folder):
    """All files, without the lock, which the lock library may keep or delete."""
    paths = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return [path for path in paths if path != "jax_mnist/lock"]


COMPLETE = [
    "jax_mnist/kmnist-3.0.1.npz",
    "kmnist/3.0.1/dataset_info.json",
    "kmnist/3.0.1/features.json",
    "kmnist/3.0.1/kmnist-test.array_record-00000-of-00001",
    "kmnist/3.0.1/kmnist-train.array_record-00000-of-00001",
    "kmnist/3.0.1/label.labels.txt",
]


def error_of(*args):
    """The message of the DatasetError that a load must raise, in one line."""
    with pytest.raises(datasets.DatasetError) as error:
        datasets.load(*args)
    message = str(error.value)
    assert message and "\n" not in message
    return message


def flip(data, position):
    """The bytes with one bit changed."""
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)
