"""The runs of these tests train a tiny network: the network is not what is tested."""

import pytest
import tiny


@pytest.fixture(autouse=True, scope="module")
def _tiny_network():
    with tiny.network():
        yield
