"""The runs of these tests train a tiny network: the network is not what is tested."""

from pathlib import Path

import pytest
import tiny

from jax_mnist.runs import loop
from jax_mnist.runs.folder import Run


@pytest.fixture(autouse=True, scope="module")
def _tiny_network():
    with tiny.network():
        yield


@pytest.fixture(scope="session")
def three():
    """The job of three runs, the last of which diverges, and the progress after every two steps."""
    fields = ({}, {"seed": 1}, {"l2": 1e30})
    nowhere = Path("/proc/nowhere")  # where nothing can be written
    with tiny.network(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "MAX_STEPS_PER_CALL", {"cpu": 6})
        runs = [Run(f"{i}", tiny.config(**f), nowhere) for i, f in enumerate(fields)]
        job, start = loop.build(runs)
        return job, [tiny.copy_of(start), *map(tiny.copy_of, loop.advance(job, start))]
