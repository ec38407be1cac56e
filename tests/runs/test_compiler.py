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


STORED = """
import functools
import jax, jax.numpy as jnp
from jax_mnist.nn.xla import Compiled
from jax_mnist.runs import compiler
compiler.configure()
@functools.partial(Compiled, static_argnames="power", donate_argnames="x")
def f(power, x, *, offset):
    print("traced", power)
    return {"y": x ** (power if isinstance(power, int) else 2) + offset["o"]}
for power in (2, 3):
    with compiler.stored_programs():
        for _ in range(2):
            x = jnp.arange(4.0)
            print(f(power, x, offset={"o": jnp.float32(1)})["y"][3], x.is_deleted())
"""


def test_a_stored_program_is_not_traced_again(tmp_path):
    def start():
        return run(STORED, JAX_COMPILATION_CACHE_DIR=str(tmp_path)).splitlines()

    results = ["10.0 True"] * 2, ["28.0 True"] * 2
    compiled = ["traced 2", *results[0], "traced 3", *results[1]]
    assert start() == compiled
    files = sorted(tmp_path.glob("program-*"))
    assert len(files) == 2
    assert start() == [*results[0], *results[1]]
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])
    assert start() == compiled  # a damaged file is replaced
    assert start() == [*results[0], *results[1]]


def test_a_program_is_not_stored_if_its_arguments_cannot_be_told_in_another_process(tmp_path):
    code = STORED.replace("(2, 3)", "(object(),)")
    run(code, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert not [*tmp_path.glob("program-*")]
