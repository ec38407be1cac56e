"""How computations are compiled by XLA."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

# By default XLA uses half of an AVX-512 register: a training step took 1.25 times as long.
# Processors with shorter registers, and GPUs, are not affected.
COMPILER_OPTIONS = {"xla_cpu_prefer_vector_width": 512}


def separate(function: Callable[..., Any], **jit_options: Any) -> Callable[..., Any]:
    """`jax.jit(function)` whose computation XLA does not merge with what surrounds it on a CPU.

    Otherwise XLA may repeat an expensive computation inside everything that reads its result.
    """
    compiled = jax.jit(function, **jit_options)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if jax.default_backend() != "cpu":
            return compiled(*args)
        with set_xla_metadata(inlineable="false"):
            return compiled(*args)

    return call
