"""Exported files give the probabilities of the network, in JAX alone and in PyTorch."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jax.export
import numpy as np
import pytest
from safetensors import numpy as safetensors

from jax_mnist.inference import export
from jax_mnist.inference.predict import load_network, predict

ROOT = Path(__file__).parents[2]
EXPORT = ROOT / "scripts" / "export.py"
PAGE = (ROOT / "docs" / "inference.md").read_text()
TEN_LINES = PAGE[PAGE.index("import jax.export") :].partition("```")[0]
IN_PYTORCH = PAGE[PAGE.index("import json, numpy, torch") :].partition("```")[0]


@pytest.fixture(scope="module")
def exported_file(run, scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    result = scripts.run(EXPORT, run, "--out=a.jaxexport", cwd=folder)
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
    program = program.replace("runs/gbn/network.jaxexport", str(exported_file))
    program += "\nnp.save('out.npy', probabilities)\n"
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, env=environment)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), recorded.mean(0), atol=1e-5)


def test_the_function_takes_any_batch_size_on_the_platforms_it_names(exported_file, images):
    exported = jax.export.deserialize(bytearray(exported_file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda")
    probabilities = exported.call(images[:1])
    assert probabilities.shape == (1, 10) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, exported.call(images)[:1], atol=1e-5)


def test_the_constants_of_another_data_set_are_exported_with_the_network(run, images):
    network = load_network(run / "seed-0")
    (record,) = network.records
    # Half of both constants, for pixels of half the value, give the same normalised image.
    halves = {key: value / 2 for key, value in record["normalization"].items()}
    halved = network._replace(records=[record | {"normalization": halves}])
    exported = jax.export.deserialize(bytearray(export.to_jaxexport(halved)))
    even = images // 2 * 2
    np.testing.assert_allclose(exported.call(even // 2), predict(network, even), atol=1e-5)


def test_tensors_are_named_and_shaped_as_in_pytorch(run, scripts, tmp_path):
    folder = shutil.copytree(run, tmp_path / "gbn")
    result = scripts.run(EXPORT, "gbn", "--format=safetensors", cwd=tmp_path)
    data = (folder / "network.safetensors").read_bytes()
    assert result.stdout == f"gbn/network.safetensors: 2 replicas, {len(data):,} bytes\n"
    network = load_network(run)
    tensors = safetensors.load(data)
    assert sum(array.size for name, array in tensors.items() if "running" not in name) == 2 * 8546
    kernel = network.variables["params"]["conv2"]["kernel"]
    np.testing.assert_array_equal(tensors["conv2.weight"], kernel.transpose(0, 4, 3, 1, 2))
    variance = network.variables["batch_stats"]["norm5"]["var"]
    np.testing.assert_array_equal(tensors["norm5.running_var"], variance)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = json.loads(header["__metadata__"]["network"])
    assert about["seeds"] == [0, 1] and about["layers"][2]["then"][-1] == "max-pool 2x2"


def test_the_documented_lines_give_the_probabilities_in_pytorch(run, images, recorded, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "network.safetensors").write_bytes(export.to_safetensors(load_network(run)))
    np.save(tmp_path / "my_digits.npy", images)
    program = IN_PYTORCH.replace("runs/gbn/", "")
    program += "\nnumpy.save('out.npy', logits.softmax(1).detach().numpy())\n"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), recorded[0], atol=1e-5)


def test_every_file_of_the_package_is_installed_with_it():
    package = ROOT / "jax_mnist"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["jax_mnist"]
    files = {path for path in package.rglob("*.*") if not path.suffix.startswith(".py")}
    assert files <= {path for pattern in patterns for path in package.glob(pattern)}
