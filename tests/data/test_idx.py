"""Folders of IDX files are read, described and validated."""

import gzip
import multiprocessing

import numpy as np
import pytest
from idx_files import FILES, SOURCE, error_of, flip, idx_bytes, read_mnist

from jax_mnist.data import catalogue, datasets, idx


def test_a_folder_of_idx_files_is_a_data_set(idx_folder, capsys):
    folder = str(idx_folder)
    train = datasets.load(folder, "train")
    assert train.images.shape == (50, 28, 28, 1) and train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32 and train.labels.tolist() == list(range(10)) * 5
    part = datasets.load(folder, "train[80%:]+test[:5]")
    np.testing.assert_array_equal(part.images[:10], train.images[40:])
    assert part.labels.tolist() == [*range(10), *range(5)]
    of_train, of_test = (
        f"{folder}/{split}: {10 * each} images ({', '.join(f'{n} {each}' for n in range(10))})"
        for split, each in (("train", 5), ("test", 2))
    )
    assert capsys.readouterr().err.splitlines() == [of_train, of_test]
    assert datasets.label_names(folder) == tuple("0123456789")
    assert "beyond the 20 examples of test" in error_of(folder, "test[:21]")


def test_a_worker_process_prints_no_summary(idx_folder, capfd):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=datasets.load, args=(str(idx_folder), "all"))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_dot_before_the_format_is_accepted(idx_folder, end):
    expected = idx.read_split(idx_folder, "train")
    path = idx_folder / "train-images-idx3-ubyte.gz"
    data = path.read_bytes() if end else gzip.decompress(path.read_bytes())
    path.unlink()
    (idx_folder / "train-images-idx3-ubyte").mkdir()  # some programs unpack into such a folder
    (idx_folder / f"train-images.idx3-ubyte{end}").write_bytes(data)
    np.testing.assert_array_equal(idx.read_split(idx_folder, "train").images, expected.images)


def test_the_packaged_files_are_recognised(capsys):
    data = datasets.load(str(SOURCE), "all")
    images, labels = map(np.concatenate, zip(*map(read_mnist, FILES), strict=True))
    np.testing.assert_array_equal(data.images[..., 0], images)
    np.testing.assert_array_equal(data.labels, labels)
    train, test = capsys.readouterr().err.splitlines()
    assert train.endswith(" 9 5,949), identical to the original mnist")
    assert test.endswith(" 9 1,009), identical to the original mnist")


def test_a_folder_of_known_images_has_their_label_names(monkeypatch):
    mnist, fashion = (catalogue.CATALOGUE[name] for name in ("mnist", "fashion_mnist"))
    monkeypatch.setitem(catalogue.CATALOGUE, "mnist", mnist._replace(contents=()))
    others = fashion._replace(contents=mnist.contents)
    monkeypatch.setitem(catalogue.CATALOGUE, "fashion_mnist", others)
    assert datasets.label_names(str(SOURCE)) == fashion.label_names


# Byte 9 of a gzip file names a system, and 4 to 7 a time: nothing depends on them.
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: flip(data, 2),
        lambda data: data[:-3] + b"\xc8" + data[-2:],  # in the checksum, or a label of 200
        lambda data: data + b"x",
    ],
)
def test_a_damaged_idx_file_is_found(idx_folder, name, damage):
    path = idx_folder / name
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in error_of(str(idx_folder), "all")


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
    assert message in error_of(str(idx_folder), "all")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_header_that_announces_many_bytes_takes_no_memory(tmp_path, suffix):
    header = bytes([0, 0, 8, 3]) + np.array([2**31, 28, 28], ">u4").tobytes()
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(header) if suffix else header)
    with pytest.raises(datasets.DatasetError, match="too small for the 1,683,627,180,032 bytes"):
        idx.read_array(path, 3)
