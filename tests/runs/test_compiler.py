"""The settings of this process do what they are for."""

import os
import subprocess
import sys

import jax
import pytest

from jax_mnist.config import ConfigError
from jax_mnist.nn import library
from jax_mnist.runs import compiler


def run(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout


COMPILE = """
import jax, jax.numpy as jnp
from jax_mnist.runs import compiler
compiler.configure()
def f(x):
    for _ in range(60):
        x = jnp.sin(x) @ x
    return x
print(jax.jit(f)(jnp.ones((4, 4)))[0, 0])
"""


def test_programs_are_kept_in_the_users_cache_folder(tmp_path):
    run(COMPILE, XDG_CACHE_HOME=str(tmp_path / "cache"))
    (folder,) = (tmp_path / "cache" / "jax_mnist").glob("*-cores")
    assert any(folder.iterdir())
    run(COMPILE, XDG_CACHE_HOME=str(tmp_path / "other"), JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert not [*(tmp_path / "other").rglob("*-cores")]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a choice of cores")
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_what_was_compiled_for_one_core_is_not_used_on_more(tmp_path):
    run(COMPILE, XDG_CACHE_HOME=str(tmp_path))
    one_core = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    run(one_core + COMPILE, XDG_CACHE_HOME=str(tmp_path))
    assert len([*(tmp_path / "jax_mnist").glob("*-cores")]) == 2


def test_xla_is_told_to_make_the_same_code_for_every_processor():
    code = "import os; from jax_mnist.runs import compiler; {}; print(os.environ['XLA_FLAGS'])"
    assert "max_isa=AVX2" in run(code.format("compiler.configure()"), XLA_FLAGS="")
    chosen = "--xla_cpu_max_isa=AVX"
    assert run(code.format("compiler.configure()"), XLA_FLAGS=chosen).strip() == chosen


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
