"""A packed scan is a scan, of numbers of so few digits that nothing is rounded."""

import operator

import chex
import jax
import jax.numpy as jnp

from jax_mnist.training import packing

CARRY = {
    "matrix": jnp.arange(6.0).reshape(2, 3),
    "count": jnp.array(3),
    "scalar": jnp.array(0.5),
    "key": jax.random.key_data(jax.random.key(0)),
    "vector": jnp.arange(4.0),
}


def step(carry, x):
    carry = carry | {
        "matrix": carry["matrix"] * carry["scalar"] + x,
        "count": carry["count"] + 1,
        "vector": carry["vector"]
        + jax.random.randint(jax.random.wrap_key_data(carry["key"]), (4,), -9, 9),
        "key": carry["key"][::-1],
    }
    return carry, (carry["matrix"].sum(), carry["scalar"] * x)


def test_a_packed_scan_gives_what_a_scan_gives():
    xs = jnp.arange(5.0)
    expected = jax.jit(lambda: jax.lax.scan(step, CARRY, xs))()
    mapped = jax.jit(jax.vmap(lambda xs: packing.scan(step, CARRY, xs)))(jnp.stack([xs, xs]))
    for number in range(2):
        actual = jax.tree.map(operator.itemgetter(number), mapped)
        chex.assert_trees_all_equal(actual, expected)
