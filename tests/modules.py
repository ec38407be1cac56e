"""Imports files that are in no package: scripts, benchmarks and configs."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from absl import flags

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def as_a_script() -> Iterator[pytest.MonkeyPatch]:
    """Imports from its folders succeed within it, and flags that are defined in it end with it."""
    known = set(flags.FLAGS)
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("scripts", "benchmarks"):
            patch.syspath_prepend(ROOT / folder)
        try:
            yield patch
        finally:
            for name in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()


def load(path: str) -> ModuleType:
    """Imports a file, given its path in the repository."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    with as_a_script():
        spec.loader.exec_module(module)
    return module
