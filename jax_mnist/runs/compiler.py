"""How this process compiles programs: the caches on disk, and the same digits everywhere."""

import functools
import os
import re
import warnings
from importlib import metadata

import jax
from jax._src import xla_bridge  # whether JAX has started is known nowhere else

from jax_mnist.config import ConfigError
from jax_mnist.nn import library

_SAME_DIGITS = "--xla_cpu_max_isa=AVX2"
_PLUGIN = r"jax[-_]cuda\d+[-_]plugin"


def configure() -> None:
    """Sets up this process for training.

    Compiled programs are kept on disk, in `JAX_COMPILATION_CACHE_DIR` or the user's cache folder,
    so that a second run starts at once. XLA is told to make the same code for every processor, as
    long as JAX has not started.

    Raises:
      ConfigError: See `ask_for_same_digits`.
    """
    ask_for_same_digits()
    _check_plugins()
    cache = library.cache_folder()
    if cache and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        # Programs are compiled for a number of cores, which is not part of JAX's own key.
        jax.config.update("jax_compilation_cache_dir", str(cache / f"{_cores()}-cores"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def ask_for_same_digits() -> None:
    """Sets the flag that XLA reads when JAX starts; as a compiler option it would be ignored.

    Raises:
      ConfigError: `JAX_MNIST_KERNELS` has an unknown value, or one that this processor cannot run.

    Warns:
      UserWarning: JAX has started, and digits may differ from those of other processors.
    """
    try:
        instructions = library.instruction_set()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    flags = os.environ.get("XLA_FLAGS", "")
    if instructions is None or "xla_cpu_max_isa" in flags:
        return
    if not xla_bridge.backends_are_initialized():
        os.environ["XLA_FLAGS"] = f"{flags} {_SAME_DIGITS}".strip()
    elif instructions == "avx512" and jax.default_backend() == "cpu":
        warnings.warn(
            "JAX started before this program could set it up: digits may differ from those of "
            f"other processors, unless XLA_FLAGS={_SAME_DIGITS} is set before JAX starts",
            stacklevel=3,
        )


@functools.cache  # once is enough
def _check_plugins() -> None:
    """Warns if the GPU's plugin is of another version than JAX, which then does not use the GPU."""
    ours = metadata.version("jaxlib")
    for name in {d.name for d in metadata.distributions() if re.fullmatch(_PLUGIN, d.name or "")}:
        if (version := metadata.version(name)) != ours:
            warnings.warn(
                f"{name} {version} does not fit jaxlib {ours}, so that JAX cannot use the GPU: "
                f"python -m pip install jax=={version} jaxlib=={version}, or upgrade {name}",
                stacklevel=4,
            )


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
