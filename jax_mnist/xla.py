"""How this program is compiled and run by XLA: everything that is a setting, in one place."""

import ctypes
import functools
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

# By default XLA uses half of an AVX-512 register: a training step took 1.25 times as long.
# Processors with shorter registers, and GPUs, are not affected.
COMPILER_OPTIONS = {"xla_cpu_prefer_vector_width": 512}

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of mallopt(3)


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


def configure() -> None:
    """Sets up this process for training: start-up time and memory, never results.

    Compiled programs are kept on disk, in `JAX_COMPILATION_CACHE_DIR` or the user's cache folder,
    so that a second run starts at once. On a CPU, glibc is told to keep the memory of one step
    for the next: given back to the system, it is cleared page by page each time, which made a
    step take 1.4 times as long.
    """
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # A program is compiled for a number of cores, of which JAX's own key says nothing.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        folder = cache / "jax_mnist" / f"{cores}-cores"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if jax.default_backend() == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**28)
