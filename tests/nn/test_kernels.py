"""Every kind of kernels against XLA's own convolution and pooling in float64."""

import functools
import hashlib
import multiprocessing
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_mnist.nn import cpu, library, xla
from jax_mnist.nn import kernels as kernels_lib
from jax_mnist.nn.affine import Affine
from jax_mnist.nn.kernels import CPU, GPU, PLAIN, PORTABLE

ROUNDING = np.finfo(np.float32).eps / 2  # the most of a number that a rounding changes

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@functools.cache
def kinds():
    kernels = {"plain": PLAIN, "portable": PORTABLE, "GPU": GPU}
    return kernels | ({"CPU": CPU} if kernels_lib.for_backend() is CPU else {})


@pytest.fixture
def on_cpu():
    if "CPU" not in kinds():
        pytest.skip("there are no CPU kernels on this machine")


def has_avx512():
    return "avx512bw" in Path("/proc/cpuinfo").read_text()


def float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


# ---- Convolutions --------------------------------------------------------------------------------


def sums_of(moments):
    """Sums over positions, of entries and of their squares."""
    return [mean * moments.positions for mean in moments.means(False)]


def convolution(kernels, arguments, gradients, relu_in, relu_out):
    """Result, sums and sums of squares, and the gradients of x, the kernel and the map."""

    def forward(x, kernel, maps):
        affine = Affine(*maps, relu_in) if maps else None
        y, moments = kernels.convolve(kernels.from_images(x), kernel, affine, relu_out)
        return kernels.to_images(y), *sums_of(moments)

    @xla.jit
    def apply(arguments, gradients):
        result, pull = jax.vjp(forward, *arguments)
        return *result, *pull(gradients)

    return jax.device_get(apply(arguments, gradients))


def check_convolution(size, more, channels, features, batch, maps, relu_in, relu_out, seed):
    """Against float64, within the roundings behind each result.

    With a ReLU, all numbers are small integers, with which float32 is exact: rounding cannot change
    what it decides.
    """
    (rows, columns), (height, width) = size, np.add(size, more)
    rng = np.random.default_rng(seed)
    relu_in = relu_in and maps != "no"

    def numbers(*shape):
        integers = relu_in or relu_out
        return np.float32(rng.integers(-1, 2, shape) if integers else rng.normal(size=shape))

    y = batch, height - rows + 1, width - columns + 1, features
    positions = y[1] * y[2]
    examples = {"no": None, "shared": 1, "own": batch}[maps]
    maps = () if examples is None else (numbers(examples, channels), numbers(examples, channels))
    x, kernel = numbers(batch, height, width, channels), numbers(rows, columns, channels, features)
    given = (x, kernel, maps), (numbers(*y), numbers(batch, features), numbers(batch, features))

    # The roundings of the map and of y, of the gradient of y, and of the sums that each gradient
    # takes. A few more cover a sum's start.
    of_y = rows * columns * channels + 4
    of_x = of_y + rows * columns * features + 6
    of_kernel, of_maps = of_y + batch * positions + 6, of_x + batch * height * width + 2
    roundings = of_y, of_y + positions, of_y + positions + 1, of_x, of_kernel, of_maps

    with jax.enable_x64(True):
        expected = convolution(PLAIN, *float64(given), relu_in, relu_out)
        # The same sums, of absolute values.
        sums = convolution(PLAIN, *jax.tree.map(np.abs, float64(given)), False, False)
    for kind, kernels in kinds().items():
        found = convolution(kernels, *given, relu_in, relu_out)
        for n, *trees in zip(roundings, expected, sums, found, strict=True):
            for want, size, got in zip(*map(jax.tree.leaves, trees), strict=True):
                assert got.dtype == np.float32 and got.shape == want.shape
                assert (np.abs(got - want) <= n * ROUNDING * size).all(), kind


