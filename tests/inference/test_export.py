"""The exported file gives the probabilities of the network, with nothing but JAX."""

import subprocess
import sys
from pathlib import Path

import jax.export
import numpy as np
import pytest

from jax_mnist.inference import export
from jax_mnist.inference.predict import load
from jax_mnist.training.augment import MNIST, Normalization

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "inference.md").read_text()
TEN_LINES = PAGE[PAGE.index("import jax.export") :].partition("```")[0]


@pytest.fixture(scope="module")
def exported_file(run, scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    result = scripts.run(ROOT / "scripts" / "export.py", run, "--out=a.jaxexport", cwd=folder)
    assert result.returncode == 0, result.stderr
    size = (folder / "a.jaxexport").stat().st_size
    assert result.stdout == f"a.jaxexport: 2 replicas, {size:,} bytes\n"
    return folder / "a.jaxexport"


def test_the_documented_lines_need_nothing_but_jax(exported_file, images, recorded, tmp_path):
    assert 0 < len(TEN_LINES.splitlines()) <= 10
    np.save(tmp_path / "images.npy", images)
    others = ("jax_mnist", "flax", "optax", "ml_collections", "tensorflow_datasets")
    program = f"import sys\nfor name in {others}: sys.modules[name] = None\n" + TEN_LINES
    program = program.replace("my_digits.npy", "images.npy")
    program = program.replace("gbn.jaxexport", str(exported_file))
    program += "\nnp.save('out.npy', probabilities)\n"
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, env=environment)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), recorded.mean(0), atol=1e-5)


def test_the_function_takes_any_batch_size_on_the_platforms_it_names(
    exported_file, images, recorded
):
    exported = jax.export.deserialize(bytearray(exported_file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda")
    for batch in (images, images[:1]):
        probabilities = exported.call(batch)
        assert probabilities.shape == (len(batch), 10) and probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, recorded.mean(0)[: len(batch)], atol=1e-5)


def test_the_constants_of_another_data_set_are_exported_with_the_network(run, images):
    network = load(run / "seed-0")
    # Half of both constants, for pixels of half the value, give the same normalised image.
    halved = Normalization(MNIST.mean / 2, MNIST.std / 2)
    whole, half = (
        jax.export.deserialize(
            bytearray(export.serialize(network.model, network.variables, constants))
        ).call(levels)
        for constants, levels in ((MNIST, images // 2 * 2), (halved, images // 2))
    )
    np.testing.assert_allclose(whole, half, atol=1e-5)
