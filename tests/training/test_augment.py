"""The augmentations against SciPy, Pillow and hand-computed cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from rounding import Rounded, assert_close

from jax_mnist.data import datasets
from jax_mnist.training import augment


def picture(height=28, width=28, seed=0):
    """A smooth random picture in [0, 1] that reaches the border."""
    noise = np.random.default_rng(seed).random((height, width))
    smooth = scipy.ndimage.gaussian_filter(noise, 1.5)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return smooth.astype(np.float32)[:, :, None]


affine = jax.jit(augment.affine)
random_affines = jax.jit(jax.vmap(augment.random_affine, in_axes=(0, *[None] * 5)))


def test_constants_are_mean_and_deviation_in_float64():
    images = np.random.default_rng(0).integers(0, 256, (2500, 28, 28, 1), np.uint8)
    images[:700] = 3
    pixels = images.astype(np.float64) / 255
    actual = augment.normalization_of(images)
    assert actual == (round(pixels.mean(), 4), round(pixels.std(), 4))
    assert all(type(value) is float for value in actual)
    mnist = datasets.load("mnist", "train").images
    assert augment.normalization_of(mnist) == augment.MNIST == (0.1307, 0.3081)


@pytest.mark.parametrize("factor", [0.0, 0.4, 2.5])
@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (augment.adjust_brightness, ImageEnhance.Brightness),
        (augment.adjust_contrast, ImageEnhance.Contrast),
    ],
)
def test_jitter_is_pillows_within_its_rounding(ours, pillows, factor):
    levels = (picture() * 255).round().astype(np.uint8)[:, :, 0]
    expected = np.asarray(pillows(Image.fromarray(levels)).enhance(factor), float)
    actual = 255 * np.asarray(ours(levels[:, :, None] / 255.0, factor))[:, :, 0]
    assert np.abs(actual - expected).max() <= 1.5  # Pillow rounds the mean and cuts the result


def test_color_jitter_takes_both_orders_and_stays_in_range():
    """The order matters where the first of the two clips."""
    image = np.array([[[0.0], [1.0], [1.0], [1.0]]], np.float32)
    keys = jax.random.split(jax.random.key(0), 200)
    jitter = jax.jit(jax.vmap(augment.color_jitter, in_axes=(0, None, None, None)))
    out = np.asarray(jitter(keys, image, 0.5, 0.5))
    assert out.min() >= 0 and out.max() <= 1
    first_brightness = 0
    factors = 0.5 + np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys))
    for (b, c, _), level in zip(factors, out[:, 0, 0, 0], strict=True):
        bright = np.clip(image * b, 0, 1)
        expected = np.clip(c * bright + (1 - c) * bright.mean(), 0, 1)
        other = np.clip(np.clip(c * image + (1 - c) * image.mean(), 0, 1) * b, 0, 1)
        values = expected[0, 0, 0], other[0, 0, 0]
        assert min(abs(level - v) for v in values) < 1e-5
        if abs(values[0] - values[1]) > 1e-3:
            first_brightness += abs(level - values[0]) < 1e-5
    assert 10 < first_brightness < 100  # of 200, many of which cannot tell


def torchvision_matrix(rotation, shift, scale, shear, shape):
    """Input place of an output pixel, (y, x, 1) -> (y, x), from the forward transformations."""
    height, width = shape
    angle, slant = np.deg2rad(rotation), np.tan(np.deg2rad(shear))

    def move(x, y):
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])

    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    lean = np.array([[1, -slant, 0], [0, 1, 0], [0, 0, 1]])
    center = (width - 1) / 2, (height - 1) / 2
    forward = (
        move(*shift) @ move(*center) @ turn @ np.diag([scale, scale, 1]) @ lean
        @ move(-center[0], -center[1])
    )  # fmt: skip
    swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]])
    return (swap @ np.linalg.inv(forward) @ swap)[:2]


@settings(max_examples=40, deadline=None)
@given(
    rotation=st.floats(-180, 180),
    shift=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    scale=st.floats(0.5, 2),
    shear=st.floats(-30, 30),
    shape=st.sampled_from([(28, 28), (9, 14)]),
)
def test_affine_is_scipys(rotation, shift, scale, shear, shape):
    image = picture(*shape)
    matrix = torchvision_matrix(rotation, shift, scale, shear, shape)
    expected = scipy.ndimage.affine_transform(
        image[:, :, 0].astype(np.float64), matrix[:, :2], matrix[:, 2],
        order=1, mode="grid-constant", cval=0,
    )  # fmt: skip
    actual = affine(image, rotation, jnp.array(shift), scale, shear)[:, :, 0]
    np.testing.assert_allclose(actual, expected, atol=2e-4)


def test_quarter_turn_shift_and_no_change_by_hand():
    image = picture()
    np.testing.assert_allclose(affine(image), image, atol=1e-6)
    np.testing.assert_allclose(affine(image, 90.0), np.rot90(image, -1), atol=1e-4)  # clockwise
    shifted = np.zeros_like(image)
    shifted[:-1, 2:] = image[1:, :-2]
    np.testing.assert_allclose(affine(image, shift=(2.0, -1.0)), shifted, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    which=st.sampled_from(["rotation", "shift", "scale", "shear"]),
)
def test_random_affine_draws_within_its_range(seed, which):
    """A blob's place, turned by the values drawn, says what they were."""
    limits = {"rotation": 20.0, "shift": 3.0, "scale": 0.2, "shear": 15.0}
    y, x = np.mgrid[:29, :29].astype(np.float32) - 14
    blob = np.exp(-((y + 6) ** 2 + x**2) / 8)[:, :, None]  # six pixels above the centre
    keys = jax.random.split(jax.random.key(seed), 64)
    only = {name: limit * (name == which) for name, limit in limits.items()}
    out = np.asarray(random_affines(keys, blob, *only.values()), np.float64)[..., 0]
    mass = out.sum((1, 2))
    dy, dx = (out * y).sum((1, 2)) / mass, (out * x).sum((1, 2)) / mass
    values = {
        "rotation": np.rad2deg(np.arctan2(dx, -dy)),
        "shift": np.concatenate([dx, dy + 6]),
        "scale": -dy / 6 - 1,
        "shear": np.rad2deg(np.arctan2(dx, -dy)),
    }[which]
    limit = limits[which]
    assert np.abs(values).max() <= limit * 1.02 + 0.01
    assert values.max() > limit * 0.7 and values.min() < -limit * 0.7  # 64 draws of a uniform


def test_without_strengths_augmentation_only_normalises():
    off = dict.fromkeys(("brightness", "contrast", "rotation", "shift", "scale", "shear"), 0.0)
    image = (picture() * 255).astype(np.uint8)
    out = jax.jit(augment.augment)(jax.random.key(0), image, off)
    assert_close(out, (Rounded(image) / 255 - 0.1307) / 0.3081)
