"""The settings of this process do what they are for."""

import os
import subprocess
import sys

import jax
import pytest

from jax_mnist.config import ConfigError
from jax_mnist.nn import library
from jax_mnist.runs import compiler

COMPILE = """
import os, jax
from jax_mnist.runs import compiler
compiler.configure()
jax.jit(lambda x: x + 1)(1.0)
print(os.environ["XLA_FLAGS"].strip())
"""
ONE_CORE = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"


def compiled(code=COMPILE, **environment):
    """Compiles a program in a process of its own; returns the flags that XLA got."""
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a choice of cores")
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_programs_are_kept_in_the_users_cache_folder_for_each_number_of_cores(tmp_path):
    flags = compiled(XDG_CACHE_HOME=str(tmp_path), XLA_FLAGS="")
    assert flags == "--xla_cpu_max_isa=AVX2"  # the same code for every processor
    compiled(ONE_CORE + COMPILE, XDG_CACHE_HOME=str(tmp_path), XLA_FLAGS="")
    folders = [*(tmp_path / "jax_mnist").glob("*-cores")]
    assert len(folders) == 2 and all(any(folder.iterdir()) for folder in folders)


def test_the_users_own_cache_and_flags_are_left_alone(tmp_path):
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"), "XLA_FLAGS": "--xla_cpu_max_isa=AVX"}
    assert compiled(XDG_CACHE_HOME=str(tmp_path), **own) == own["XLA_FLAGS"]
    assert any((tmp_path / "own").iterdir()) and not [*tmp_path.rglob("*-cores")]


def test_where_jax_runs_already_a_warning_says_that_digits_may_differ(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(library, "instruction_set", lambda: "avx512")
    jax.devices()
    with pytest.warns(UserWarning, match=r"digits may differ .* XLA_FLAGS=--xla_cpu_max_isa=AVX2"):
        compiler.configure()
    assert not os.environ["XLA_FLAGS"]


def test_an_unknown_choice_of_kernels_is_an_error_in_one_line(monkeypatch):
    monkeypatch.setenv("JAX_MNIST_KERNELS", "sse")
    with pytest.raises(ConfigError, match=r"JAX_MNIST_KERNELS=sse: unknown; choose one of: .*off"):
        compiler.configure()


def test_a_plugin_that_does_not_fit_is_said_once_with_what_to_do(tmp_path, monkeypatch):
    info = tmp_path / "jax_cuda12_plugin-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: jax-cuda12-plugin\nVersion: 0.1.2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    compiler._check_plugins.cache_clear()
    with pytest.warns(UserWarning, match=r"jax-cuda12-plugin 0\.1\.2 does not fit jaxlib") as said:
        compiler.configure()
        compiler.configure()
    assert sum("does not fit" in str(warning.message) for warning in said) == 1
    compiler._check_plugins.cache_clear()
