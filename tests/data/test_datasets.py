"""The public functions: real MNIST, the cache, and what interrupted or failed processes leave."""

import hashlib
import io
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from idx_files import as_multiset, check_kmnist, files_below, read_mnist, shrink_kmnist
from tensorflow_datasets.core.utils import file_utils
from test_tfds_builder import COMPLETE, error_of

from jax_mnist.data import datasets, tfds_builder

LOAD = """
import hashlib, sys
from jax_mnist.data import datasets
print(*(name for name in ("jax", "tensorflow_datasets", "filelock") if name in sys.modules))
train, test = datasets.load("mnist", "train"), datasets.load("mnist", "test")
print(*(hashlib.sha256(array).hexdigest() for array in (*train, *test)))
print(*(name for name in ("tensorflow", "tensorflow_datasets") if name in sys.modules))
"""


def start_load(**environment):
    return subprocess.Popen(
        [sys.executable, "-c", LOAD],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Real MNIST, in the data folder that all tests share


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_are_those_of_the_idx_files_in_the_order_of_tfds(split):
    images, labels = datasets.load("mnist", split)
    true_images, true_labels = read_mnist(split)
    assert images.shape == (*true_images.shape, 1) and images.dtype == np.uint8
    assert labels.shape == true_labels.shape and labels.dtype == np.int32
    assert as_multiset(images, labels) == as_multiset(true_images, true_labels)
    first = {"train": [4, 1, 0, 7, 8, 1, 2, 7], "test": [2, 0, 4, 8, 7, 6, 0, 6]}
    assert labels[:8].tolist() == first[split]


def test_cached_load_imports_no_tfds():
    arrays = *datasets.load("mnist", "train"), *datasets.load("mnist", "test")
    out, err = start_load().communicate(timeout=100)
    assert err == ""
    assert out.split("\n") == ["", " ".join(hashlib.sha256(a).hexdigest() for a in arrays), "", ""]


def test_two_processes_prepare_real_mnist_once(tmp_path, thorough):
    if not thorough:
        pytest.skip("takes half a minute: --thorough")
    processes = [start_load(TFDS_DATA_DIR=str(tmp_path)) for _ in range(2)]
    (out_1, err_1), (out_2, err_2) = (p.communicate(timeout=300) for p in processes)
    assert [p.returncode for p in processes] == [0, 0], err_1 + err_2
    assert (err_1 + err_2).count("Preparing mnist") == 1
    assert out_1.splitlines()[1] == out_2.splitlines()[1]
    assert sorted([out_1.splitlines()[2], out_2.splitlines()[2]]) == ["", "tensorflow_datasets"]
    assert files_below(tmp_path) == [
        "jax_mnist/mnist-3.0.1.npz",
        "mnist/3.0.1/dataset_info.json",
        "mnist/3.0.1/features.json",
        "mnist/3.0.1/mnist-test.array_record-00000-of-00001",
        "mnist/3.0.1/mnist-train.array_record-00000-of-00001",
    ]


# A small KMNIST


def announce_decoding(monkeypatch):
    def decode(*args):
        print("Decoding", file=sys.stderr, flush=True)
        return original(*args)

    original = tfds_builder._decode
    monkeypatch.setattr(tfds_builder, "_decode", decode)


def load_when_told(source, data_dir, connection):
    """Loads in another process, and dies in the middle of it if told so."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink_kmnist(monkeypatch, source)
        announce_decoding(monkeypatch)
        connection.send("ready")
        if connection.recv() == "die":
            monkeypatch.setattr(tfds_builder, "_decode", lambda *_: die(connection))
        check_kmnist(data_dir, source)


def die(connection):
    connection.send("prepared")
    time.sleep(0.5)
    os._exit(9)  # as a kill does, without any clean-up


@pytest.mark.parametrize("word", ["load", "die"])
def test_processes_prepare_one_after_another_and_once(small, capfd, monkeypatch, word):
    announce_decoding(monkeypatch)
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    args = (small.served, small.data_dir, there)
    process = context.Process(target=load_when_told, args=args)
    process.start()
    assert here.recv() == "ready"
    here.send(word)
    if word == "die":
        assert here.recv() == "prepared"
        assert any((small.data_dir / "jax_mnist" / "incomplete").rglob("*.array_record*"))
    start = time.monotonic()
    small.check(small.served)
    waited = time.monotonic() - start
    process.join()
    assert files_below(small.data_dir) == COMPLETE
    printed = capfd.readouterr().err
    assert printed.count("Decoding") == 1  # the other process read the cache, or died
    prepared = printed.count("Preparing kmnist")
    if word == "die":
        assert process.exitcode == 9 and prepared == 2 and waited > 0.4
    else:
        assert process.exitcode == 0 and prepared == 1


def test_leftovers_of_an_interrupted_process_are_deleted(small):
    for name in ("incomplete/kmnist/3.0.1/features.json", ".kmnist-3.0.1.npz.1.tmp"):
        path = small.data_dir / "jax_mnist" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    small.check(small.served)
    assert files_below(small.data_dir) == COMPLETE


def test_tfds_lists_its_own_dataset_only(prepared):
    found = file_utils.list_datasets_in_data_dir(prepared.data_dir)
    assert [(f.dataset_name, f.config, str(f.version)) for f in found] == [
        ("kmnist", None, "3.0.1")
    ]


def test_damaged_cache_is_rebuilt_from_the_tfds_directory(prepared, caplog):
    good = prepared.cache.read_bytes()
    shutil.rmtree(prepared.served)
    prepared.cache.write_bytes(good[:30_000])
    caplog.clear()
    prepared.check()
    assert [r.getMessage() for r in caplog.records] == [
        f"{prepared.cache} is damaged or out of date and will be rewritten"
    ]
    with np.load(prepared.cache) as rebuilt, np.load(io.BytesIO(good)) as original:
        assert dict(rebuilt).keys() == dict(original).keys()
        for key in original:
            np.testing.assert_array_equal(rebuilt[key], original[key])


def test_cache_of_another_dataset_is_not_taken(prepared):
    shutil.copy(prepared.cache, prepared.cache.with_name("fashion_mnist-3.0.1.npz"))
    message = error_of("fashion_mnist", "train", prepared.data_dir, prepared.served)
    assert "another file" in message


@pytest.mark.parametrize(
    ("limit", "left"),
    [(5_000, []), (100_000, []), (250_000, [f for f in COMPLETE if not f.endswith("npz")])],
)
def test_full_disk(small, limit, left):
    """A limit on the size of files stands for a full disk: writes fail at some byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        message = error_of("kmnist", "train", small.data_dir, small.served)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in message and "data_dir" in message and "MB free" in message
    assert files_below(small.data_dir) == left
    small.check()


def test_bad_split_and_data_dir_that_cannot_be_written(tmp_path):
    assert error_of("mnist", "train[:x]", tmp_path).startswith("bad split 'train[:x]': ")
    assert not list(tmp_path.iterdir())
    file = tmp_path / "file"
    file.write_text("not a folder")
    message = error_of("mnist", "train", file)
    assert str(file) in message and "Not a directory" in message and "data_dir" in message


def test_default_data_dir_is_that_of_tfds(prepared, tmp_path, monkeypatch):
    def moved_to(folder):
        shutil.rmtree(prepared.served, ignore_errors=True)  # so nothing can be prepared
        folder.parent.mkdir(exist_ok=True)
        prepared.data_dir.rename(folder)
        prepared.data_dir = folder
        return len(datasets.load("kmnist", "test").labels)

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "named"))
    assert moved_to(tmp_path / "named") == 100
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert moved_to(tmp_path / "home" / "tensorflow_datasets") == 100
