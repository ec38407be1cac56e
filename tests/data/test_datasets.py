"""The public functions: real MNIST, the cache, and what interrupted or failed processes leave."""

import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from idx_files import (
    COMPLETE,
    as_multiset,
    check_kmnist,
    error_of,
    files_below,
    read_mnist,
    shrink_kmnist,
)

from jax_mnist.data import datasets, tfds_builder

LOAD = """
import hashlib, sys
from jax_mnist.data import datasets
arrays = *datasets.load("mnist", "train"), *datasets.load("mnist", "test")
print(*(hashlib.sha256(array).hexdigest() for array in arrays))
print(*{"jax", "tensorflow", "tensorflow_datasets", "filelock"} & set(sys.modules))
"""

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
    result = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True)
    digests = " ".join(hashlib.sha256(array).hexdigest() for array in arrays)
    assert (result.stdout, result.stderr) == (f"{digests}\n\n", "")


# A small KMNIST


def test_whoever_loads_at_the_same_time_prepares_once(small, capfd):
    source = small.served.rename(small.served.with_name("copied by hand"))  # the server has none
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(small.check, [source] * 2))
    assert files_below(small.data_dir) == COMPLETE
    assert capfd.readouterr().err.count("Preparing kmnist") == 1


def die_while_loading(source, data_dir, connection):
    def die(*_):
        connection.send("prepared")
        time.sleep(0.5)
        os._exit(9)  # as a kill does, without any clean-up

    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink_kmnist(monkeypatch, source)
        monkeypatch.setattr(tfds_builder, "_decode", die)
        check_kmnist(data_dir, source)


def test_a_killed_process_is_waited_for_and_what_it_left_is_deleted(small):
    here, there = multiprocessing.Pipe()
    args = (small.served, small.data_dir, there)
    process = multiprocessing.get_context("spawn").Process(target=die_while_loading, args=args)
    process.start()
    assert here.recv() == "prepared"
    assert any((small.cache.parent / "incomplete").rglob("*.array_record*"))
    small.cache.with_name(f".{small.cache.name}.1.tmp").write_text("half")  # of another one
    start = time.monotonic()
    small.check(small.served)
    assert time.monotonic() - start > 0.4
    process.join()
    assert process.exitcode == 9 and files_below(small.data_dir) == COMPLETE


class Exploding:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_damaged_cache_is_rebuilt_from_the_tfds_directory(prepared, caplog):
    shutil.rmtree(prepared.served)
    content = prepared.cache.read_bytes()
    with np.load(prepared.cache) as archive:
        arrays = dict(archive)

    def write(images):  # which only the digest, and no checksum of the file, can tell
        np.savez(prepared.cache, **arrays | {"train_images": images})

    for damage in (
        lambda: write(arrays["train_images"] ^ 1),
        lambda: write(np.array([Exploding()], object)),
        lambda: prepared.cache.write_bytes(content[:30_000]),
    ):
        damage()
        caplog.clear()
        prepared.check()
        assert [record.getMessage() for record in caplog.records] == [
            f"{prepared.cache} is damaged or out of date and will be rewritten"
        ]
        assert prepared.cache.read_bytes() == content


def test_cache_of_another_dataset_is_not_taken(prepared):
    shutil.copy(prepared.cache, prepared.cache.with_name("fashion_mnist-3.0.1.npz"))
    message = error_of("fashion_mnist", "train", prepared.data_dir, prepared.served)
    assert "its SHA-256 is another" in message


@pytest.mark.parametrize("limit", [5_000, 100_000])
def test_full_disk(small, limit):
    """A limit on the size of files stands for a full disk: writes fail at some byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        message = error_of("kmnist", "train", small.data_dir, small.served)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in message and "data_dir" in message
    assert files_below(small.data_dir) == []
    small.check()


def is_a_file(tmp_path, patch):
    (tmp_path / "data").write_text("not a folder")


def without_tfds(tmp_path, patch):
    patch.setitem(sys.modules, "tensorflow_datasets", None)


def without_a_home(tmp_path, patch):
    patch.delenv("TFDS_DATA_DIR", raising=False)
    patch.setattr(os.path, "expanduser", lambda path: path)


@pytest.mark.parametrize(
    ("obstacle", "message"),
    [
        (is_a_file, r"cannot prepare .* in .*/data \(Not a directory\): as data_dir, name a"),
        (without_tfds, "cannot prepare .*, since tensorflow-datasets cannot be imported .*: rein"),
        (without_a_home, r"cannot prepare .* in /dev/null/~.* \(Not a directory\): as data_dir"),
    ],
)
def test_where_tfds_cannot_serve_the_packages_own_files_give_the_same_mnist(
    obstacle, message, tmp_path, monkeypatch, capsys
):
    expected = datasets.load("mnist", "test")
    obstacle(tmp_path, monkeypatch)
    data_dir = None if obstacle is without_a_home else tmp_path / "data"
    for _ in range(2):
        data = datasets.load("mnist", "test", data_dir)
        np.testing.assert_array_equal(data.images, expected.images)
        np.testing.assert_array_equal(data.labels, expected.labels, strict=True)
    (line,) = capsys.readouterr().err.splitlines()  # said once
    assert re.match(message, line) and line.endswith("the copy of mnist in this package is read")
    assert re.match(message, error_of("kmnist", "test", data_dir))


def test_a_tfds_folder_beside_which_nothing_can_be_written_is_read(prepared):
    prepared.cache.unlink()
    shutil.rmtree(prepared.data_dir / "jax_mnist")
    (prepared.data_dir / "jax_mnist").write_text("in the way")  # root may write anywhere
    prepared.check()


@pytest.mark.parametrize(
    ("variable", "folder"), [("TFDS_DATA_DIR", "a"), ("HOME", "a/tensorflow_datasets")]
)
def test_default_data_dir_is_that_of_tfds(prepared, tmp_path, monkeypatch, variable, folder):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "a"))
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    prepared.data_dir.rename(tmp_path / folder)
    shutil.rmtree(prepared.served)  # so nothing can be prepared
    assert len(datasets.load("kmnist", "test").labels) == 100
