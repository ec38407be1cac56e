"""Pictures of digits, of many sizes and kinds, become images like those of MNIST."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jax_mnist.data import datasets
from jax_mnist.inference import pictures

DRAWN = sorted((Path(__file__).parent / "digits").iterdir())


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)
def test_a_drawn_digit_fills_the_box_around_its_centre_of_mass(path):
    image = pictures.read(path)
    assert image.shape == (28, 28) and image.dtype == np.uint8 and image.max() == 255
    sides = [np.ptp(np.flatnonzero(image.any(axis))) + 1 for axis in (0, 1)]
    assert max(sides) == 20
    np.testing.assert_allclose(ndimage.center_of_mass(image), 14, atol=0.51)
    assert 0.05 < (image > 127).mean() < 0.35


def canvas(image, scale=5, top=37, left=61):
    """An image of MNIST, larger and off the centre of a larger one, in [0, 1]."""
    side = 28 * scale
    digit = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) / 255
    return np.pad(digit, ((top, 120 - top), (left, 150 - left)))


def test_images_of_mnist_come_back_nearly_as_they_are():
    images = datasets.load("mnist", "test[:40]").images[..., 0]
    distances = [
        np.abs(pictures.centre(canvas(image)).astype(float) - image).mean() for image in images
    ]
    assert np.mean(distances) < 12  # of 255; between neighbours in the list it is some 45
    assert max(distances) < 30


@pytest.fixture(scope="module")
def seven():
    """An image of MNIST."""
    return datasets.load("mnist", "test[:1]").images[0, :, :, 0]


@pytest.fixture(scope="module")
def picture(seven):
    """The image as a picture, light on dark."""
    return Image.fromarray((255 * canvas(seven)).astype(np.uint8))


def test_place_size_and_the_colours_of_ink_and_paper_do_not_matter(seven):
    digit = canvas(seven)
    expected = pictures.centre(digit).astype(float)
    y, x = np.mgrid[: digit.shape[0], : digit.shape[1]]
    for variant in (
        1 - digit,
        0.3 + 0.4 * digit,
        canvas(seven, top=90, left=5),
        canvas(seven, scale=9),
        np.pad(digit, 40),
        0.6 - 0.5 * digit + 0.3 * x / x.max() - 0.1 * y / y.max(),
    ):
        assert np.abs(pictures.centre(variant) - expected).mean() < 6


def on_nothing(mode, picture):
    """Light ink, transparent elsewhere."""
    ink = Image.new(mode, picture.size, "white")
    ink.putalpha(picture)
    return ink


KINDS = {
    "grey.png": lambda picture: picture,
    "colour.png": lambda picture: picture.convert("RGB"),
    "palette.png": lambda picture: picture.convert("P"),
    "print.jpg": lambda picture: picture.convert("CMYK"),
    "scanned.png": lambda picture: picture.convert("1", dither=Image.Dither.NONE),
    "dithered.png": lambda picture: picture.convert("1"),
    "16_bits.png": lambda picture: Image.fromarray(np.asarray(picture).astype(np.uint16) * 257),
    "transparent.png": lambda picture: on_nothing("RGBA", picture),
    "grey_and_transparent.png": lambda picture: on_nothing("LA", picture),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_is_read(tmp_path, picture, seven, name):
    KINDS[name](picture).save(tmp_path / name)
    image = pictures.read(tmp_path / name).astype(float)
    assert np.abs(image - pictures.centre(canvas(seven))).mean() < 8


def test_a_picture_that_lies_on_its_side_is_turned_and_damaged_exif_is_ignored(tmp_path, picture):
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=turned)
    picture.save(tmp_path / "damaged.jpg", exif=b"II*\0\x08\0")
    picture.save(tmp_path / "upright.jpg")
    upright = pictures.read(tmp_path / "upright.jpg").astype(int)
    np.testing.assert_array_equal(pictures.read(tmp_path / "damaged.jpg"), upright)
    np.testing.assert_allclose(pictures.read(tmp_path / "turned.jpg"), upright, atol=40)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "not a PNG or JPEG"),
        (b"GIF89a" + bytes(40), "not a PNG or JPEG"),
        (DRAWN[0].read_bytes()[:400], "or a damaged one"),
        (DRAWN[2].read_bytes()[:700], "or a damaged one"),
        (Image.new("L", (50, 50), 200), "no digit to be seen"),
        (Image.new("L", (2, 50)), "too small"),
        (Image.new("1", (40_000, 9_000)), "too large"),
    ],
)
def test_what_is_no_picture_of_a_digit_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "digit.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content.save(path)
    with pytest.raises(pictures.PictureError, match=message) as error:
        pictures.read(path)
    assert str(error.value).startswith(f"{str(path)!r}: ") and "\n" not in str(error.value)
