"""A folder of pictures is a data set: SPLIT/LABEL/*.png or .jpg."""

import functools
import os
import re

import numpy as np
import pytest
from idx_files import digits, files_below
from PIL import Image

from jax_mnist import config as config_lib
from jax_mnist.data import datasets, image_folder
from jax_mnist.runs import loop

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write(folder, count=60, change=lambda image: image, suffix="png"):
    """Writes real digits as pictures, in folders named after them."""
    for split in ("train", "test"):
        images, labels = digits(split)
        for number, (image, label) in enumerate(zip(images[:count], labels, strict=False)):
            path = folder / split / NAMES[label] / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            change(Image.fromarray(image)).save(path)
    return folder


def by_pixels(images, labels):
    return sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))


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
        true_images, true_labels = (array[:60] for array in digits(split))
        found = [NAMES.index(names[label]) for label in labels]
        assert by_pixels(images, found) == by_pixels(true_images, true_labels)
    train, test = capsys.readouterr().err.splitlines()
    assert train.startswith(f"{folder / 'train'}: 60 pictures (eight ")
    assert test.startswith(f"{folder / 'test'}: 60 pictures (eight ")


def test_a_part_of_a_split_holds_every_class_and_two_parts_make_the_whole(load):
    first, second, whole = load("train[:70%]"), load("train[70%:]"), load("train")
    assert len(first.labels) == 42 and set(first.labels) == set(range(10))
    np.testing.assert_array_equal(np.concatenate([first.images, second.images]), whole.images)


def test_decoded_pictures_are_kept_until_one_changes(load, folder, tmp_path, monkeypatch, caplog):
    whole = load("all")
    read = image_folder.read
    monkeypatch.setattr(image_folder, "read", None)  # would be an error
    np.testing.assert_array_equal(load("all").images, whole.images)
    (cached,) = files_below(tmp_path / "data")
    monkeypatch.setattr(image_folder, "read", read)
    path = next((folder / "train" / "two").iterdir())
    Image.new("L", (28, 28), 77).save(path)
    changed = load("all")
    assert (changed.images != whole.images).any((1, 2, 3)).sum() == 1
    assert "out of date and will be rewritten" in caplog.text
    path.unlink()
    assert len(load("all").labels) == 119
    assert files_below(tmp_path / "data") == [cached]


def by_name(folder):
    pictures = image_folder.find(folder)
    images = image_folder.read(pictures)["test"].images.astype(int)
    named = zip(pictures.paths["test"], images, strict=True)
    return np.stack([image for _, image in sorted((int(p.stem), i.tolist()) for p, i in named)])


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
    other = write(tmp_path / "other", change=change, suffix=suffix)
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


def test_a_config_names_a_folder_of_pictures(folder, tmp_path):
    config = config_lib.base()
    config.update(dataset=str(folder), data_dir=str(tmp_path), batch_size=32)
    config_lib.check(config)
    train, validation = loop.load(config)
    assert len(train.labels) == len(validation.labels) == 60


def ten_more(folder):
    for name in ("ten", "eleven"):
        (folder / "test" / name).mkdir()
        Image.new("L", (28, 28)).save(folder / "test" / name / "a.png")


def not_a_picture(folder):
    (folder / "train" / "two" / "a.png").write_text("not a picture")


def long_name(folder):
    (folder / "train" / "two").rename(folder / "train" / ("x" * 65))


def no_test(folder):
    os.rename(folder / "test", folder / ".test")


def flat(folder):
    for split in ("train", "test"):
        for label in (folder / split).iterdir():
            for path in label.iterdir():
                path.rename(label.parent / f"{label.name}-{path.name}")
            label.rmdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (ten_more, "12 labels, from 'eight' to 'zero': the network has 10 classes"),
        (not_a_picture, "a.png': not a PNG or JPEG picture, or a damaged one: replace or remove"),
        (long_name, "cannot be a label: rename it to at most 64 printable characters"),
        (no_test, "bad split 'test': the splits are train, not 'test'"),
        (flat, "nor pictures: name a folder of IDX files, or one with pictures as SPLIT/LABEL/"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(load, folder, damage, message):
    damage(folder)
    with pytest.raises(datasets.DatasetError, match=re.escape(message)) as error:
        load("test")
    assert "\n" not in str(error.value)
