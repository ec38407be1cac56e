"""A cache file gives back what was written, or nothing."""

import numpy as np
import pytest

from jax_mnist.data import cache
from jax_mnist.data.types import Dataset


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return {
        split: Dataset(
            rng.integers(0, 256, (count, 28, 28, 1), np.uint8),
            rng.integers(0, 10, count, np.int32),
        )
        for split, count in (("train", 50), ("test", 20))
    }


@pytest.fixture
def path(tmp_path, data):
    cache.write(tmp_path / "cache.npz", "kmnist", data)
    return tmp_path / "cache.npz"


def test_what_was_written_is_read(path, data):
    for splits in ({"train"}, {"test"}, {"train", "test"}):
        found = cache.read(path, "kmnist", splits)
        assert found.keys() == splits
        for split, part in found.items():
            np.testing.assert_array_equal(part.images, data[split].images)
            np.testing.assert_array_equal(part.labels, data[split].labels)
            assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int32)


def test_a_missing_file_and_that_of_another_data_set_are_not_read(path):
    assert cache.read(path.with_name("other.npz"), "kmnist", ["train"]) is None
    assert cache.read(path, "fashion_mnist", ["train"]) is None


def test_temporary_files_of_a_killed_process_are_deleted(path, data):
    path.with_name(f".{path.name}.12345.tmp").write_text("half")
    other = path.with_name(".other.npz.12345.tmp")
    other.write_text("half")
    cache.write(path, "kmnist", data)
    assert sorted(path.parent.iterdir()) == sorted([path, other])


def flip_image(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"train_images.npy") + 20_000] ^= 1
    path.write_bytes(content)


def rewrite(change):
    """Changes the images in a way that only the digest, and no checksum of the file, can tell."""

    def damage(path):
        with np.load(path) as archive:
            arrays = dict(archive)
        arrays["train_images"] = change(arrays["train_images"])
        np.savez(path, **arrays)

    return damage


class Exploding:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


DAMAGES = {
    "flip_image": flip_image,
    "flip_with_right_crc": rewrite(lambda images: images ^ 1),
    "drop_image": rewrite(lambda images: images[1:]),
    "pickle_images": rewrite(lambda images: np.array([Exploding()], object)),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:30_000]),
    "not_an_archive": lambda path: path.write_bytes(b"not an archive"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_not_read(path, damage):
    damage(path)
    assert cache.read(path, "kmnist", ["train"]) is None
