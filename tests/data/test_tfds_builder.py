"""TFDS directories are prepared from verified files, read back, and never damaged or changed."""

import gzip
import json
import shutil
import time
import urllib.request
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from idx_files import (
    ALL_FILES,
    COMPLETE,
    COUNTS,
    FILES,
    SOURCE,
    as_multiset,
    digits,
    error_of,
    files_below,
    flip,
    idx_bytes,
    url_info,
)
from tensorflow_datasets.core.utils import file_utils

from jax_mnist.data import datasets
from jax_mnist.data.catalogue import CATALOGUE


def check_that_tfds_reads(name, folder, data_dir, expected):
    for builder in (tfds.builder(name, data_dir=data_dir), tfds.builder_from_directory(folder)):
        assert builder.info.full_name == str(folder.relative_to(data_dir))
        source = builder.as_data_source("test")
        np.testing.assert_array_equal(np.stack([e["image"] for e in source]), expected.images)
        np.testing.assert_array_equal([e["label"] for e in source], expected.labels)
    (listed,) = file_utils.list_datasets_in_data_dir(data_dir)
    assert listed.dataset_name == name.partition("/")[0]


def test_download_is_a_directory_that_tfds_reads(small, capfd):
    small.check()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("Preparing kmnist") == printed.err.count("Downloading from http") == 1
    assert files_below(small.data_dir) == COMPLETE
    info = json.loads((small.folder / "dataset_info.json").read_text())
    assert info["name"] == "kmnist" and info["fileFormat"] == "array_record"
    expected = datasets.load("kmnist", "test", small.data_dir)
    check_that_tfds_reads("kmnist", small.folder, small.data_dir, expected)


def test_emnist_comes_in_one_archive(small, tmp_path, monkeypatch):
    path = small.served / "gzip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split in FILES:
            for kind, array in zip(("images-idx3", "labels-idx1"), digits(split), strict=True):
                name = f"gzip/emnist-digits-{split}-{kind}-ubyte.gz"
                archive.writestr(name, gzip.compress(idx_bytes(array)))
                archive.writestr(name.replace("digits", "letters"), b"")
    emnist = tfds.image_classification.EMNIST
    (config,) = (c for c in emnist.BUILDER_CONFIGS if c.name == "digits")
    monkeypatch.setattr(config, "train_examples", COUNTS["train"])
    monkeypatch.setattr(config, "test_examples", COUNTS["test"])
    info = CATALOGUE["emnist/digits"]._replace(counts=COUNTS)
    monkeypatch.setitem(CATALOGUE, "emnist/digits", info)
    monkeypatch.setattr(emnist, "URL", small.url + "gzip.zip")
    monkeypatch.setattr(emnist, "url_infos", {emnist.URL: url_info(path)})
    for data_dir, source_dir in ((tmp_path / "a", small.served), (tmp_path / "b", None)):
        for split in ("train", "test"):
            data = datasets.load("emnist/digits", split, data_dir, source_dir)
            assert as_multiset(*data) == as_multiset(*digits(split))
        assert len(files_below(data_dir)) == 5
        check_that_tfds_reads("emnist/digits", data_dir / "emnist/digits/3.1.0", data_dir, data)


def test_damaged_source_file(tmp_path):
    source = shutil.copytree(SOURCE, tmp_path / "source")
    file = source / "train-labels-idx1-ubyte.gz"
    file.write_bytes(flip(file.read_bytes(), 1000))
    message = error_of("mnist", "train", tmp_path / "data", source)
    assert message.startswith(f"cannot use {file} (its SHA-256 is another): get it from https://")
    file.unlink()
    message = error_of("mnist", "train", tmp_path / "data", source)
    assert message.startswith(f"cannot use {file} (No such file or directory): get it from")
    assert files_below(tmp_path / "data") == []


def test_no_network(tmp_path, monkeypatch, capfd):
    # Nothing listens on this port, so every download fails, whatever the machine can reach.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it has read them already
    start = time.monotonic()
    message = error_of("fashion_mnist", "train", tmp_path)
    assert time.monotonic() - start < 30  # TFDS itself would take more than three minutes
    assert message.startswith("cannot download from http") and "refused" in message
    printed = capfd.readouterr()
    assert printed.out == "" and "Downloading from http" in printed.err
    for text in (message, printed.err):
        assert "source_dir" in text and all(file in text for file in ALL_FILES)
    assert files_below(tmp_path) == []


def test_damaged_download(small):
    file = small.served / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes() + b"\0")
    message = error_of("kmnist", "train", small.data_dir)
    assert message.startswith("cannot download from http://127.0.0.1")
    assert "wrong checksum" in message and "source_dir" in message
    file.unlink()
    assert "404" in error_of("kmnist", "train", small.data_dir)
    assert files_below(small.data_dir) == []


def change(pattern, function):
    def damage(folder):
        (path,) = folder.glob(pattern)
        path.write_bytes(function(path.read_bytes()))

    return damage


DAMAGES = {
    "truncated": change("*train*", lambda data: data[:-2000]),
    "flipped": change("*test*", lambda data: flip(data, len(data) // 2)),
    "without_info": lambda folder: (folder / "dataset_info.json").unlink(),
    "without_a_shard": lambda folder: next(folder.glob("*test*")).unlink(),
    "as_tfrecord": change("*info.json", lambda data: data.replace(b"array_record", b"tfrecord")),
    "more_examples": change("*info.json", lambda data: data.replace(b'"300"', b'"301"')),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_unreadable_tfds_directory_stays_and_the_original_files_are_read(prepared, damage, caplog):
    damage(prepared.folder)
    damaged = {path: path.read_bytes() for path in prepared.folder.iterdir()}
    prepared.cache.unlink()
    caplog.clear()
    prepared.check(prepared.served)
    assert {path: path.read_bytes() for path in prepared.folder.iterdir()} == damaged
    assert set(files_below(prepared.data_dir)) <= set(COMPLETE)
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"cannot read {prepared.folder}") and "\n" not in message
