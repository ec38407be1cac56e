"""Float64 results, and how far those of float32 may lie from them on any processor.

Processors add in different orders and fuse different operations, so a tolerance that holds on one
of them need not hold on another. `Rounded` goes through a formula as a NumPy array does, and counts
the roundings on its way: running error analysis, to first order (Higham, Accuracy and stability of
numerical algorithms, 2002, section 3.3).
"""

import jax
import jax.numpy as jnp
import numpy as np

ELEMENTARY = 4  # roundings of an exponential or a logarithm: they are right to two last digits
# Of its `n - 1` roundings, which are as often up as down, a sum gathers some sqrt(n - 1); more than
# four times as many it has with a probability of 2 exp(-4²/2) < 0.1 % even if all were of the
# largest size (Higham and Mary, A new approach to probabilistic rounding error analysis, 2019). The
# factor also pays for a computation that takes other steps than the formula.
FACTOR = 4


class Rounded:
    """A float64 array, and a bound of its error in units of half an epsilon.

    Attributes:
      value: The array, complex128 if it is complex.
      error: The bound, of the same shape: 1 where the value is 1 and was rounded once.
    """

    __array_ufunc__ = None  # or NumPy's arrays would take over the operators

    def __init__(self, value, error=0.0):
        value = np.asarray(value)
        self.value = value.astype(np.result_type(value.dtype, np.float64))
        self.error = np.broadcast_to(np.float64(error), self.value.shape)

    def __add__(self, other):
        other = exact(other)
        return _once_more(self.value + other.value, self.error + other.error)

    def __mul__(self, other):
        other = exact(other)
        error = abs(self.value) * other.error + abs(other.value) * self.error
        return _once_more(self.value * other.value, error)

    def __truediv__(self, other):
        other = exact(other)
        ratio = self.value / other.value
        error = (self.error + abs(ratio) * other.error) / abs(other.value)
        return _once_more(ratio, error)

    def __neg__(self):
        return Rounded(-self.value, self.error)

    def __sub__(self, other):
        return self + -exact(other)

    def __rsub__(self, other):
        return -self + other

    def __rtruediv__(self, other):
        return exact(other) / self

    __radd__ = __add__
    __rmul__ = __mul__

    def __getitem__(self, index):
        return self.rearranged(lambda a: a[index])

    def sum(self, axis=None, keepdims=False):
        value = self.value.sum(axis, keepdims=keepdims)
        terms = self.value.size // value.size
        size = abs(self.value).sum(axis, keepdims=keepdims)
        error = self.error.sum(axis, keepdims=keepdims) + np.sqrt(terms - 1) * size
        return Rounded(value, error)

    def mean(self, axis=None, keepdims=False):
        total = self.sum(axis, keepdims)
        return total / (self.value.size // total.value.size)

    def abs_sq(self):
        return _once_more(abs(self.value) ** 2, 2 * abs(self.value) * self.error)

    def sqrt(self):
        root = np.sqrt(self.value)
        return _once_more(root, self.error / (2 * root))

    def exp(self):
        value = np.exp(self.value)
        return Rounded(value, value * (self.error + ELEMENTARY))

    def log(self):
        value = np.log(self.value)
        return Rounded(value, self.error / self.value + ELEMENTARY * abs(value))

    def rearranged(self, function):
        """The result of a function that moves or picks entries."""
        return Rounded(function(self.value), function(self.error))


def concatenate(parts, axis=0):
    return Rounded(
        np.concatenate([part.value for part in parts], axis),
        np.concatenate([part.error for part in parts], axis),
    )


def log_softmax(logits):
    """Over the last axis."""
    shifted = logits - logits.value.max(-1, keepdims=True)
    return shifted - shifted.exp().sum(-1, keepdims=True).log()


def cross_entropy(logits, labels):
    """The mean over a batch."""
    return -log_softmax(logits)[np.arange(len(labels)), labels].mean()


def assert_close(found, expected, *, arithmetic=jnp.float32):
    """The arrays of a tree are those of another, of `Rounded`, but for rounding.

    Args:
      found: A tree of arrays.
      expected: A tree of `Rounded`.
      arithmetic: The dtype of the computation; results are rounded to their own dtype at last.
    """

    def check(expected, found):
        expected, found = exact(expected), np.asarray(found)
        assert found.shape == expected.value.shape
        kind = jnp.finfo(found.dtype)
        last = kind.eps / 2 * abs(expected.value) + kind.tiny  # what is smaller may be 0
        tolerance = FACTOR * jnp.finfo(arithmetic).eps / 2 * expected.error + last
        difference = abs(found.astype(expected.value.dtype) - expected.value)
        wrong = np.argwhere(~(difference <= tolerance))  # so that a NaN is wrong
        for worst in map(tuple, wrong[:1]):
            raise AssertionError(
                f"{len(wrong)} of {found.size} entries are off by more than rounding, such as "
                f"{found[worst]} for {expected.value[worst]}: {tolerance[worst]:.2g} is allowed"
            )

    jax.tree.map(check, expected, jax.device_get(found))


def exact(value):
    return value if isinstance(value, Rounded) else Rounded(value)


def _once_more(value, error):
    return Rounded(value, error + abs(value))
