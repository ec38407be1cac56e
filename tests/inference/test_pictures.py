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
    large = np.zeros((28 * scale + 120, 28 * scale + 150))
    large[top : top + 28 * scale, left : left + 28 * scale] = (
        np.asarray(Image.fromarray(image).resize((28 * scale,) * 2, Image.Resampling.BICUBIC)) / 255
    )
    return large


def test_images_of_mnist_come_back_nearly_as_they_are():
    images = datasets.load("mnist", "test[:40]").images[..., 0]
    distances = [
        np.abs(pictures.centre(canvas(image)).astype(float) - image).mean() for image in images
    ]
    assert np.mean(distances) < 12  # of 255; between neighbours in the list it is some 45
    assert max(distances) < 30


def test_place_size_and_the_colours_of_ink_and_paper_do_not_matter():
    image = datasets.load("mnist", "test[:1]").images[0, :, :, 0]
    expected = pictures.centre(canvas(image)).astype(float)
    variants = [
        1 - canvas(image),
        0.3 + 0.4 * canvas(image),
        canvas(image, top=90, left=5),
        canvas(image, scale=9),
        np.pad(canvas(image), 40),
    ]
    y, x = np.mgrid[: canvas(image).shape[0], : canvas(image).shape[1]]
    variants.append(0.6 - 0.5 * canvas(image) + 0.3 * x / x.max() - 0.1 * y / y.max())
    for variant in variants:
        assert np.abs(pictures.centre(variant) - expected).mean() < 6


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "dithered", "I;16", "LA", "CMYK"])
def test_every_kind_of_picture_is_read(tmp_path, mode):
    image = datasets.load("mnist", "test[:1]").images[0, :, :, 0]
    picture = Image.fromarray((255 * np.clip(canvas(image), 0, 1)).astype(np.uint8))
    suffix = "jpg" if mode == "CMYK" else "png"
    if mode == "I;16":
        made = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):  # light ink on nothing
        made = Image.new(mode, picture.size, 255 if mode == "LA" else (255, 255, 255))
        made.putalpha(picture)
    elif mode == "dithered":
        made = picture.convert("1")
    else:
        made = picture.convert(mode, dither=Image.Dither.NONE)  # "1" as scanners cut it
    made.save(tmp_path / f"digit.{suffix}")
    read = pictures.read(tmp_path / f"digit.{suffix}").astype(float)
    assert np.abs(read - pictures.centre(canvas(image))).mean() < 8


def test_a_picture_that_lies_on_its_side_is_turned(tmp_path):
    image = datasets.load("mnist", "test[:1]").images[0, :, :, 0]
    picture = Image.fromarray((255 * np.clip(canvas(image), 0, 1)).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "digit.jpg", exif=turned)
    picture.save(tmp_path / "upright.jpg")
    np.testing.assert_allclose(
        pictures.read(tmp_path / "digit.jpg").astype(float),
        pictures.read(tmp_path / "upright.jpg"),
        atol=40,
    )


def test_a_picture_with_damaged_exif_is_read_as_it_lies(tmp_path):
    image = datasets.load("mnist", "test[:1]").images[0, :, :, 0]
    picture = Image.fromarray((255 * np.clip(canvas(image), 0, 1)).astype(np.uint8))
    picture.save(tmp_path / "sound.png")
    picture.save(tmp_path / "digit.png", exif=b"II*\0\x08\0")
    np.testing.assert_array_equal(
        pictures.read(tmp_path / "digit.png"), pictures.read(tmp_path / "sound.png")
    )


def blank():
    return Image.new("L", (50, 50), 200)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "not a PNG or JPEG"),
        (b"GIF89a" + bytes(40), "not a PNG or JPEG"),
        (DRAWN[0].read_bytes()[:400], "or a damaged one"),
        (DRAWN[2].read_bytes()[:700], "or a damaged one"),
        (blank(), "no digit to be seen"),
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
