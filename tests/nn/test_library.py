"""The library of kernels is compiled once, whatever happens to the processes that compile it."""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import jax
import pytest

from jax_mnist.nn import library

pytestmark = pytest.mark.skipif(
    not shutil.which("g++") or not library.instruction_set(),
    reason="needs g++ and a processor with AVX2",
)

CACHE = os.environ.get("XDG_CACHE_HOME", "")

AVX2 = "fpu sse2 avx avx2 fma"
AVX512 = f"{AVX2} avx512f avx512vl avx512dq avx512bw"

# Logs what it is told. Unless the file `go` exists, it tells its process number and waits for it.
COMPILER = """#!/bin/sh
cd "$(dirname "$0")"
echo "$@" >> log
echo $$ > started.part && mv started.part started
while [ ! -e go ]; do sleep 0.02; done
exec g++ "$@"
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    """An empty cache, a state as in a new process, and no settings of the user."""
    for name in ("CXX", "JAX_MNIST_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "_state", library._State())
    yield
    assert not list(temporary.iterdir())


@pytest.fixture
def sources(tmp_path, monkeypatch):
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "part.h").write_text("int part();\n")
    (folder / "part.cc").write_text('#include "part.h"\nint part() { return 40; }\n')
    code = '#include "part.h"\nextern "C" __attribute__((visibility("default"))) int answer()'
    (folder / "ffi.cc").write_text(code + " { return part() + 2; }\n")
    monkeypatch.setattr(library, "SOURCES", folder)
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "jax_mnist"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A folder with a compiler, `$CXX`, that says what it does."""
    folder = tmp_path / "compiler"
    folder.mkdir()
    (folder / "c++").write_text(COMPILER)
    (folder / "c++").chmod(0o755)
    monkeypatch.setenv("CXX", str(folder / "c++"))
    return folder


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "/none")
    version = library.metadata.version

    def without_ziglang(name):
        if name == "ziglang":
            raise library.metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr(library.metadata, "version", without_ziglang)


def runs(compiler):
    return (compiler / "log").read_text().splitlines()


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def process(sources, code):
    """Starts a process that runs the code with these sources. It does not import JAX."""
    head = f"""
    import os, pathlib, signal, sys, time
    from jax_mnist.nn import library
    library.SOURCES = pathlib.Path({str(sources)!r})
    compiler = pathlib.Path({str(sources.parent / "compiler")!r})
    def wait_for(path):
        while not path.exists():
            time.sleep(0.01)
    """
    code = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def finish(started):
    output, _ = started.communicate(timeout=30)
    assert started.returncode == 0
    return output


