"""Decoded examples, kept in one `.npz` file for each data set."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_mnist import files
from jax_mnist.data.types import Dataset, digest


def read(path: Path, name: str, splits: Iterable[str]) -> dict[str, Dataset] | None:
    """Reads splits of the data set `name`, and verifies the SHA-256 of each.

    Returns:
      The examples by split, or None if the file is missing, damaged or of another data set.
    """
    data: dict[str, Dataset] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for split in splits:
                data[split] = Dataset(archive[f"{split}_images"], archive[f"{split}_labels"])
                if str(archive[f"{split}_sha256"]) != digest(name, split, data[split]):
                    return None
    except Exception:  # damaged bytes can make zipfile and NumPy raise almost anything
        return None
    return data


def write(path: Path, name: str, data: Mapping[str, Dataset]) -> None:
    """Writes all splits of the data set `name` atomically.

    The caller must hold the lock of the folder: the temporary files of processes that were killed
    while they wrote are deleted.
    """
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink()
    arrays: dict[str, Any] = {}
    for split, part in data.items():
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = part
        arrays[f"{split}_sha256"] = np.array(digest(name, split, part))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    files.write_atomically(path, buffer.getvalue())
