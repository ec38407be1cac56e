"""Many small arrays as one vector, so that a GPU updates all of them with one kernel.

The state of a step is some 100 arrays of a few numbers each. As the carry of a loop each of them
takes a kernel of its own, or two; packed, XLA computes all of them in one.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Packed = tuple[Array, list[Array]]  # all float32 arrays of a tree, and the others


def scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` with a packed carry. What a step returns besides must be float32 scalars."""
    _, treedef_of_y = jax.tree.flatten(jax.eval_shape(step, carry, jax.tree.map(_first, xs))[1])
    packed, unpack = pack(carry)

    def packed_step(packed: Packed, x: Any) -> tuple[Packed, Array]:
        carry, y = step(unpack(packed), x)
        return pack(carry)[0], jnp.stack(jax.tree.leaves(y))

    packed, ys = jax.lax.scan(packed_step, packed, xs)
    return unpack(packed), jax.tree.unflatten(treedef_of_y, list(ys.T))


def _first(x: Array) -> Array:
    return x[0]


def pack(tree: Any) -> tuple[Packed, Callable[[Packed], Any]]:
    """Packs a tree of arrays; also returns the function that unpacks it."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if leaf.dtype == jnp.float32]
    shapes = [leaves[i].shape for i in places]
    ends = [*itertools.accumulate(leaves[i].size for i in places)]

    def unpack(packed: Packed) -> Any:
        vector, others = packed
        parts = jnp.split(vector, ends[:-1])
        rest, found = iter(others), dict(zip(places, zip(parts, shapes, strict=True), strict=True))
        unpacked = [
            found[i][0].reshape(found[i][1]) if i in found else next(rest)
            for i in range(len(leaves))
        ]
        return jax.tree.unflatten(treedef, unpacked)

    vector = jnp.concatenate([leaves[i].ravel() for i in places])
    return (vector, [leaf for i, leaf in enumerate(leaves) if i not in places]), unpack
