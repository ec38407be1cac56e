"""The C++ kernels of this folder, compiled when they are first needed and kept in a cache.

`start` compiles them in the background, and `load` returns the library. A C++ compiler is needed
only once: afterwards, the library is read from the user's cache folder within milliseconds. This
module imports only the standard library, so that `start` may be called before JAX is imported.
"""

import atexit
import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"

# What a processor must have for an instruction set, and what tells the compiler to use it. The
# fastest comes first. There is no -march=native: all processors are to compute the same digits.
_AVX2 = {name: f"-m{name}" for name in ("avx2", "fma")}
_AVX512 = {name: f"-m{name}" for name in ("avx512f", "avx512vl", "avx512dq", "avx512bw")}
_INSTRUCTION_SETS = {"avx512": _AVX2 | _AVX512, "avx2": _AVX2}

_FLAGS = (
    "-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
_FLAGS_OF = {"ffi.cc": ("-O1",)}  # it only passes arguments on, and takes long to compile
_LINK = ("-shared", "-s")  # without symbols that only a debugger needs
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
    possible = [name for name, needs in _INSTRUCTION_SETS.items() if needs.keys() <= features]
    wanted = os.environ.get("JAX_MNIST_KERNELS")
    if wanted and wanted not in (*possible, "off"):
        problem = "this processor cannot run it" if wanted in _INSTRUCTION_SETS else "unknown"
        choices = ", ".join((*possible, "off"))
        raise ValueError(f"JAX_MNIST_KERNELS={wanted}: {problem}; choose one of: {choices}")
    return None if wanted == "off" else wanted or next(iter(possible), None)


def compilers() -> dict[str, list[str]]:
    """Names the commands that may compile C++ on this machine, in the order to try them in."""
    found = {}
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        try:
            found[f"CXX={chosen}"] = shlex.split(chosen)
        except ValueError:  # a quotation without an end: it will fail as an unknown command
            found[f"CXX={chosen}"] = [chosen]
    found |= {name: [name] for name in ("g++", "clang++") if shutil.which(name) and name != chosen}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found[f"ziglang {metadata.version('ziglang')}"] = [sys.executable, *_ZIG]
    return found


def key(sources: Path, instructions: str, commands: Mapping[str, Sequence[str]]) -> str:
    """Digests all that the library depends on, without starting a process.

    This includes all compilers, because the first that succeeds is not known in advance. The name
    of ziglang has its version, and the others are told by the files that their commands name, such
    as the two of `ccache g++`.
    """
    paths = sorted((*sources.glob("*.cc"), *sources.glob("*.h")))
    facts: list[object] = [(path.name, path.read_bytes()) for path in paths]
    facts += [_FLAGS, _FLAGS_OF, _LINK, _ZIG, _INSTRUCTION_SETS[instructions]]
    facts += [metadata.version("jaxlib"), *commands]
    for name, command in commands.items():
        if not name.startswith("ziglang"):
            for file in filter(None, map(shutil.which, command)):
                status = os.stat(file)
                facts.append((os.path.realpath(file), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def build(
    sources: Path, instructions: str, commands: Mapping[str, Sequence[str]], folder: Path
) -> Path:
    """Compiles the library with the first compiler that succeeds.

    Args:
      sources: A folder of C++ files, `*.cc`, which are compiled side by side.
      instructions: The instruction set, as from `instruction_set`.
      commands: Compilers, as from `compilers`.
      folder: A folder for temporary files and for the library.

    Returns:
      The library's path.

    Raises:
      UnavailableError: All compilers failed.
    """
    # This is `jax.ffi.include_dir()`, without importing JAX, which takes most of a second.
    headers = metadata.distribution("jaxlib").locate_file("jaxlib/include")
    flags = [*_FLAGS, *_INSTRUCTION_SETS[instructions].values(), f"-I{headers}"]
    library = folder / "library.so"
    failures: list[str] = []
    for name, command in commands.items():
        steps = {
            folder / f"{path.stem}.o": [*flags, *_FLAGS_OF.get(path.name, ()), "-c", str(path)]
            for path in sources.glob("*.cc")
        }
        link = {library: [*flags, *_LINK, *map(str, steps)]}
        failure = _run(command, steps, folder) or _run(command, link, folder)
        if not failure:
            if failures and failures[0].startswith("CXX="):  # the compiler that the user asked for
                warnings.warn(f"{failures[0]}; {name} compiled the kernels", stacklevel=2)
            return library
        failures.append(f"{name} failed: {failure}")
    failures.append(f"found no {'other ' if failures else ''}C++ compiler")
    mend = "run `pip install ziglang` or install g++ to fix this"
    raise UnavailableError(
        f"The kernels cannot be compiled ({'; '.join(failures)}): {_SLOWER}; {mend}"
    )


def _run(command: Sequence[str], outputs: Mapping[Path, Sequence[str]], folder: Path) -> str:
    """Makes all outputs at once, and returns what went wrong first, or an empty text.

    No process outlives this function. Temporary files of the compiler are put into the folder.
    """
    variables = ("TMPDIR", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")
    environment = os.environ | dict.fromkeys(variables, str(folder)) | {"LC_ALL": "C"}
    processes: dict[Path, subprocess.Popen[bytes]] = {}
    try:
        for output, arguments in outputs.items():
            errors = output.with_suffix(".txt")
            with errors.open("wb") as file:
                processes[errors] = subprocess.Popen(
                    [*command, *arguments, "-o", str(output)],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file,
                    env=environment, process_group=0,
                )  # fmt: skip
        while None in (codes := [process.poll() for process in processes.values()]):
            if any(codes):
                break
            _pause()
        for errors, process in processes.items():
            if process.returncode:
                text = errors.read_text(errors="replace").strip()
                lines = (text or f"exit status {process.returncode}").splitlines()
                return next((line for line in lines if "error" in line), lines[0])
    except OSError as error:  # the command does not exist
        return str(error)
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return ""


def obtain(sources: Path, cache: Path) -> ctypes.CDLL:
    """Loads the library from a cache folder, after compiling it if it is not there.

    If it cannot be kept there, it is loaded from a temporary folder, which is removed at once.

    Raises:
      UnavailableError: There are no kernels for this processor, or they cannot be compiled.
      ValueError: As from `instruction_set`.
    """
    instructions = instruction_set()
    if instructions is None:
        off = os.environ.get("JAX_MNIST_KERNELS") == "off"
        needs = "The kernels need Linux and an x86-64 processor with AVX2 and FMA"
        raise UnavailableError(f"{'JAX_MNIST_KERNELS=off' if off else needs}: {_SLOWER}")
    commands = compilers()
    digest = key(sources, instructions, commands)
    stored = cache / f"kernels-{digest}.so"
    if library := _open(stored, digest):
        return library
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(_locked(cache / "kernels.lock"))
        if library := _open(stored, digest):  # another process has compiled it in the meantime
            return library
        try:
            # Unlike `tempfile.TemporaryDirectory`, a process forked meanwhile will not remove it.
            folder = Path(tempfile.mkdtemp(prefix="jax_mnist-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            built = build(sources, instructions, commands, folder)
            with contextlib.suppress(OSError):
                _store(built, stored, digest)
            return _open(stored, digest) or ctypes.CDLL(str(built))
        except OSError as error:
            raise UnavailableError(f"The kernels cannot be loaded ({error}): {_SLOWER}") from error


def _store(built: Path, stored: Path, digest: str) -> None:
    """Writes a library into the cache folder, with a checksum after it, which loaders ignore."""
    content = built.read_bytes()
    temporary = stored.with_name(f"kernels-{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content + _checksum(content, digest))
        temporary.replace(stored)
    finally:
        temporary.unlink(missing_ok=True)


def _open(stored: Path, digest: str) -> ctypes.CDLL | None:
    """Loads a library of the cache folder, unless it is missing, damaged or another one."""
    with contextlib.suppress(OSError):
        content = stored.read_bytes()
        if content[-32:] == _checksum(content[:-32], digest):
            return ctypes.CDLL(str(stored))
    return None


def _checksum(content: bytes, digest: str) -> bytes:
    return hashlib.sha256(digest.encode() + content).digest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock, which the system releases if its holder dies.

    Unlike a lock of `flock`, it is not held by processes that are forked meanwhile.
    """
    import fcntl  # other systems lack it

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _pause()
        yield


def cache_folder() -> Path | None:
    """The user's folder for what this package compiles, or None if the user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jax_mnist")
    except RuntimeError:
        return None


class _State:
    """What this process knows about the library."""

    def __init__(self, outcome: ctypes.CDLL | Exception | None = None):
        self.outcome = outcome  # the library, or why there is none
        self.lock = threading.Lock()  # held while the library is obtained
        self.thread: threading.Thread | None = None
        self.ending = threading.Event()


_state = _State()


def load() -> ctypes.CDLL:
    """Returns the library, which is compiled if it is not in the user's cache folder.

    Raises:
      UnavailableError: There are no kernels for this processor, or they cannot be compiled.
      ValueError: As from `instruction_set`.
    """
    _attempt()
    if isinstance(_state.outcome, Exception):
        raise _state.outcome.with_traceback(None)
    assert _state.outcome
    return _state.outcome


def start() -> None:
    """Begins to load or compile the library in the background. Errors are left for `load`."""
    if _state.thread is None and _state.outcome is None:
        _state.thread = threading.Thread(target=_attempt, daemon=True)
        with contextlib.suppress(RuntimeError):  # there are too many threads: `load` does it all
            _state.thread.start()


def _attempt() -> None:
    with _state.lock:
        if _state.outcome is None:
            try:
                _state.outcome = obtain(SOURCES, cache_folder() or Path(os.devnull))
            except (UnavailableError, ValueError) as error:
                _state.outcome = error


def _pause() -> None:
    """Waits a moment. If the process ends, so does this thread, and with it its compilers."""
    if _state.ending.wait(0.01):
        sys.exit()


@atexit.register
def _end() -> None:
    _state.ending.set()
    if _state.thread and _state.thread.is_alive():
        _state.thread.join(1)


def _after_fork() -> None:
    """Forgets the thread of the parent, and the lock that it may hold."""
    global _state
    _state = _State(_state.outcome)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
