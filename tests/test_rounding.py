"""The bounds of `rounding` hold for float32 in any order, and little more than rounding passes."""

import numpy as np
import pytest
from rounding import Rounded, assert_close

X = np.random.default_rng(0).normal(3, 1, (500, 4)).astype(np.float32)


def normalized(x):
    """Of each column, by a variance that loses digits."""
    count = np.float32(len(x))
    mean, square = (np.cumsum(a, 0, dtype=np.float32)[-1] / count for a in (x, x * x))
    return (x - mean) / np.sqrt(square - mean * mean)


def test_float32_is_within_the_bound_in_any_order_of_summation():
    x = Rounded(X)
    mean = x.mean(0)
    expected = (x - mean) / (x.abs_sq().mean(0) - mean.abs_sq()).sqrt()
    for seed in range(50):
        order = np.random.default_rng(seed).permutation(len(X))
        found = normalized(X[order])
        assert_close(found, expected[order])
    found[7, 2] += 1e-3
    with pytest.raises(AssertionError, match="1 of 2000 entries are off by more than rounding"):
        assert_close(found, expected[order])
    with pytest.raises(AssertionError, match="2000 of 2000"):
        assert_close(found * np.nan, expected)


def test_functions_are_within_the_bound():
    shares = np.exp(X) / np.exp(X).sum(1, keepdims=True)
    of_rows = Rounded(X).exp() / Rounded(X).exp().sum(1, keepdims=True)
    found = {"shares": shares, "logs": np.log(shares), "rest": 1 - shares, "inverse": 1 / -shares}
    expected = {"shares": of_rows, "logs": of_rows.log()}
    expected |= {"rest": 1 - of_rows, "inverse": 1 / -of_rows}
    assert all(array.dtype == np.float32 for array in found.values())
    assert_close(found, expected)
    with pytest.raises(AssertionError, match="more than rounding"):
        assert_close(found | {"shares": shares * np.float32(1 + 1e-5)}, expected)
