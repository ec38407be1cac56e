"""Executes docs/tour.ipynb, the notebook for students.

python tests/tour.py --write      # after a change of its code: executes it and keeps its outputs

The notebook holds a digest of the code that its outputs are of. The address of the repository,
which it needs on Colab, is that of pyproject.toml.
"""

import argparse
import hashlib
import json
import re
import shutil
import tempfile
import tomllib
from pathlib import Path

import nbclient
import nbformat

from jax_mnist.data import datasets

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "tour.ipynb"
READ = ("study/results.csv",)  # by the notebook
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
URL = PROJECT.get("urls", {}).get("Repository", "https://github.com/OWNER/jax_mnist")
REPOSITORY = URL.removeprefix("https://github.com/")
ADDRESS = re.compile(r"(github(?:\.com)?/)([\w.-]+/jax_mnist)\b")  # Colab's, and GitHub's


def read():
    return nbformat.read(FILE, as_version=4)


def digest(notebook):
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def execute(notebook, folder):
    """Executes a notebook in place, as if it were in `folder/docs`.

    Raises:
      CellExecutionError: A cell raised an error.
    """
    datasets.load("mnist", "train")  # or a line would say where it is prepared
    for name in READ:
        (folder / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "docs" / name, folder / "docs" / name)
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": folder / "docs"}},
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what a bar leaves is empty
            cell.outputs = [o for o in cell.outputs if o.get("data") != {"text/plain": ""}]


def write():
    notebook = read()
    for cell in notebook.cells:
        cell.source = ADDRESS.sub(rf"\g<1>{REPOSITORY}", cell.source)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "sha256": digest(notebook)}
    nbformat.write(notebook, FILE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    write()
