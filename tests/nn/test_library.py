"""The library of kernels is compiled once, or one line says why there is none."""

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jax_mnist.nn import library

pytestmark = pytest.mark.skipif(
    not shutil.which("g++") or not library.instruction_set(),
    reason="needs g++ and a processor with AVX2",
)

AVX2 = "fpu sse2 avx avx2 fma"
AVX512 = f"{AVX2} avx512f avx512vl avx512dq avx512bw"

# Logs what it is told, and waits for the file `go`.
COMPILER = """#!/bin/sh
cd "$(dirname "$0")"
echo "$@" >> log
while [ ! -e go ]; do sleep 0.02; done
exec g++ "$@"
"""


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The empty cache of a process that has loaded nothing, without settings of the user."""
    for name in ("CXX", "JAX_MNIST_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    library.load.cache_clear()
    yield tmp_path / "cache" / "jax_mnist"
    library.load.cache_clear()


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
    monkeypatch.setattr(library.util, "find_spec", lambda name: None)


def again():
    """What a new process loads."""
    library.load.cache_clear()
    return library.load()


def process(sources):
    """Starts a process that loads the library of these sources and prints its answer."""
    code = f"""
import pathlib
from jax_mnist.nn import library
library.SOURCES = pathlib.Path({str(sources)!r})
print(library.load().answer())
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("features", "wanted", "expected"),
    [
        (AVX512, None, "avx512"),
        (AVX512, "avx2", "avx2"),
        (AVX512, "off", None),
        (AVX512.replace("avx512bw", ""), "", "avx2"),
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


@pytest.mark.parametrize(
    ("wanted", "problem"), [("neon", "unknown"), ("avx512", "this processor cannot run it")]
)
def test_an_instruction_set_that_is_unknown_or_cannot_run_is_an_error(
    wanted, problem, tmp_path, monkeypatch
):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {AVX2}\n")
    monkeypatch.setattr(library, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("JAX_MNIST_KERNELS", wanted)
    message = f"^JAX_MNIST_KERNELS={wanted}: {problem}; choose one of: avx2, off$"
    with pytest.raises(ValueError, match=message):
        library.load()


@pytest.mark.parametrize("place", ["other system", "other processor", "off"])
def test_without_kernels_for_the_processor_no_remedy_is_offered(place, monkeypatch):
    if place == "other system":
        monkeypatch.setattr(sys, "platform", "darwin")
    elif place == "other processor":
        monkeypatch.setattr(library, "_CPUINFO", Path("/none"))
    else:
        monkeypatch.setenv("JAX_MNIST_KERNELS", "off")
    with pytest.raises(library.UnavailableError) as error:
        library.load()
    begin = "JAX_MNIST_KERNELS=off: " if place == "off" else "The kernels need Linux and an x86-64 "
    assert str(error.value).startswith(begin)
    assert "6 times" in str(error.value) and "install" not in str(error.value)


def test_a_second_process_needs_no_compiler(sources, cache, request):
    assert library.load().answer() == 42
    (file,) = cache.glob("*.so")
    assert {path.name for path in cache.iterdir()} == {file.name, "kernels.lock"}
    request.getfixturevalue("no_compiler")
    assert again().answer() == 42


def test_what_the_library_depends_on_has_it_compiled_again(sources, cache, monkeypatch):
    digests = [library._digest("avx2"), library._digest("avx512")]
    for name in ("part.h", "part.cc"):
        with open(sources / name, "a") as file:
            file.write("\n")
        digests.append(library._digest("avx2"))
    (sources / "part.cc").rename(sources / "other.cc")
    digests.append(library._digest("avx2"))
    monkeypatch.setenv("CXX", "clang++")
    digests.append(library._digest("avx2"))
    monkeypatch.setattr(library.metadata, "version", lambda name: f"{name} 0")
    digests.append(library._digest("avx2"))
    assert len({*digests}) == len(digests)


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ("/bin/false", "exit status 1"),
        ("/none/c++ -m64", "[Errno 2] No such file or directory: '/none/c++'"),
        ("g++ -no-such-option", "g++: error: unrecognized command-line option"),
    ],
)
def test_a_compiler_that_fails_is_reported_and_the_next_one_is_tried(
    chosen, problem, sources, monkeypatch
):
    monkeypatch.setenv("CXX", chosen)
    with pytest.warns(UserWarning) as warned:
        assert library.load().answer() == 42
    (warning,) = warned
    assert str(warning.message).startswith(f"CXX={chosen} failed: {problem}")
    assert str(warning.message).endswith("; g++ compiled the kernels")


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_one_line_says_what_to_do():
    end = (
        ": training uses XLA's own convolutions, which take about 6 times as long; "
        "run `pip install ziglang` or install g++ to fix this"
    )
    with pytest.raises(library.UnavailableError) as error:
        library.load()
    assert str(error.value) == f"The kernels cannot be compiled (found no C++ compiler){end}"


def test_an_error_of_the_compiler_is_told_by_its_first_line(sources, monkeypatch):
    monkeypatch.setenv("CXX", "/usr/bin/g++")
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    monkeypatch.setattr(library.util, "find_spec", lambda name: None)
    (sources / "part.cc").write_text("int f() {\n  return nothing;\n}\n#error too\n")
    with pytest.raises(library.UnavailableError) as error:
        library.load()
    message = str(error.value)
    assert "\n" not in message and "CXX=/usr/bin/g++ failed: " in message
    assert "part.cc:4:2: error: #error too; found no other C++ compiler)" in message


@pytest.mark.parametrize("content", [b"", b"\0" * 5000])
def test_a_file_of_the_cache_that_is_no_library_is_replaced(content, sources, cache):
    cache.mkdir(parents=True)
    file = cache / f"kernels-{library._digest(library.instruction_set())}.so"
    file.write_bytes(content)
    assert library.load().answer() == 42
    assert file.stat().st_size > len(content)


@pytest.mark.parametrize("place", ["a file", "no such place", "no home", "no locks"])
def test_where_the_library_cannot_be_kept_it_is_loaded_all_the_same(
    place, sources, cache, monkeypatch
):
    if place == "a file":
        cache.parent.write_text("")
    elif place == "no such place":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    elif place == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: Path("~").expanduser())
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    else:
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks")))
    assert library.load().answer() == 42
    assert len([*cache.glob("*.so")] if cache.is_dir() else []) == (place == "no locks")


def test_of_processes_that_start_together_one_compiles(sources, compiler):
    several = [process(sources) for _ in range(3)]
    wait_for((compiler / "log").exists)
    time.sleep(0.2)  # the others come to the lock
    (compiler / "go").touch()
    assert [one.communicate(timeout=60)[0] for one in several] == ["42\n"] * 3
    assert len((compiler / "log").read_text().splitlines()) == 3  # two files, and the library


def test_a_process_takes_over_from_one_that_was_killed(sources, compiler):
    first = process(sources)
    wait_for((compiler / "log").exists)
    second = process(sources)
    first.kill()
    first.communicate()
    (compiler / "go").touch()
    assert second.communicate(timeout=60)[0] == "42\n"


def test_the_projects_own_kernels_compile():
    assert isinstance(library.load(), ctypes.CDLL)
