"""The same digits on every processor, whatever its number of cores and its instructions."""

import json
import os
import shutil
import subprocess
import sys

import golden
import jax
import pytest

from jax_mnist.nn import library

KNOWN = json.loads(golden.FILE.read_text())

pytestmark = [
    pytest.mark.skipif(
        library.instruction_set() is None, reason="this processor has other convolutions"
    ),
    pytest.mark.skipif(
        jax.__version__ not in KNOWN, reason=f"no digests for JAX {jax.__version__} in golden.json"
    ),
]


def digests(*arguments, cores=None, emulator=(), **environment):
    """The digests that a process of its own computes, on the given number of cores."""
    inherited = {
        k: v for k, v in os.environ.items() if k != "XLA_FLAGS"
    }  # the program sets its own
    some = sorted(os.sched_getaffinity(0))[:cores]
    process = subprocess.run(
        [*emulator, sys.executable, golden.__file__, *arguments],
        env=inherited | {"JAX_PLATFORMS": "cpu"} | environment,
        preexec_fn=lambda: os.sched_setaffinity(0, some),
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(process.stdout)


def check(digest_of):
    assert digest_of == {name: KNOWN[jax.__version__][name] for name in digest_of}


def test_training_has_the_digits_of_every_other_processor():
    check(digests("bn", "all"))


def test_one_core_with_shorter_registers_computes_the_same_digits():
    check(digests("bn", cores=1, JAX_MNIST_KERNELS="avx2"))


@pytest.mark.parametrize("processor", ["Haswell", "EPYC-Rome"])
def test_emulated_processors_without_avx512_compute_the_same_digits(processor, thorough):
    """The emulator answers for the processor to every library, and computes all instructions."""
    emulator = shutil.which("qemu-x86_64")
    if not thorough or not emulator:
        pytest.skip("takes minutes: --thorough, with qemu-user installed")
    # Without the cache, where programs of the real processor lie.
    settings = {"JAX_MNIST_KERNELS": "avx2", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    digest_of = {
        name: digests("bn", "--steps=2", emulator=prefix, **settings)
        for name, prefix in (("this", ()), (processor, (emulator, "-cpu", processor)))
    }
    assert digest_of[processor] == digest_of["this"]


def test_every_recipe_has_the_digits_of_every_other_processor(thorough):
    if not thorough:
        pytest.skip("compiles a program for each recipe: --thorough")
    check(digests())
