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
    COUNTS,
    FILES,
    SOURCE,
    as_multiset,
    digits,
    files_below,
    idx_bytes,
    url_info,
)

from jax_mnist.data import datasets
from jax_mnist.data.catalogue import CATALOGUE

COMPLETE = [
    "jax_mnist/kmnist-3.0.1.npz",
    "kmnist/3.0.1/dataset_info.json",
    "kmnist/3.0.1/features.json",
    "kmnist/3.0.1/kmnist-test.array_record-00000-of-00001",
    "kmnist/3.0.1/kmnist-train.array_record-00000-of-00001",
    "kmnist/3.0.1/label.labels.txt",
]


def error_of(*args):
    """Returns the message of the DatasetError that a load must raise."""
    with pytest.raises(datasets.DatasetError) as caught:
        datasets.load(*args)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def check_that_tfds_reads(name, full_name, folder, data_dir, expected):
    for builder in (
        tfds.builder(name, data_dir=data_dir),
        tfds.builder_from_directory(folder),
    ):
        assert builder.info.full_name == full_name
        source = builder.as_data_source("test")
        np.testing.assert_array_equal(np.stack([e["image"] for e in source]), expected.images)
        np.testing.assert_array_equal([e["label"] for e in source], expected.labels)


def test_download_is_a_directory_that_tfds_reads(small, capfd):
    small.check()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("Preparing kmnist") == printed.err.count("Downloading from http") == 1
    assert files_below(small.data_dir) == COMPLETE
    info = json.loads((small.folder / "dataset_info.json").read_text())
    assert info["name"] == "kmnist" and info["fileFormat"] == "array_record"
    expected = datasets.load("kmnist", "test", small.data_dir)
    check_that_tfds_reads("kmnist", "kmnist/3.0.1", small.folder, small.data_dir, expected)


def test_source_dir(small):
    source = small.served.rename(small.served.with_name("copied by hand"))  # the server has none
    small.check(source)
    assert files_below(small.data_dir) == COMPLETE


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
    folder = "emnist/digits/3.1.0"
    for data_dir, source_dir in ((tmp_path / "a", small.served), (tmp_path / "b", None)):
        for split in ("train", "test"):
            data = datasets.load("emnist/digits", split, data_dir, source_dir)
            assert as_multiset(*data) == as_multiset(*digits(split))
        assert files_below(data_dir) == [
            f"{folder}/dataset_info.json",
            *(f"{folder}/emnist-{s}.array_record-00000-of-00001" for s in ("test", "train")),
            f"{folder}/features.json",
            "jax_mnist/emnist-digits-3.1.0.npz",
        ]
    check_that_tfds_reads("emnist/digits", folder, data_dir / folder, data_dir, data)
    damaged = bytearray(path.read_bytes())
    damaged[40] ^= 1
    path.write_bytes(damaged)
    message = error_of("emnist/digits", "test", tmp_path / "other", small.served)
    assert "gzip.zip is damaged or another file" in message and "get it from http" in message


def test_damaged_source_file(tmp_path):
    source = shutil.copytree(SOURCE, tmp_path / "source")
    file = source / "train-labels-idx1-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    message = error_of("mnist", "train", tmp_path / "data", source)
    assert str(file) in message and "damaged" in message and "get it from https://" in message
    file.unlink()
    message = error_of("mnist", "train", tmp_path / "data", source)
    assert str(file) in message and "No such file" in message
    assert files_below(tmp_path / "data") == []


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_files_of_another_dataset_are_refused(name, tmp_path):
    message = error_of(name, "train", tmp_path, SOURCE)
    assert "another file" in message and "get it from http://" in message
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist", "emnist/digits"])
def test_no_network(name, tmp_path, monkeypatch, capfd):
    # Nothing listens on this port, so every download fails, whatever the machine can reach.
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it has read them already
    start = time.monotonic()
    message = error_of(name, "train", tmp_path)
    assert time.monotonic() - start < 30  # TFDS itself would take more than three minutes
    assert message.startswith("cannot download from http") and "refused" in message
    files = ["gzip.zip"] if name == "emnist/digits" else ALL_FILES
    assert "source_dir" in message and all(file in message for file in files)
    announced = capfd.readouterr()
    assert announced.out == ""
    assert "Downloading from http" in announced.err and "source_dir" in announced.err
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


def truncate(folder):
    path = next(folder.glob("*train*"))
    path.write_bytes(path.read_bytes()[:-2000])


def flip(folder):
    path = next(folder.glob("*test*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_info(folder):
    (folder / "dataset_info.json").unlink()


def lose_shard(folder):
    next(folder.glob("*test*")).unlink()


def change_info(before, after):
    def change(folder):
        path = folder / "dataset_info.json"
        path.write_text(path.read_text().replace(before, after))

    return change


DAMAGES = {
    "truncate": truncate,
    "flip": flip,
    "lose_info": lose_info,
    "lose_shard": lose_shard,
    "as_tfrecord": change_info("array_record", "tfrecord"),
    "more_examples": change_info('"300"', '"301"'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_unreadable_tfds_directory_stays_and_ours_is_made_beside_it(prepared, damage, caplog):
    before = {p: p.read_bytes() for p in prepared.folder.iterdir()}
    damage(prepared.folder)
    damaged = {p: p.read_bytes() for p in prepared.folder.iterdir()}
    assert damaged != before
    prepared.cache.unlink()
    caplog.clear()
    prepared.check(prepared.served)
    assert {p: p.read_bytes() for p in prepared.folder.iterdir()} == damaged
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert message.startswith(f"cannot read {prepared.folder}") and "\n" not in message
    source = tfds.builder_from_directory(prepared.own).as_data_source("train")
    assert len(source) == COUNTS["train"]


def test_the_directory_beside_is_read_again_and_rebuilt_if_it_is_damaged_too(prepared):
    truncate(prepared.folder)
    prepared.cache.unlink()
    prepared.check(prepared.served)
    served = prepared.served.rename(prepared.served.with_name("away"))
    prepared.cache.unlink()
    prepared.check()  # there is no source to prepare it from
    truncate(prepared.own)
    prepared.cache.unlink()
    prepared.check(served)
    source = tfds.builder_from_directory(prepared.own).as_data_source("train")
    assert len(source) == COUNTS["train"]
