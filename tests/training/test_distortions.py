"""Elastic deformation against SciPy's smoothed noise and interpolation, and cutout by hand."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from jax_mnist import config as config_lib
from jax_mnist.training import augment, distortions

KEYS = jax.random.split(jax.random.key(0), 3000)
IMAGE = scipy.ndimage.gaussian_filter(np.random.default_rng(0).random((28, 28)), 1.5)
LEVELS = (255 * IMAGE[:, :, None] / IMAGE.max()).astype(np.uint8)

pytestmark = pytest.mark.usefixtures("quickly_compiled")

augmented = jax.jit(
    jax.vmap(augment.augment, in_axes=(0, None, None, None, None)), static_argnums=(3, 4)
)


def test_displacements_are_smoothed_white_noise():
    draw = jax.jit(jax.vmap(lambda key: distortions.displacement(key, (28, 20), 1.5)))
    fields = np.asarray(draw(KEYS))
    assert fields.shape == (3000, 2, 28, 20)
    noise = np.random.default_rng(1).normal(size=(3000, 68, 60))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, 4, 4))[:, 20:-20, 20:-20]
    smooth *= 1.5 / smooth.std()
    places = [(0, 0), (0, 5), (3, 3), (27, 19), (14, 10), (16, 10), (14, 16)]
    y, x = np.transpose(places)
    expected = np.cov(smooth[:, y, x].T)
    for axis in range(2):
        np.testing.assert_allclose(np.cov(fields[:, axis, y, x].T), expected, atol=0.3)
    assert abs(np.corrcoef(fields[:, 0, 14, 10], fields[:, 1, 14, 10])[0, 1]) < 0.06


def test_a_displacement_and_an_affine_map_are_one_interpolation():
    field = np.random.default_rng(2).normal(0, 2, (2, 28, 28)).astype(np.float32)
    actual = jax.jit(augment.affine)(IMAGE[:, :, None], 90.0, displacement=field)[:, :, 0]
    y, x = np.mgrid[:28, :28]
    expected = scipy.ndimage.map_coordinates(  # a quarter turn clockwise reads (27 - x, y)
        IMAGE, [27 - x + field[0], y + field[1]], order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.usefixtures("in_float64")
def test_strength_zero_changes_nothing_and_another_does():
    strengths = config_lib.split(config_lib.base())[1] | {"rotation": 10.0, "shift": 2.0}
    usual = augmented(KEYS[:4], LEVELS, strengths, augment.MNIST, ())
    for own in ({}, {"elastic": 3.0}, {"cutout": 3.0}):
        actual = augmented(KEYS[:4], LEVELS, strengths | own, augment.MNIST, ("elastic", "cutout"))
        assert np.allclose(actual, usual, rtol=1e-9, atol=1e-9) == (not own)


def test_a_square_is_cut_out_around_a_pixel_of_the_image():
    image = np.ones((28, 20, 1), np.float32)
    cutout = jax.jit(jax.vmap(distortions.cutout, in_axes=(0, None, None)))
    cut = np.asarray(cutout(KEYS, image, 6.0))[..., 0]
    rows, columns = (cut == 0).any(2), (cut == 0).any(1)
    assert np.array_equal(cut == 0, rows[:, :, None] & columns[:, None])
    heights, widths = rows.sum(1), columns.sum(1)
    assert heights.min() == widths.min() == 3 and heights.max() == widths.max() == 6
    last = 27 - rows[:, ::-1].argmax(1)[heights == 6]  # from the centre, two further down
    assert {*last} == set(range(5, 28))
    np.testing.assert_allclose((heights == 6).mean(), 23 / 28, atol=0.03)
