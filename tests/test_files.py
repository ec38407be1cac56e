"""Files are written whole or not at all."""

import resource
import signal
import subprocess
import sys

import pytest

from jax_mnist import files


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    return tmp_path / "file"


def test_a_process_that_is_killed_while_it_writes_leaves_the_earlier_version(path):
    code = """
import os, sys
from jax_mnist import files
os.replace = lambda *_: os.kill(os.getpid(), 9)
files.write_atomically(sys.argv[1], b"new")
"""
    process = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_a_full_disk_leaves_the_earlier_version_and_nothing_else(path):
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"File too large; nothing was changed$"):
            files.write_atomically(path, bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old" and [*path.parent.iterdir()] == [path]


def test_a_file_gets_its_folder(tmp_path):
    files.write_atomically(tmp_path / "a" / "b" / "file", b"new")
    assert [p.read_bytes() for p in tmp_path.rglob("file")] == [b"new"]
