"""How XLA compiles the programs of this package."""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

# For each backend:
# - By default XLA uses half of an AVX-512 register of a CPU, with which a training step takes 1.25
#   times as long. Processors with shorter registers are not affected.
# - A GPU launches all kernels of a call as one CUDA graph. Operations whose result depends on the
#   order of execution are replaced by deterministic ones, without which a run could not be
#   repeated, or resumed, to the same bit.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {"xla_cpu_prefer_vector_width": 512},
    "gpu": {
        "xla_gpu_enable_command_buffer": (
            "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,WHILE,CONVOLUTION"
        ),
        "xla_gpu_deterministic_ops": True,
    },
}


# What calls a `Compiled` with its arguments instead, if set: see `runs.compiler.stored_programs`.
CALL_WITH: ContextVar[Callable[[Any, tuple[Any, ...], dict[str, Any]], Any] | None] = ContextVar(
    "CALL_WITH", default=None
)


class Compiled:
    """A function compiled by `jax.jit`, with `COMPILER_OPTIONS` and full float32 precision.

    By default a GPU rounds the factors of a matrix product or a convolution to 10 bits (TF32), and
    results would not be those of a CPU except for rounding in float32.

    Static arguments are named by `static_argnames`.

    The backend is asked for in the first call, so that importing a module does not start one. Other
    attributes, such as `lower`, are those of what `jax.jit` returns.
    """

    def __init__(self, function: Callable[..., Any], **jit_options: Any) -> None:
        functools.update_wrapper(self, function)
        self._function = jax.default_matmul_precision("highest")(function)
        self._options = jit_options
        self.static_argnames: tuple[str, ...] = ()
        if names := jit_options.get("static_argnames"):
            self.static_argnames = (names,) if isinstance(names, str) else tuple(names)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the compiled function."""
        call = CALL_WITH.get()
        return self.jitted(*args, **kwargs) if call is None else call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.jitted, name)

    @property
    def jitted(self) -> Any:
        """What `jax.jit` returns."""
        return _jit(self, jax.default_backend())


@functools.cache
def _jit(compiled: Compiled, backend: str) -> Any:
    options = {"compiler_options": COMPILER_OPTIONS.get(backend, {})} | compiled._options
    return jax.jit(compiled._function, **options)


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