def test_convolutions_and_their_gradients_are_those_of_float64(thorough):
    @settings(max_examples=50 if thorough else 4, deadline=None)
    @given(
        st.sampled_from([(1, 1), (3, 3), (2, 3), (3, 2), (1, 3), (5, 5), (4, 1)]),
        st.tuples(st.integers(0, 13), st.integers(0, 13)), st.integers(1, 24), st.integers(1, 24),
        st.sampled_from([0, 1, 15, 16, 17, 50]), st.sampled_from(["no", "shared", "own"]),
        st.booleans(), st.booleans(), st.integers(0, 99),
    )  # fmt: skip
    @example((3, 3), (25, 25), 1, 10, 3, "no", False, True, 0)  # the network's first layers
    @example((3, 3), (23, 23), 10, 16, 17, "own", True, True, 0)
    @example((1, 1), (23, 23), 16, 10, 16, "shared", False, False, 0)
    @example((3, 3), (9, 6), 10, 14, 17, "own", False, False, 0)
    @example((2, 3), (4, 5), 23, 11, 50, "own", True, True, 0)
    @example((1, 1), (3, 3), 1, 1, 50, "own", True, True, 0)  # some examples are all zeros
    @example((5, 5), (3, 7), 7, 13, 0, "shared", True, False, 0)
    @example((1, 1), (1, 1), 2, 3, 0, "own", True, False, 0)
    def check(size, more, channels, features, batch, maps, relu_in, relu_out, seed):
        check_convolution(size, more, channels, features, batch, maps, relu_in, relu_out, seed)

    check()


@pytest.mark.parametrize("maps", [False, True])
def test_what_is_no_number_stays_so_through_a_relu(maps):
    x = np.random.default_rng(0).normal(size=(17, 4, 5, 3)).astype(np.float32)
    x[3, 1, 2, 0] = x[16, 0, 0, 2] = np.nan
    kernel = np.ones((2, 2, 3, 4), np.float32)
    affine = Affine(np.ones((1, 3), "f"), np.zeros((1, 3), "f"), True) if maps else None
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (1, 2))
    expected = np.repeat(np.isnan(windows).any((3, 4, 5), keepdims=True)[..., 0, 0], 4, 3)
    assert 0 < expected.sum() < expected.size
    for kernels in kinds().values():
        y, moments = kernels.convolve(kernels.from_images(x), kernel, affine, True)
        np.testing.assert_array_equal(np.isnan(kernels.to_images(y)), expected)
        np.testing.assert_array_equal(np.isnan(sums_of(moments)[0]), expected.any((1, 2)))


# ---- Pooling and interpolation -------------------------------------------------------------------


def max_pool(kernels, x, maps, relu):
    affine = Affine(*maps, relu) if maps else None
    return kernels.to_images(kernels.max_pool(kernels.from_images(x), affine))


