"""Folders of IDX files are read, described and validated."""

import gzip
import hashlib
import multiprocessing
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from idx_files import ALL_FILES, FILES, SOURCE, idx_bytes, read_mnist

from jax_mnist.data import catalogue, datasets, idx, tfds_builder


def test_a_folder_of_idx_files_is_a_data_set(idx_folder, capsys):
    train = datasets.load(str(idx_folder), "train")
    assert train.images.shape == (50, 28, 28, 1) and train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32 and train.labels.tolist() == list(range(10)) * 5
    part = datasets.load(str(idx_folder), "train[80%:]+test[:5]")
    np.testing.assert_array_equal(part.images[:10], train.images[40:])
    assert part.labels.tolist() == [*range(10), *range(5)]
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 3  # one line of the first load, two of the second
    content = train.images.tobytes() + train.labels.astype(np.uint8).tobytes()
    assert printed[0] == (
        f"{idx_folder / 'train-images-idx3-ubyte.gz'}: 50 images of 28x28 in 10 classes, 5 images "
        "in each; sizes and one gzip checksum verified; "
        f"SHA-256 of the contents: {hashlib.sha256(content).hexdigest()}"
    )
    assert printed[1] == printed[0] and "t10k-images-idx3-ubyte.gz: 20 images" in printed[2]
    assert datasets.label_names(str(idx_folder)) == tuple("0123456789")
    with pytest.raises(datasets.DatasetError, match="beyond the 20 examples of test"):
        datasets.load(str(idx_folder), "test[:21]")


def test_a_worker_process_prints_no_summary(idx_folder, capfd):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=datasets.load, args=(str(idx_folder), "all"))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_dot_before_the_format_is_accepted(idx_folder, end):
    expected = idx.read_split(idx_folder, "train").data
    path = idx_folder / "train-images-idx3-ubyte.gz"
    data = path.read_bytes() if end else gzip.decompress(path.read_bytes())
    path.unlink()
    (idx_folder / "train-images-idx3-ubyte").mkdir()  # some programs unpack into such a folder
    (idx_folder / f"train-images.idx3-ubyte{end}").write_bytes(data)
    found = idx.read_split(idx_folder, "train").data
    np.testing.assert_array_equal(found.images, expected.images)


@pytest.mark.parametrize("split", FILES)
def test_the_packaged_files_are_recognised(split):
    part = idx.read_split(SOURCE, split)
    images, labels = read_mnist(split)
    np.testing.assert_array_equal(part.data.images[..., 0], images)
    np.testing.assert_array_equal(part.data.labels, labels)
    assert part.summary.endswith("verified; identical to the original mnist")


def test_a_folder_of_known_images_has_their_label_names(idx_folder, monkeypatch):
    info = catalogue.CATALOGUE["fashion_mnist"]
    contents = (idx.read_split(idx_folder, "test").sha256,)
    monkeypatch.setitem(catalogue.CATALOGUE, "fashion_mnist", info._replace(contents=contents))
    assert datasets.label_names(str(idx_folder)) == info.label_names


DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_is_the_original(tmp_path):
    for split in FILES:
        assert idx.read_split(DEBIAN, split).summary.endswith("the original fashion_mnist")
    # Debian's gzip files lack the time and the name of the original ones. With them, they have the
    # checksums that TFDS registers, and so the contents.
    for file in ALL_FILES:
        time = {"train": 1504176606, "t10k-": 1504176627}[file[:5]]
        head = b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + b"\0\3" + file[:-3].encode()
        (tmp_path / file).write_bytes(head + b"\0" + (DEBIAN / file).read_bytes()[10:])
    builder = tfds_builder._builder_class("fashion_mnist", download=False)
    tfds_builder._verify(builder, tmp_path, "")


# Byte 9 of a gzip file names a system, and 4 to 7 a time: nothing depends on them.
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:2] + bytes([data[2] ^ 1]) + data[3:],
        lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        lambda data: data + b"x",
    ],
)
def test_a_damaged_idx_file_is_found(idx_folder, name, damage):
    path = idx_folder / name
    data = damage(path.read_bytes())
    expected = re.escape(str(path))
    if name.startswith("t10k") and len(data) == 28 and data[2] == 8:
        # A plain file has no checksum, so a damaged label is found only if it is out of range.
        data, expected = data[:-1] + bytes([200]), "holds the label 200"
    path.write_bytes(data)
    with pytest.raises(datasets.DatasetError, match=expected) as error:
        datasets.load(str(idx_folder), "all")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "train-labels-idx1-ubyte",
            np.zeros(49, np.uint8),
            "holds 50 images, but train-labels-idx1-ubyte holds 49 labels",
        ),
        ("t10k-labels-idx1-ubyte", np.full(20, 10, np.uint8), "holds the label 10"),
        ("t10k-images-idx3-ubyte", np.zeros((20, 32, 32), np.uint8), "images of 32x32"),
        ("t10k-images-idx3-ubyte", np.zeros((20, 784), np.uint8), "not that of bytes in 3"),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(idx_folder, name, array, message):
    (idx_folder / f"{name}.gz").unlink(missing_ok=True)
    (idx_folder / name).write_bytes(idx_bytes(array))
    with pytest.raises(datasets.DatasetError, match=message):
        datasets.load(str(idx_folder), "all")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_header_that_announces_many_bytes_takes_no_memory(tmp_path, suffix):
    header = bytes([0, 0, 8, 3]) + np.array([2**31, 28, 28], ">u4").tobytes()
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(header) if suffix else header)
    with pytest.raises(datasets.DatasetError, match="too small for the 1,683,627,180,032 bytes"):
        idx.read_array(path, 3)


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(datasets.DatasetError, match="holds neither train-images-idx3-ubyte nor"):
        datasets.load(str(tmp_path), "train")
