"""The settings of this process do what they are for."""

import os
import subprocess
import sys

import pytest


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
    (folder,) = (tmp_path / "cache" / "jax_mnist").iterdir()
    assert any(folder.iterdir())
    run(COMPILE, XDG_CACHE_HOME=str(tmp_path / "other"), JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a choice of cores")
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two cores")
def test_what_was_compiled_for_one_core_is_not_used_on_more(tmp_path):
    run(COMPILE, XDG_CACHE_HOME=str(tmp_path))
    one_core = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    run(one_core + COMPILE, XDG_CACHE_HOME=str(tmp_path))
    assert len(list((tmp_path / "jax_mnist").iterdir())) == 2
