"""The program that XLA gets for an NVIDIA GPU, lowered on a machine that need not have one."""

import re

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct

from jax_mnist import config as config_lib
from jax_mnist.data.datasets import Dataset
from jax_mnist.training import recipe
from jax_mnist.training.state import init
from jax_mnist.training.step import train_steps


def lowered(replicas):
    """The text of two steps of the whole network, for CUDA."""
    of_run = recipe.make_recipe(config_lib.base(), examples=256)
    _, values = config_lib.split(config_lib.base())
    hyper = dict.fromkeys(values, ShapeDtypeStruct((replicas,), jnp.float32))
    seeds = ShapeDtypeStruct((replicas,), jnp.int32)
    state = jax.eval_shape(jax.vmap(lambda seed: init(of_run, values, seed)), seeds)
    images, labels = ((256, 28, 28, 1), jnp.uint8), ((256,), jnp.int32)
    data = Dataset(ShapeDtypeStruct(*images), ShapeDtypeStruct(*labels))
    order = ShapeDtypeStruct((replicas, 2, 128), jnp.int32)
    traced = train_steps.trace(of_run, hyper, state, data, order)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def largest_group(text):
    groups = re.findall(r"(?:feature|batch)_group_count = (\d+)", text)
    return max(map(int, groups), default=0)


def test_a_step_on_a_gpu_has_no_grouped_convolution(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    text = lowered(replicas=4)
    assert largest_group(text) <= 1
    products = text.count("stablehlo.dot_general")
    assert products > 12 and text.count("precision = [HIGHEST, HIGHEST]") == products


def test_mapped_kernels_would_make_grouped_convolutions():
    """So the test above can fail."""

    def convolve(x, kernel):
        return jax.lax.conv(x, kernel, (1, 1), "VALID")

    x, kernel = jnp.ones((4, 2, 3, 8, 8)), jnp.ones((4, 5, 3, 3, 3))
    text = jax.jit(jax.vmap(convolve)).lower(x, kernel).as_text()
    assert largest_group(text) == 4
