"""How XLA compiles the programs of this package."""

from collections.abc import Callable
from typing import Any

import jax

# XLA ignores the options of backends that it does not compile for.
_OPTIONS: dict[str, Any] = {
    # A GPU launches all kernels of a call as one CUDA graph. Operations whose result depends on the
    # order of execution are replaced by deterministic ones, without which a run could not be
    # repeated, or resumed, to the same bit.
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,WHILE",
    "xla_gpu_deterministic_ops": True,
    # The same digits on every processor: sums are as wide, and no approximate instruction is used,
    # whose results vendors do not specify to the bit.
    "xla_cpu_prefer_vector_width": 256,
}
if jax.__version_info__ >= (0, 10):  # earlier versions do not know the option
    _OPTIONS["xla_cpu_enable_platform_dependent_math"] = False

# For a program that runs once. To compile the initialisation took 1.6 instead of 17 seconds of
# processor time, with the same result bit for bit.
COMPILE_QUICKLY = {"xla_backend_optimization_level": 0}


def jit(
    function: Callable[..., Any], compiler_options: dict[str, Any] | None = None, **options: Any
) -> Any:
    """`jax.jit` with this package's compiler options and full float32 precision.

    By default a GPU rounds the factors of a matrix product or a convolution to 10 bits (TF32), and
    results would not be those of a CPU except for rounding in float32.
    """
    precise = jax.default_matmul_precision("highest")(function)
    return jax.jit(precise, compiler_options=_OPTIONS | (compiler_options or {}), **options)
