"""Four CPU devices, and compiled programs shared between the processes of one test run."""

import os
import tempfile

import chex

chex.set_n_cpu_devices(4)
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
