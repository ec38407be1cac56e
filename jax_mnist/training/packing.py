"""Many small arrays as one vector, so that a GPU updates all of them with one kernel.

The state of a step is some 100 arrays of a few numbers each. As the carry of a loop each of them
takes a kernel of its own, or two; packed, XLA computes all of them in one.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

Packed = tuple[Array, list[Array]]  # all float32 arrays of a tree, and the others


def scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` with a packed carry. What a step returns besides must be float32 scalars."""
    packed, unpack = pack(carry)
    first = jax.tree.map(operator.itemgetter(0), xs)
    treedef_of_y = jax.tree.structure(jax.eval_shape(step, carry, first)[1])

    def packed_step(packed: Packed, x: Any) -> tuple[Packed, Array]:
        carry, y = step(unpack(packed), x)
        return pack(carry)[0], jnp.stack(jax.tree.leaves(y))

    packed, ys = jax.lax.scan(packed_step, packed, xs)
    return unpack(packed), jax.tree.unflatten(treedef_of_y, list(ys.T))


def pack(tree: Any) -> tuple[Packed, Callable[[Packed], Any]]:
    """Packs a tree of arrays; also returns the function that unpacks it."""
    leaves, treedef = jax.tree.flatten(tree)
    is_float = [leaf.dtype == jnp.float32 for leaf in leaves]
    vector, unravel = ravel_pytree([leaf for leaf in leaves if leaf.dtype == jnp.float32])

    def unpack(packed: Packed) -> Any:
        floats, others = iter(unravel(packed[0])), iter(packed[1])
        return jax.tree.unflatten(treedef, [next(floats if f else others) for f in is_float])

    return (vector, [leaf for leaf in leaves if leaf.dtype != jnp.float32]), unpack