def ended(number):
    """Whether a process has ended, except for its entry in the table of processes."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("features", "wanted", "expected"),
    [
        (AVX512, None, "avx512"),
        (AVX512, "avx2", "avx2"),
        (AVX512, "off", None),
        (AVX512.replace("avx512bw", ""), "", "avx2"),
        (AVX512.replace("fma", ""), None, None),
        (AVX2, None, "avx2"),
        (AVX2.replace("fma", ""), None, None),
        (AVX2.replace("avx2", ""), "off", None),
    ],
)
def test_the_instruction_set_is_the_best_of_the_processor_or_the_users(
    features, wanted, expected, tmp_path, monkeypatch
):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {features}\nbugs\t\t: none\n")
    monkeypatch.setattr(library, "_CPUINFO", cpuinfo)
    if wanted is not None:
        monkeypatch.setenv("JAX_MNIST_KERNELS", wanted)
    assert library.instruction_set() == expected


def test_an_instruction_set_that_is_unknown_or_cannot_run_is_an_error(
    tmp_path, monkeypatch, sources
):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: {AVX2}\n")
    monkeypatch.setattr(library, "_CPUINFO", cpuinfo)
    for wanted, problem in (("neon", "unknown"), ("avx512", "this processor cannot run it")):
        monkeypatch.setenv("JAX_MNIST_KERNELS", wanted)
        monkeypatch.setattr(library, "_state", library._State())
        message = f"^JAX_MNIST_KERNELS={wanted}: {problem}; choose one of: avx2, off$"
        with pytest.raises(ValueError, match=message):
            library.instruction_set()
        library.start()
        with pytest.raises(ValueError, match=message):
            library.load()


@pytest.mark.parametrize("place", ["other system", "other processor", "off"])
def test_without_kernels_for_the_processor_no_remedy_is_offered(place, monkeypatch, sources):
    if place == "other system":
        monkeypatch.setattr(sys, "platform", "darwin")
    elif place == "other processor":
        monkeypatch.setattr(library, "_CPUINFO", Path("/none"))
    else:
        monkeypatch.setenv("JAX_MNIST_KERNELS", "off")
    assert library.instruction_set() is None
    with pytest.raises(library.UnavailableError) as error:
        library.load()
    begin = "JAX_MNIST_KERNELS=off: " if place == "off" else "The kernels need Linux and an x86-64 "
    assert str(error.value).startswith(begin)
    assert "6 times" in str(error.value) and "install" not in str(error.value)


def test_the_users_compiler_comes_first_and_ziglang_last(monkeypatch):
    monkeypatch.setattr(library.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(library.metadata, "version", lambda name: "1.2")
    zig = {"ziglang 1.2": [sys.executable, *library._ZIG]}
    others = {"g++": ["g++"], "clang++": ["clang++"], **zig}
    assert list(library.compilers().items()) == list(others.items())
    monkeypatch.setenv("CXX", "ccache 'my g++' -m64")
    mine = {"CXX=ccache 'my g++' -m64": ["ccache", "my g++", "-m64"]}
    assert list(library.compilers().items()) == list((mine | others).items())
    monkeypatch.setenv("CXX", "clang++")
    assert list(library.compilers()) == ["CXX=clang++", "g++", "ziglang 1.2"]


def test_a_second_process_starts_no_compiler_and_imports_only_the_standard_library(
    sources, cache, compiler
):
    (compiler / "go").touch()
    code = """
    print(library.load().answer(), {"jax", "jaxlib", "numpy", "filelock"} & {*sys.modules})
    """
    assert finish(process(sources, code)) == "42 set()\n"
    assert len(runs(compiler)) == 3
    refusal = "def refuse(*args, **kwargs): raise RuntimeError\nlibrary.subprocess.Popen = refuse\n"
    assert finish(process(sources, refusal + textwrap.dedent(code))) == "42 set()\n"
    (file,) = cache.glob("*.so")
    assert {path.name for path in cache.iterdir()} == {file.name, "kernels.lock"}


@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
def test_flags_of_the_compiler(instructions, sources, cache, compiler, monkeypatch):
    monkeypatch.setattr(library, "instruction_set", lambda: instructions)
    (compiler / "go").touch()
    headers = '#if !__has_include("xla/ffi/api/ffi.h")\n#error no headers of JAX\n#endif\n'
    with open(sources / "part.cc", "a") as file:
        file.write(headers)
    assert library.obtain(sources, cache).answer() == 42
    *compiled, linked = runs(compiler)
    for line in compiled:
        words = line.split()
        last = [word for word in words if word.startswith("-O")][-1]
        assert last == ("-O1" if "ffi.cc" in line else "-O3")
        assert {"-std=c++20", "-fPIC", "-ffp-contract=off", "-mavx2", "-mfma"} <= {*words}
        assert ("-mavx512bw" in words) == (instructions == "avx512")
        assert f"-I{jax.ffi.include_dir()}" in words
        assert "-march" not in line and "-ffast-math" not in line
    assert {"-shared", "-s"} <= {*linked.split()}


def test_the_key_changes_with_all_that_the_library_depends_on(sources, tmp_path, monkeypatch):
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    commands = {"g++": ["g++"], "CXX": ["g++", str(tool)]}

    def key(instructions="avx2", commands=commands):
        return library.key(sources, instructions, commands)

    keys = [key()]
    assert key() == keys[0] and len(keys[0]) == 32
    keys += [key("avx512"), key(commands={"g++": ["g++"]}), key(commands={})]
    os.utime(tool, (1, 1))
    keys.append(key())
    tool.write_text("#!/bin/sh\n\n")
    os.utime(tool, (1, 1))
    keys.append(key())
    for name in ("part.h", "part.cc"):
        with open(sources / name, "a") as file:
            file.write("\n")
        keys.append(key())
    (sources / "part.cc").rename(sources / "other.cc")
    keys.append(key())
    monkeypatch.setattr(library, "_FLAGS", ("-O2",))
    keys.append(key())
    keys += [key(commands={f"ziglang {version}": ["python"]}) for version in "12"]
    monkeypatch.setattr(library.metadata, "version", lambda name: f"{name} 0")
    keys.append(key())
    assert len({*keys}) == len(keys)


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ("/bin/false", "exit status 1"),
        ("/none/c++ -m64", "[Errno 2] No such file or directory: '/none/c++'"),
        ('g++ "', "[Errno 2] No such file or directory: 'g++ \"'"),
        ("g++ -no-such-option", "g++: error: unrecognized command-line option"),
    ],
)
def test_a_compiler_of_the_user_that_fails_is_reported_and_the_next_is_tried(
    chosen, problem, sources, cache, monkeypatch
):
    monkeypatch.setenv("CXX", chosen)
    with pytest.warns(UserWarning) as warned:
        assert library.obtain(sources, cache).answer() == 42
    (warning,) = warned
    assert str(warning.message).startswith(f"CXX={chosen} failed: {problem}")
    assert str(warning.message).endswith("; g++ compiled the kernels")


def test_the_next_compiler_is_tried_without_a_word_if_it_is_not_the_users(
    sources, compiler, recwarn
):
    (compiler / "go").touch()
    commands = {"bad": ["false"], "good": [str(compiler / "c++")]}
    library.build(sources, "avx2", commands, compiler)
    assert ctypes.CDLL(str(compiler / "library.so")).answer() == 42 and not recwarn.list


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_one_line_says_what_was_tried_and_what_to_do(sources, monkeypatch):
    end = (
        ": training uses XLA's own convolutions, which take about 6 times as long; "
        "run `pip install ziglang` or install g++ to fix this"
    )
    with pytest.raises(library.UnavailableError) as error:
        library.load()
    assert str(error.value) == f"The kernels cannot be compiled (found no C++ compiler){end}"
    monkeypatch.setenv("CXX", "/usr/bin/false")
    with pytest.raises(library.UnavailableError) as again:  # the failure is kept
        library.load()
    assert str(again.value) == str(error.value)


@pytest.mark.usefixtures("no_compiler")
def test_an_error_of_the_compiler_is_told_by_its_first_line(sources, cache, monkeypatch):
    monkeypatch.setenv("CXX", "/usr/bin/g++")
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    (sources / "part.cc").write_text("int f() {\n  return nothing;\n}\n#error too\n")
    with pytest.raises(library.UnavailableError) as error:
        library.obtain(sources, cache)
    message = str(error.value)
    assert "\n" not in message and "CXX=/usr/bin/g++ failed: " in message
    assert "part.cc:4:2: error: #error too; found no other C++ compiler)" in message


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "longer", "unsealed", "of another"])
def test_a_damaged_or_foreign_file_is_compiled_again_and_never_loaded(damage, sources, cache):
    library.obtain(sources, cache)
    (file,) = cache.glob("*.so")
    intact = file.read_bytes()
    with open(sources / "part.h", "a") as header:
        header.write("\n")
    library.obtain(sources, cache)
    (other,) = {*cache.glob("*.so")} - {file}
    other.unlink()  # to write into a library that is loaded would end this process
    other.write_bytes(
        {
            "empty": b"",
            "cut": intact[: len(intact) // 2],
            "flipped": intact[:5000] + bytes([intact[5000] ^ 1]) + intact[5001:],
            "longer": intact + b"\0",
            "unsealed": intact[:-32],
            "of another": intact,
        }[damage]
    )
    assert library._open(other, other.stem.removeprefix("kernels-")) is None
    assert library.obtain(sources, cache).answer() == 42
    assert other.read_bytes()[-32:] != intact[-32:]
    assert library._open(other, other.stem.removeprefix("kernels-"))


@pytest.mark.parametrize("place", ["a file", "no such place", "no home", "full", "no locks"])
def test_without_a_cache_that_can_be_written_a_temporary_folder_is_used(
    place, sources, cache, monkeypatch
):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(cache.parent))
    if place == "a file":
        cache.parent.write_text("")
    elif place == "no such place":
        monkeypatch.setenv("HOME", "/proc/none")
    elif place == "no home":
        monkeypatch.setattr(Path, "home", lambda: Path("~").expanduser())
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    elif place == "full":
        folder = cache.parent / ".cache" / "jax_mnist"
        folder.mkdir(parents=True)
        (folder / f"kernels-{os.getpid()}.tmp").symlink_to("/dev/full")
    else:
        monkeypatch.setattr(fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError("no locks")))
    assert library.load().answer() == 42
    files = [path.name for path in cache.parent.rglob("*")] if cache.parent.is_dir() else []
    assert sum(name.endswith(".so") for name in files) == (place == "no locks")
    assert not any(name.endswith(".tmp") for name in files) and not Path("~").exists()


def test_of_processes_that_start_together_one_compiles(sources, compiler):
    several = [process(sources, "print(library.load().answer())") for _ in range(3)]
    wait_for(compiler / "started")
    time.sleep(0.2)  # the others come to the lock
    (compiler / "go").touch()
    assert [finish(one) for one in several] == ["42\n"] * 3
    assert len(runs(compiler)) == 3


def test_a_process_takes_over_from_one_that_was_killed(sources, compiler, cache, tmp_path):
    first = process(sources, "library.load()")
    wait_for(compiler / "started")
    second = process(sources, "print(library.load().answer())")
    time.sleep(0.2)
    assert second.poll() is None
    first.kill()
    first.communicate()
    (compiler / "go").touch()
    assert finish(second) == "42\n"
    (abandoned,) = (tmp_path / "temporary").iterdir()  # which only the system can remove
    shutil.rmtree(abandoned)


def test_the_library_is_compiled_while_the_process_goes_on(sources, compiler):
    library.start()
    library.start()
    wait_for(compiler / "started")
    threading.Timer(0.1, (compiler / "go").touch).start()
    found = library.load()
    library.start()
    assert found.answer() == 42 and library.load() is found
    assert len(runs(compiler)) == 3


def test_threads_that_load_together_get_one_library(sources, compiler):
    (compiler / "go").touch()
    found = []
    threads = [threading.Thread(target=lambda: found.append(library.load())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len({*map(id, found)}) == 1
    assert len(runs(compiler)) == 3


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_process_that_ends_takes_its_compilers_with_it(interrupted, sources, compiler, cache):
    code = """
    library.start()
    wait_for(compiler / "started")
    """
    if interrupted:
        code += """
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        library.load()
    except KeyboardInterrupt:
        print("interrupted")
    """
    begin = time.monotonic()
    started = process(sources, textwrap.dedent(code))
    wait_for(compiler / "started")
    assert finish(started) == "interrupted\n" * interrupted
    assert time.monotonic() - begin < 10
    assert ended(int((compiler / "started").read_text()))
    assert [path.name for path in cache.iterdir()] == ["kernels.lock"]


def test_a_process_that_waits_for_another_can_end(sources, compiler, cache):
    builder = process(sources, "library.load()")
    wait_for(compiler / "started")
    finish(process(sources, "library.start(); time.sleep(0.2)"))
    (compiler / "go").touch()
    finish(builder)


@pytest.mark.parametrize("killed", [False, True])
def test_a_forked_process_waits_for_its_parent_and_takes_over_if_it_dies(
    killed, sources, compiler, tmp_path
):
    code = f"""
    library.start()
    wait_for(compiler / "started")
    child = os.fork()
    if not child:
        if {killed}:
            wait_for(compiler / "killed")
        (compiler / "go").touch()
        answer = library.load().answer()
        (compiler / "answer").write_text(str(answer))
        sys.exit()  # with all that Python does at the end of a process
    if {killed}:
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == 0
    library.load()
    """
    started = process(sources, code)
    if killed:
        assert started.wait(30) == -signal.SIGKILL
        (compiler / "killed").touch()
        wait_for(compiler / "answer")
        for abandoned in (tmp_path / "temporary").iterdir():
            shutil.rmtree(abandoned, ignore_errors=True)
    else:
        finish(started)
        assert len(runs(compiler)) == 3
    assert (compiler / "answer").read_text() == "42"
    started.stdout.close()


def test_a_forked_process_has_the_library_of_its_parent(sources):
    code = """
    library.load()
    library.obtain = None
    child = os.fork()
    if not child:
        os._exit(library.load().answer())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert finish(process(sources, code)) == "42\n"


def test_the_projects_own_kernels_are_compiled_or_in_the_users_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", CACHE)  # other tests need them, too
    library.start()
    assert isinstance(library.load(), ctypes.CDLL)
