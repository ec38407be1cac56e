"""The C++ kernels of `csrc`, compiled on first use and kept in the user's cache folder.

A C++ compiler is needed only once: afterwards, the library is loaded within milliseconds.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path

import jax

from jax_mnist.files import write_atomically

SOURCES = Path(__file__).parent / "csrc"

# What a processor must have for an instruction set, the fastest first. `-m` before each tells the
# compiler to use it. There is no -march=native: all processors are to compute the same digits.
_AVX2 = ("avx2", "fma")
_AVX512 = (*_AVX2, "avx512f", "avx512vl", "avx512dq", "avx512bw")
_INSTRUCTION_SETS = {"avx512": _AVX512, "avx2": _AVX2}

_FLAGS = (
    "-std=c++20", "-fPIC", "-fvisibility=hidden",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
_ZIG = ("-m", "ziglang", "c++", "-target", "x86_64-linux-gnu.2.28")  # for a glibc of 2018 or later

_CPUINFO = Path("/proc/cpuinfo")
_SLOWER = "training uses XLA's own convolutions, which take about 6 times as long"


class UnavailableError(Exception):
    """There are no kernels for this process. The message is one line that says why."""


def instruction_set() -> str | None:
    """Chooses the instruction set of the kernels: "avx512", "avx2", or None if there is none.

    The environment variable `JAX_MNIST_KERNELS` overrides the choice: `avx512`, `avx2` or `off`.

    Raises:
      ValueError: The environment variable has another value, or one that this processor cannot run.
    """
    features: set[str] = set()
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        with contextlib.suppress(OSError), _CPUINFO.open() as file:
            features.update(next((line for line in file if line.startswith("flags")), "").split())
    possible = [name for name, needs in _INSTRUCTION_SETS.items() if features.issuperset(needs)]
    choice = os.environ.get("JAX_MNIST_KERNELS")
    if choice and choice not in (*possible, "off"):
        problem = "this processor cannot run it" if choice in _INSTRUCTION_SETS else "unknown"
        choices = ", ".join((*possible, "off"))
        raise ValueError(f"JAX_MNIST_KERNELS={choice}: {problem}; choose one of: {choices}")
    return None if choice == "off" else choice or next(iter(possible), None)


def cache_folder() -> Path | None:
    """The user's folder for what this package compiles, or None if the user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jax_mnist")
    except RuntimeError:
        return None


@functools.cache
def load() -> ctypes.CDLL:
    """Returns the library, which is compiled if it is not in the user's cache folder.

    Where it cannot be kept there, it is compiled by every process.

    Raises:
      UnavailableError: There are no kernels for this processor, or they cannot be compiled.
      ValueError: As from `instruction_set`.
    """
    instructions = instruction_set()
    if instructions is None:
        off = os.environ.get("JAX_MNIST_KERNELS") == "off"
        needs = "The kernels need Linux and an x86-64 processor with AVX2 and FMA"
        raise UnavailableError(f"{'JAX_MNIST_KERNELS=off' if off else needs}: {_SLOWER}")
    cache = cache_folder() or Path(os.devnull)
    target = cache / f"kernels-{_digest(instructions)}.so"
    with contextlib.suppress(OSError):
        return ctypes.CDLL(str(target))
    try:
        with _locked(cache / "kernels.lock"), tempfile.TemporaryDirectory() as folder:
            with contextlib.suppress(OSError):  # another process has just compiled it
                return ctypes.CDLL(str(target))
            library = _build(instructions, Path(folder))
            with contextlib.suppress(OSError):
                write_atomically(target, library.read_bytes())
                return ctypes.CDLL(str(target))
            return ctypes.CDLL(str(library))
    except OSError as error:
        raise UnavailableError(f"The kernels cannot be loaded ({error}): {_SLOWER}") from error


def _digest(instructions: str) -> str:
    """Digests what the library depends on, except for a compiler that is not the user's choice."""
    sources = [(path.name, path.read_bytes()) for path in sorted(SOURCES.iterdir())]
    flags = [_FLAGS, instructions, os.environ.get("CXX"), metadata.version("jaxlib")]
    return hashlib.sha256(repr((sources, flags)).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock; where there are no locks, it does not wait."""
    import fcntl  # other systems lack it

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(path.open("ab")), fcntl.LOCK_EX)
        yield


def _build(instructions: str, folder: Path) -> Path:
    """Compiles the library into a folder, with the first compiler that succeeds."""
    failures: list[str] = []
    for name, command in _compilers().items():
        try:
            library = _compile(command, instructions, folder)
        except OSError as error:  # the command does not exist
            failures.append(f"{name} failed: {error}")
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
            problem = next((line for line in lines if "error" in line), lines[0])
            failures.append(f"{name} failed: {problem}")
        else:
            if failures:
                warnings.warn(f"{'; '.join(failures)}; {name} compiled the kernels", stacklevel=3)
            return library
    failures.append(f"found no {'other ' if failures else ''}C++ compiler")
    raise UnavailableError(
        f"The kernels cannot be compiled ({'; '.join(failures)}): {_SLOWER}; "
        "run `pip install ziglang` or install g++ to fix this"
    )


def _compilers() -> dict[str, list[str]]:
    """The commands that may compile C++ on this machine, in the order to try them in."""
    choice = os.environ.get("CXX", "").strip()
    commands = {f"CXX={choice}": choice.split()} if choice else {}
    commands |= {name: [name] for name in ("g++", "clang++") if shutil.which(name)}
    if util.find_spec("ziglang"):
        commands["ziglang"] = [sys.executable, *_ZIG]
    return commands


def _compile(command: list[str], instructions: str, folder: Path) -> Path:
    """Compiles all sources at once, and links them."""
    caches = ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")
    environment = os.environ | dict.fromkeys(caches, str(folder)) | {"LC_ALL": "C"}
    flags = [*_FLAGS, *(f"-m{name}" for name in _INSTRUCTION_SETS[instructions])]
    flags.append(f"-I{jax.ffi.include_dir()}")

    def run(*arguments: str | Path) -> None:
        subprocess.run(
            [*command, *flags, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env=environment, check=True,
        )  # fmt: skip

    def compile_one(source: Path) -> Path:
        output = folder / f"{source.stem}.o"
        level = "-O1" if source.name == "ffi.cc" else "-O3"  # it only passes arguments on
        run(level, "-c", source, "-o", output)
        return output

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, SOURCES.glob("*.cc")))
    library = folder / "kernels.so"
    run("-shared", "-s", *objects, "-o", library)
    return library