def check_max_pool(height, width, channels, batch, maps, relu, seed):
    """All numbers are small integers, with which float32 is exact: ties are ties in any order."""
    rng = np.random.default_rng(seed)

    def integers(*shape):
        return rng.integers(-3, 4, shape).astype(np.float32)

    x, examples = integers(batch, height, width, channels), {"shared": 1, "own": batch}.get(maps)
    maps = () if maps == "no" else (integers(examples, channels), integers(examples, channels))
    dy = integers(batch, height // 2, width // 2, channels)

    def results(kernels):
        @xla.jit
        def apply(x, maps):
            y, pull = jax.vjp(lambda x, maps: max_pool(kernels, x, maps, relu), x, maps)
            return y, pull(dy)

        return apply(x, maps)

    expected = results(PLAIN)
    for kernels in kinds().values():
        jax.tree.map(np.testing.assert_array_equal, results(kernels), expected)


def test_pooling_gives_the_gradient_to_the_first_of_the_largest(thorough):
    @settings(max_examples=50 if thorough else 4, deadline=None)
    @given(
        st.integers(1, 9), st.integers(1, 9), st.integers(1, 20),
        st.sampled_from([0, 1, 15, 16, 17, 50]), st.sampled_from(["no", "shared", "own"]),
        st.booleans(), st.integers(0, 99),
    )  # fmt: skip
    @example(6, 8, 3, 17, "no", False, 0)
    @example(7, 5, 11, 17, "own", True, 0)
    def check(height, width, channels, batch, maps, relu, seed):
        check_max_pool(height, width, channels, batch, maps, relu, seed)

    check()


@pytest.mark.parametrize("relu", [None, False, True])
def test_a_window_with_what_is_no_number_has_no_largest_number(relu):
    """XLA's own pooling on a CPU loses some of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(17, 7, 9, 5)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    x[rng.random(x.shape) < 0.1] = np.inf
    maps = () if relu is None else (np.ones((1, 5), "f"), np.zeros((1, 5), "f"))
    expected = x[:, :6, :8].reshape(17, 3, 2, 4, 2, 5).max((2, 4))
    expected = np.maximum(expected, 0) if relu else expected
    for kernels in [k for k in kinds().values() if k is not PLAIN]:
        np.testing.assert_array_equal(max_pool(kernels, x, maps, relu), expected)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (28, 28)])
def test_interpolation_is_that_of_scipy(size):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, *size)).astype(np.float32)
    places = rng.uniform(-3, np.max(size) + 2, (3, 2, 2, *size)).astype(np.float32)
    places[0] = np.round(places[0])  # pixels themselves
    places[1, 0, 0] = -1e-9
    places[2, 1, :, 0, 0] = 1e30, -1e30
    read = functools.partial(scipy.ndimage.map_coordinates, order=1, mode="grid-constant")
    expected = [
        [read(image, p) for p in both]
        for image, both in zip(*float64((images, places)), strict=True)
    ]
    # Of the values that six roundings meet, none is more than four times the largest pixel.
    limit = 6 * 4 * ROUNDING * np.abs(images).max()
    for kernels in kinds().values():
        found = jax.vmap(jax.vmap(kernels.interpolate, (None, 0)))(images, places)
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


def test_places_that_are_no_numbers_lie_outside_of_an_image(on_cpu):
    image, (y, x) = np.ones((4, 5), np.float32), np.indices((4, 5)).astype(np.float32)
    y[0, :3], x[1, :3] = (np.nan, np.inf, -np.inf), (np.nan, np.inf, -np.inf)
    expected = np.isfinite(y) & np.isfinite(x)
    np.testing.assert_array_equal(CPU.interpolate(image, np.stack([y, x])), expected)


# ---- Under the transformations of JAX ------------------------------------------------------------


def integers(*shape, seed=0):
    """With small integers float32 is exact, and so are sums in any order."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


EXAMPLES = 24
X, KERNEL = integers(EXAMPLES, 5, 6, 3), integers(2, 3, 3, 4)
MAPS = integers(EXAMPLES, 3, seed=1), integers(EXAMPLES, 3, seed=2)


def loss(x, kernel, maps):
    y, moments = CPU.convolve(CPU.from_images(x), kernel, Affine(*maps, True), True)
    y = CPU.max_pool(y, None)
    sums, squares = sums_of(moments)
    return CPU.to_images(y).sum() + (sums**2).sum() - squares.sum()


gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_rematerialised_gradient_is_the_same(on_cpu):
    again = jax.jit(jax.value_and_grad(jax.checkpoint(loss), (0, 1, 2)))
    assert_same(again(X, KERNEL, MAPS), gradient(X, KERNEL, MAPS))


@pytest.mark.parametrize("axes", [(0, 0, 0), (None, 0, None), (0, None, None), (None, None, 0)])
def test_replicas_are_the_same_bit_for_bit_as_one_by_one(axes, on_cpu):
    rng = np.random.default_rng(0)
    given = [
        jax.tree.map(lambda a, n=axis: rng.normal(size=(3,) * (n == 0) + a.shape).astype("f"), tree)
        for tree, axis in zip((X, KERNEL, MAPS), axes, strict=True)
    ]
    found = jax.jit(jax.vmap(gradient, axes))(*given)
    for n in range(3):
        one = (
            tree if axis is None else jax.tree.map(lambda a: a[n], tree)  # noqa: B023
            for tree, axis in zip(given, axes, strict=True)
        )
        assert_same(jax.tree.map(lambda a: a[n], found), gradient(*one))  # noqa: B023


def test_shares_of_devices_have_the_gradients_of_the_whole(on_cpu):
    mesh, own, shared = Mesh(np.array(jax.devices()), ("data",)), P("data"), P()
    total = jax.shard_map(
        lambda *a: jax.lax.psum(loss(*a), "data"),
        mesh=mesh, in_specs=(own, shared, own), out_specs=shared, check_vma=False,
    )  # fmt: skip
    found = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(X, KERNEL, MAPS)
    assert_same(found, gradient(X, KERNEL, MAPS))


def test_a_gradient_that_nobody_asks_for_is_not_computed(on_cpu):
    def calls(argnums):
        text = jax.jit(jax.grad(loss, argnums)).lower(X, KERNEL, MAPS).as_text()
        (line,) = (n for n in text.splitlines() if "ConvolveBackward" in n)
        return line.split("->")[1]

    assert "tensor<0x5x6x3x16xf32>" in calls(1)
    for argnums in (0, 2, (0, 1)):
        assert "tensor<2x5x6x3x16xf32>" in calls(argnums)
    assert_same(jax.jit(jax.grad(loss, 1))(X, KERNEL, MAPS), gradient(X, KERNEL, MAPS)[1][1])


def test_derivatives_that_there_are_not_are_errors(on_cpu):
    def of_kernel(kernel):
        return loss(X, kernel, MAPS)

    with pytest.raises(TypeError, match="forward-mode autodiff"):
        jax.jvp(of_kernel, (KERNEL,), (KERNEL,))
    with pytest.raises(ValueError, match=r"jax_mnist_\w+Backward` cannot be differentiated"):
        jax.grad(lambda kernel: jax.grad(of_kernel)(kernel).sum())(KERNEL)
    with pytest.raises(ValueError, match="Interpolate` cannot be differentiated"):
        jax.grad(lambda image: CPU.interpolate(image, np.zeros((2, 4, 4), "f")).sum())(X[0, 0])


def test_many_threads_at_once(on_cpu):
    compiled = jax.jit(gradient)
    expected = [jax.device_get(compiled(X * n, KERNEL, MAPS)) for n in range(8)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: compiled(X * (n % 8), KERNEL, MAPS), range(200)))
    for n, result in enumerate(found):
        assert_same(result, expected[n % 8])


