"""How XLA compiles the programs of this package."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

# By default XLA uses half of an AVX-512 register, with which a training step takes 1.25 times as
# long. Processors with shorter registers, and GPUs, are not affected.
COMPILER_OPTIONS = {"xla_cpu_prefer_vector_width": 512}

# For a program that runs once. To compile the initialisation took 1.6 instead of 17 seconds of
# processor time, with the same result bit for bit.
COMPILE_QUICKLY = {"xla_backend_optimization_level": 0}


def separate(function: Callable[..., Any], **jit_options: Any) -> Callable[..., Any]:
    """Like `jax.jit`, but XLA on a CPU does not merge the function with surrounding computations.

    Otherwise XLA may repeat an expensive computation inside everything that reads its result.
    """

    @functools.wraps(function)
    def inlined(*args: Any, **kwargs: Any) -> Any:
        # Functions that are called here may be merged: jax.numpy has many that are compiled by
        # themselves, such as where and pad.
        with set_xla_metadata(inlineable=None):
            return function(*args, **kwargs)

    compiled = jax.jit(inlined, **jit_options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jax.default_backend() != "cpu":
            return compiled(*args, **kwargs)
        with set_xla_metadata(inlineable="false"):
            return compiled(*args, **kwargs)

    return call
