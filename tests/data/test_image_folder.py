"""A folder of pictures is a data set: SPLIT/LABEL/*.png or .jpg."""

import functools

import numpy as np
import pytest
from idx_files import as_multiset, digits, error_of, files_below
from PIL import Image

from jax_mnist.data import datasets, image_folder

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write(folder, change=lambda image: image, suffix="png"):
    """Writes real digits as pictures, in folders named after them."""
    for split in ("train", "test"):
        images, labels = digits(split)
        for number, (image, label) in enumerate(zip(images[:60], labels, strict=False)):
            path = folder / split / NAMES[label] / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            change(Image.fromarray(image)).save(path)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "own")


@pytest.fixture
def load(folder, tmp_path):
    return functools.partial(datasets.load, str(folder), data_dir=tmp_path / "data")


def test_pictures_of_28x28_are_read_as_they_are(load, folder, capsys):
    names = datasets.label_names(str(folder))
    assert names == tuple(sorted(NAMES))
    for split in ("train", "test"):
        images, labels = load(split)
        assert images.shape == (60, 28, 28, 1) and images.dtype == np.uint8
        assert labels.dtype == np.int32
        numbers = np.array([NAMES.index(names[label]) for label in labels])
        assert as_multiset(images, numbers) == as_multiset(*(a[:60] for a in digits(split)))
    train, test = capsys.readouterr().err.splitlines()
    assert train.startswith(f"{folder / 'train'}: 60 images (eight ")
    assert test.startswith(f"{folder / 'test'}: 60 images (eight ")


def test_a_part_of_a_split_holds_every_class_and_two_parts_make_the_whole(load):
    first, second, whole = load("train[:70%]"), load("train[70%:]"), load("train")
    assert len(first.labels) == 42 and set(first.labels) == set(range(10))
    np.testing.assert_array_equal(np.concatenate([first.images, second.images]), whole.images)


def test_decoded_pictures_are_kept_until_one_changes(load, folder, tmp_path, monkeypatch, caplog):
    whole = load("all")
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "read", pytest.fail)
        np.testing.assert_array_equal(load("all").images, whole.images)
    (cache,) = files_below(tmp_path / "data")
    path = next((folder / "train" / "two").iterdir())
    Image.new("L", (28, 28), 77).save(path)
    assert (load("all").images != whole.images).any((1, 2, 3)).sum() == 1
    assert "out of date and will be rewritten" in caplog.text
    path.unlink()
    assert len(load("all").labels) == 119
    assert files_below(tmp_path / "data") == [cache]


def by_name(folder):
    paths = image_folder.find(folder)
    images = image_folder.read(paths)["test"].images.astype(int)
    return images[np.argsort([int(path.stem) for path in paths["test"]])]


@pytest.mark.parametrize(
    ("change", "suffix", "tolerance"),
    [
        (lambda image: image.point(lambda level: 255 - level), "png", 0),  # dark on light
        (lambda image: image.convert("RGB").resize((84, 84), Image.Resampling.BOX), "PNG", 10),
        (lambda image: image.resize((112, 112), Image.Resampling.BOX), "jpeg", 10),
    ],
)
def test_other_sizes_colours_and_backgrounds_become_those_of_mnist(
    folder, tmp_path, change, suffix, tolerance
):
    other = write(tmp_path / "other", change, suffix)
    distances = np.abs(by_name(other) - by_name(folder)).mean((1, 2, 3))
    assert distances.max() <= tolerance  # of 255; between different digits it is some 45


def test_fewer_classes_leave_names_unused(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        path = tmp_path / "own" / "train" / name / "1.jpg"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 30), (200 * number, 0, 0)).save(path)
    names = datasets.label_names(str(tmp_path / "own"))
    assert names[:3] == ("cat", "dog", "unused 2") and len(set(names)) == 10
    assert sorted(datasets.load(str(tmp_path / "own"), "train", tmp_path).labels) == [0, 1]


def add_two_labels(folder):
    for name in ("ten", "eleven"):
        (folder / "test" / name).mkdir()
        Image.new("L", (28, 28)).save(folder / "test" / name / "a.png")


def remove_labels(folder):
    for path in folder.glob("*/*/*"):
        path.rename(path.parents[1] / f"{path.parent.name}-{path.name}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (add_two_labels, "12 labels, from 'eight' to 'zero': the network has 10 classes"),
        (
            lambda folder: (folder / "train" / "two" / "a.png").write_text("not a picture"),
            "a.png': not a PNG or JPEG picture, or a damaged one: replace or remove",
        ),
        (
            lambda folder: (folder / "train" / "two").rename(folder / "train" / ("x" * 65)),
            "cannot be a label: rename it to at most 64 printable characters",
        ),
        (
            lambda folder: (folder / "test").rename(folder / ".test"),
            "bad split 'test': the splits are train, not 'test'",
        ),
        (remove_labels, "neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz, nor pict"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(folder, tmp_path, damage, message):
    damage(folder)
    assert message in error_of(str(folder), "test", tmp_path / "data")