# ---- The same digits everywhere ------------------------------------------------------------------


def digest():
    """A hash of results and gradients of odd sizes."""
    rng = np.random.default_rng(0)
    found = hashlib.sha256()

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def add(tree):
        for leaf in jax.tree.leaves(tree):
            found.update(np.asarray(leaf).tobytes())

    assert kernels_lib.for_backend() is CPU
    for rows, columns, height, width, channels, features, batch, maps in (
        (3, 3, 14, 15, 10, 16, 50, 50), (1, 1, 9, 7, 23, 11, 33, 1), (2, 5, 6, 13, 3, 7, 17, None),
    ):  # fmt: skip
        arguments = (
            normal(batch, height, width, channels),
            normal(rows, columns, channels, features),
            (normal(maps, channels), normal(maps, channels)) if maps else (),
        )
        dy = normal(batch, height - rows + 1, width - columns + 1, features)
        gradients = dy, normal(batch, features), normal(batch, features)
        add(convolution(CPU, arguments, gradients, bool(maps), True))
        x = CPU.from_images(arguments[0])
        affine = Affine(*arguments[2], True) if maps else None
        y, pull = jax.vjp(lambda x, affine=affine: CPU.max_pool(x, affine), x)
        add((y, pull(y)))
    add(CPU.interpolate(normal(28, 28), 10 * normal(2, 28, 28)))
    return found.hexdigest()


