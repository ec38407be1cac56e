"""How this process compiles and runs programs: the cache on disk, and glibc's memory."""

import contextlib
import ctypes
import functools
import hashlib
import inspect
import os
import pickle
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

import jax_mnist
from jax_mnist.data.files import write_atomically
from jax_mnist.nn.xla import CALL_WITH, COMPILER_OPTIONS, Compiled

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of mallopt(3)


def configure() -> None:
    """Sets up this process for training. It affects start-up time and memory, never results.

    Compiled programs are kept on disk, in `JAX_COMPILATION_CACHE_DIR` or the user's cache folder,
    so that a second run starts at once. On a CPU, glibc is told to keep the memory of one step
    for the next: memory that is given back to the system is cleared page by page when it is used
    again, which made a step take 1.4 times as long.
    """
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Programs are compiled for a number of cores, which is not part of JAX's own key.
        folder = cache / "jax_mnist" / f"{_cores()}-cores"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if jax.default_backend() == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**28)


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextlib.contextmanager
def stored_programs() -> Iterator[None]:
    """Within this context, `Compiled` functions are loaded from the cache without tracing them.

    JAX's own cache spares a second run only the work of XLA: a training step is still traced and
    lowered. To the first step, a second run took 7.7 s of processor time with it, and takes 3.2 s.

    What the functions compute must follow from the source of this package, the types of their
    arguments, and what `repr` says of static ones. Only programs for a single CPU device are
    kept here.
    """
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    enabled = folder and jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    if not enabled or jax.default_backend() != "cpu" or jax.device_count() > 1:
        yield
        return
    token = CALL_WITH.set(functools.partial(_call, Path(folder)))
    try:
        yield
    finally:
        CALL_WITH.reset(token)


def _call(folder: Path, function: Compiled, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the program that the function compiles to."""
    parameters = [*inspect.signature(function).parameters]
    given = dict(zip(parameters, args, strict=False)) | kwargs
    static = {name: given.pop(name) for name in function.static_argnames if name in given}
    types = jax.tree.map(jax.typeof, given)
    key = repr((function.__module__, function.__qualname__, static, types))
    if " at 0x" in key:  # an address in it: the text does not say what the values are
        return function.jitted(*args, **kwargs)
    if key not in _programs:
        path = folder / f"program-{_digest(key)}"
        _programs[key] = _load(path) or _compile(function, args, kwargs, path)
    positional = [a for n, a in zip(parameters, args, strict=False) if n not in static]
    return _programs[key](*positional, **{n: a for n, a in kwargs.items() if n not in static})


_programs: dict[str, jax.stages.Compiled] = {}


def _compile(
    function: Compiled, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path
) -> jax.stages.Compiled:
    lowered = function.lower(*args, **kwargs)
    with _without_jax_cache():
        program = lowered.compile()
    with contextlib.suppress(OSError):  # the cache cannot be written: nothing is lost but time
        write_atomically(path, pickle.dumps(serialize_executable.serialize(program)))
    return program


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
    """A program that comes from JAX's cache cannot be serialised again: it would lack functions."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX looks at the setting only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def _load(path: Path) -> jax.stages.Compiled | None:
    """Loads a program. The file holds machine code, in a folder that only its owner writes."""
    try:
        return serialize_executable.deserialize_and_load(*pickle.loads(path.read_bytes()))
    except Exception:  # missing or damaged: it is compiled again
        return None


def _digest(key: str) -> str:
    return hashlib.sha256((_surroundings() + key).encode()).hexdigest()[:32]


@functools.cache
def _surroundings() -> str:
    """What programs depend on besides a function and its arguments."""
    root = Path(jax_mnist.__file__).parent
    source = [path.read_bytes() for path in sorted(root.rglob("*.py"))]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    values = {k: v for k, v in jax.config.values.items() if "_cache" not in k}  # type: ignore[attr-defined]
    processor = [platform.machine()]  # `platform.processor()` would start a process
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    facts = (
        hashlib.sha256(b"".join(source)).hexdigest(),
        [metadata.version(package) for package in packages],
        [platform.python_version(), os.environ.get("XLA_FLAGS"), COMPILER_OPTIONS, _cores()],
        sorted(values.items()),
        processor,
    )
    return repr(facts)
