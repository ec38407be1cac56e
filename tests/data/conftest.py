"""Small data sets: a KMNIST that is served over HTTP, and a folder of IDX files."""

import functools
import gzip
import http.server
import threading
import types

import idx_files
import numpy as np
import pytest


@pytest.fixture
def small(tmp_path, monkeypatch):
    """KMNIST as a few digits of MNIST, served over HTTP as TFDS expects the real one."""
    if not idx_files.tfds_can_be_imported():
        pytest.skip("tensorflow-datasets cannot be imported")
    served = tmp_path / "served"
    served.mkdir()
    idx_files.write_source(served)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/"
    idx_files.shrink_kmnist(monkeypatch, served, url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    data_dir = tmp_path / "data"
    yield types.SimpleNamespace(
        url=url,
        data_dir=data_dir,
        served=served,
        check=functools.partial(idx_files.check_kmnist, data_dir),
        cache=data_dir / "jax_mnist" / "kmnist-3.0.1.npz",
        folder=data_dir / "kmnist" / "3.0.1",
    )
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def prepared(small):
    """The small KMNIST after it was loaded."""
    small.check()
    return small


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "own"
    folder.mkdir()
    for prefix, count in (("train", 50), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        compressed = gzip.compress(idx_files.idx_bytes(images))
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(compressed)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_files.idx_bytes(labels))
    return folder