@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
def test_threads_and_instruction_sets_do_not_change_a_bit(monkeypatch, instructions, on_cpu):
    """Also a test of kernels in a process that was spawned."""
    if instructions == "avx512" and not has_avx512():
        pytest.skip("the processor has no AVX-512")
    monkeypatch.setenv("JAX_MNIST_KERNELS", instructions)
    one = {min(os.sched_getaffinity(0))}
    with multiprocessing.get_context("spawn").Pool(1, os.sched_setaffinity, (0, one)) as pool:
        assert pool.apply(digest) == digest()


# ---- Bad calls -----------------------------------------------------------------------------------

X_BLOCKS, Y_BLOCKS, NO_MAP = (2, 5, 6, 3, 16), (2, 4, 4, 4, 16), (0, 3)
COUNT = {"examples": np.int64(20)}
SETTINGS = COUNT | {"relu_in": False, "relu_out": True}
GOOD = {  # arguments, results and settings of each call
    "ConvolveForward": (
        (X_BLOCKS, (2, 3, 3, 4), NO_MAP, NO_MAP), (Y_BLOCKS, (20, 4), (20, 4)), SETTINGS,
    ),
    "ConvolveBackward": (
        (X_BLOCKS, (2, 3, 3, 4), (1, 3), (1, 3), Y_BLOCKS, Y_BLOCKS, (20, 4), (20, 4)),
        (X_BLOCKS, (2, 3, 3, 4), (1, 3), (1, 3)), SETTINGS,
    ),
    "PoolForward": (
        (X_BLOCKS, NO_MAP, NO_MAP), ((2, 2, 3, 3, 16),), {"relu_in": False} | COUNT
    ),
    "PoolBackward": (
        (X_BLOCKS, (20, 3), (20, 3), (2, 2, 3, 3, 16)), (X_BLOCKS, (20, 3), (20, 3)),
        {"relu_in": True} | COUNT,
    ),
    "Interpolate": (((4, 5), (2, 4, 5)), ((4, 5),), {}),
}  # fmt: skip
BAD = [  # a call, and what is wrong in it
    ("ConvolveForward", {0: (2, 5, 6, 3)}),
    ("ConvolveForward", {0: ()}),
    ("ConvolveForward", {0: np.int32}),
    ("ConvolveForward", {0: np.float64}),
    ("ConvolveForward", {0: (2, 5, 6, 3, 8)}),
    ("ConvolveForward", {0: (1, 5, 6, 3, 16)}),
    ("ConvolveForward", {1: (2, 3, 2, 4)}),
    ("ConvolveForward", {1: (6, 3, 3, 4)}),
    ("ConvolveForward", {1: (0, 3, 3, 4)}),
    ("ConvolveForward", {1: np.float16}),
    ("ConvolveForward", {2: (2, 3), 3: (2, 3)}),
    ("ConvolveForward", {3: (1, 3)}),
    ("ConvolveForward", {3: None}),
    ("ConvolveForward", {"result 0": (2, 4, 4, 5, 16)}),
    ("ConvolveForward", {"result 1": (20, 5)}),
    ("ConvolveForward", {"result 2": (19, 4)}),
    ("ConvolveForward", {"result 2": None}),
    ("ConvolveForward", {"relu_in": True}),  # without a map
    ("ConvolveForward", {"relu_in": None}),
    ("ConvolveForward", {"relu_out": np.float32(2)}),
    ("ConvolveBackward", {"examples": None}),
    ("ConvolveBackward", {"examples": np.float32(20.5)}),
    ("ConvolveBackward", {"examples": np.int64(33)}),
    ("ConvolveBackward", {"examples": np.int64(-1)}),
    ("ConvolveBackward", {"examples": np.int64(2**62)}),
    ("ConvolveBackward", {5: (2, 4, 4, 5, 16)}),
    ("ConvolveBackward", {7: (20,)}),
    ("ConvolveBackward", {"result 0": (1, 5, 6, 3, 16)}),
    ("ConvolveBackward", {"result 1": (2, 3, 4, 4)}),
    ("ConvolveBackward", {"result 2": (20, 3)}),
    ("PoolForward", {0: (2, 5, 6, 4, 16)}),
    ("PoolForward", {"result 0": (2, 3, 3, 3, 16)}),
    ("PoolForward", {"examples": np.int64(-1)}),
    ("PoolForward", {"examples": np.int64(2**62)}),
    ("PoolBackward", {3: (2, 3, 3, 3, 16)}),
    ("PoolBackward", {"result 2": (1, 3)}),
    ("Interpolate", {0: (4,)}),
    ("Interpolate", {1: (2, 5, 4)}),
    ("Interpolate", {1: (3, 2, 4, 5)}),
    ("Interpolate", {"result 0": (4, 4)}),
]


def call(name, changes):
    arguments, results, attributes = GOOD[name]

    def arrays(shapes, prefix, make):
        for n, shape in enumerate(shapes):
            change = changes.get(f"{prefix}{n}" if prefix else n, shape)
            if isinstance(change, tuple):
                yield make(change, np.float32)
            elif change is not None:
                yield make(shape, change)

    attributes = {k: v for k, v in (attributes | changes).items() if k in attributes}
    with jax.enable_x64(True):  # without it, float64 would become float32
        function = jax.ffi.ffi_call(
            f"jax_mnist_{name}", tuple(arrays(results, "result ", jax.ShapeDtypeStruct))
        )
        return function(
            *arrays(arguments, "", np.zeros),
            **{k: v for k, v in attributes.items() if v is not None},
        )


@pytest.mark.parametrize(("name", "changes"), BAD)
def test_a_bad_call_is_an_error_and_a_good_one_is_not(name, changes, on_cpu):
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"jax_mnist: expected .*:.*, not [FS]\d"):
        jax.block_until_ready(call(name, changes))
    for result in call(name, {}):
        assert not np.asarray(result).any()


def test_a_kernel_that_does_not_fit_is_an_error_before_the_call():
    for shape in ((6, 1, 3, 4), (1, 7, 3, 4), (1, 1, 2, 4)):
        with pytest.raises(ValueError, match="does not fit activations of 5x6x3"):
            CPU.convolve(CPU.from_images(X), np.zeros(shape, np.float32), None, False)


def test_without_a_library_xla_convolves_and_a_warning_says_why(monkeypatch):
    def load():
        raise library.UnavailableError("no compiler here")

    monkeypatch.setattr(library, "load", load)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    try:
        for cache in (cpu.register, kernels_lib._for_cpu):
            cache.cache_clear()
        with pytest.warns(UserWarning, match="no compiler here"):
            assert kernels_lib.for_backend() is PORTABLE
        with warnings.catch_warnings(action="error"):  # once is enough
            assert kernels_lib.for_backend() is PORTABLE
    finally:
        for cache in (cpu.register, kernels_lib._for_cpu):
            cache.cache_clear()


# ---- Memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
def test_the_kernels_read_and_write_only_what_is_theirs(instructions, thorough, tmp_path, on_cpu):
    """Other tests of this file, in a process whose kernels have sanitizers.

    Without `jax.jit`, every array of a call has memory of its own.
    """
    if not thorough or (instructions == "avx512" and not has_avx512()):
        pytest.skip("takes two minutes: --thorough, on a processor with the instructions")
    sanitizers = "-g -fsanitize=address,undefined -fno-sanitize-recover=all"
    preload = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    environment = os.environ | {
        "CXX": f"g++ {sanitizers}",
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_MNIST_KERNELS": instructions,
        "JAX_DISABLE_JIT": "1",
    }
    chosen = "float64 or pooling or scipy or numbers or bad_call"
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-sk", chosen, __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
