"""Plain values and arrays come back unchanged, and files that ask for more are refused."""

import contextlib
import io
import operator
import os
import pickle
import pickletools
import struct
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mnist.runs import safe_pickle


def same(a, b):
    """Whether two values are equal in value and in type, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=300).map(lambda data: np.frombuffer(data, np.uint8)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=9).filter(safe_pickle.is_label), inner, max_size=4)
    ),
    max_leaves=30,
)


@settings(max_examples=100, deadline=None)
@given(value=PLAIN)
def test_plain_values_pass_unchanged(value):
    assert same(safe_pickle.loads(safe_pickle.dumps(value)), value)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", ["f8", "f4", "i4", "u1"])
def test_arrays_come_back_native_contiguous_and_writable(code, order):
    full = (np.arange(24).reshape(2, 3, 4) % 5).astype(order + code)
    forms = {
        "whole": full,
        "fortran": np.asfortranarray(full[0]),
        "strided": full[:, ::2, 1:3],
        "zero-dimensional": np.array(full[1, 1, 1]),
        "empty": full[:0],
        "empty inside": full[:, :0],
    }
    read = safe_pickle.loads(safe_pickle.dumps(forms))
    assert same(read, {name: array.astype(code) for name, array in forms.items()})
    assert all(array.flags.writeable and array.flags.c_contiguous for array in read.values())


def test_a_repeated_value_is_written_again():
    value, array = ["text" * 99], np.arange(3.0)
    first, second, *arrays = safe_pickle.loads(safe_pickle.dumps([value, value, array, array]))
    assert first == second == value and first is not second
    assert same(arrays, [array, array]) and arrays[0] is not arrays[1]


# What a file must not do. Steps are spelled out where no pickler would write them.


class Call:
    """Pickles as a call of any function with any arguments, and a state to set on the result."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def dumps(value, protocol=3):
    """Pickles a value without references, so that only what it asks for is refused."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()


def array(dtype="|u1", shape=(1,), data=b"a"):
    shape = list(shape) if isinstance(shape, tuple) else shape
    return dumps({"dtype": dtype, "shape": shape, "data": data})


def text(value):
    value = value.encode()
    return b"X" + struct.pack("<I", len(value)) + value


def argument(opcode):
    """Something that the opcode takes: lines, or zeros as a number or as the length of nothing."""
    lines = opcode.arg and opcode.arg.n == pickletools.UP_TO_NEWLINE
    return (b"''\n" if opcode.name == "STRING" else b"1\n1\n") if lines else bytes(8)


EVAL = "__import__('os').environ.__setitem__('EXECUTED', '1')"
SIZE = struct.pack("<Q", 2**62)
INDEX = struct.pack("<I", 2**32 - 1)
RECONSTRUCT = np.ndarray.__reduce__(np.zeros(1))[0]
ITSELF: list = []
ITSELF.append(ITSELF)
COLLIDING = b"".join(b"\x8a\x0a%bN" % (k * (2**61 - 1)).to_bytes(10, "little") for k in range(4990))

# Each attack, and a part of the reason that its refusal must give.
CALLS = {
    "system": Call(os.system, ("true",)),
    "putenv": Call(os.putenv, ("EXECUTED", "1")),
    "eval": Call(eval, (EVAL,)),
    "exec": Call(exec, (EVAL,)),
    "import": Call(__import__, ("antigravity",)),
    "open": Call(open, (os.devnull, "rb")),
    "attrgetter": Call(operator.attrgetter, ("__class__",)),
    "numpy load": Call(np.load, ("file.npy",)),
    "numpy memmap": Call(np.memmap, (os.devnull,)),
    "numpy frombuffer": Call(np.frombuffer, (b"12345678",)),
    "ndarray itself": Call(np.ndarray, ((2**30,),)),
    "reconstruct a class": Call(RECONSTRUCT, (Call, (0,), b"b")),
    "reconstruct a dtype": Call(RECONSTRUCT, (np.dtype, (0,), b"b")),
    "reconstruct a size": Call(RECONSTRUCT, (np.ndarray, (2**40,), b"b")),
    "reconstruct objects": Call(RECONSTRUCT, (np.ndarray, (0,), b"O")),
    "array": np.arange(3.0),
    "array scalar": np.float32(0.5),
    "object array": np.array([Call(eval, (EVAL,))], object),
    "structured array": np.zeros(2, "f4,i4"),
    "text array": np.array(["a"]),
    "date array": np.array(["2000-01-01"], "M8[D]"),
    "complex array": np.array([1j]),
    "foreign byte order": np.arange(3, dtype=">i4"),
    "masked array": np.ma.masked_array([1, 2], [True, False]),
    "set": {1},
    "complex": 1j,
    "class": Call,
}
STEPS = {
    **{
        f"opcode {opcode.name}": (
            b"]]" + opcode.code.encode("latin1") + argument(opcode),
            f"uses {opcode.name},",
        )
        for opcode in pickletools.opcodes
        if opcode.name not in safe_pickle._OPCODES
    },
    "global": (b"cos\nsystem\n" + text("true") + b"\x85R", "uses GLOBAL"),
    "name": (text("os") + text("system") + b"\x93" + text("true") + b"\x85R", "uses STACK_GLOBAL"),
    "long name": (text("a" * 99) + text("\n" * 99) + b"\x93", "uses STACK_GLOBAL"),
    "many digits": (b"I" + b"9" * 10**6 + b"\n", "damaged"),
    "items for a dict": (b"}K\x01a", "damaged"),
    "items for text": (text("x") + b"(K\x01e", "damaged"),
    "values for a list": (b"](" + text("x") + b"K\x01u", "damaged"),
    "values for a number": (b"K\x01K\x02K\x03s", "damaged"),
    "odd number of items": (b"}(" + text("x") + b"u", "damaged"),
    "unhashable key": (b"}]K\x01s", "damaged"),
    "number as key": (b"}K\x01K\x02s", "has a key"),
    "bytes as key": (b"}C\x01aK\x02s", "has a key"),
    "key with a line break": (b"}" + text("a\nb") + b"Ns", "has a key"),
    "keys of one hash": (b"}(" + COLLIDING + b"u", "has a key"),
    "bytes without an array": (b"C\x01a", "belong to no array"),
    "huge memo index read": (b"]j" + INDEX, "uses LONG_BINGET"),
    "huge memo index written": (b"]r" + INDEX, "uses LONG_BINPUT"),
    "the same bytes for many arrays": (
        b"B" + struct.pack("<I", 2**20) + bytes(2**20) + b"q\0" + b"h\0" * 3000,
        "uses BINPUT",
    ),
    "endless key": (b"}" + text("x") + b"q\0h\0\x86" * 60 + b"Ns", "uses BINPUT"),
    "endless list": (b"]" + b"q\0]h\0ah\0a" * 60, "uses BINPUT"),
    "list in itself": (b"]\x94h\0a", "uses MEMOIZE"),
    "deep key": (b"})" + b"\x85" * 100_000 + b"Ns", "uses EMPTY_TUPLE"),
    "deep list": (b"]" * 4900 + b"a" * 4899, "levels deep"),
    "deep dict": ((b"}" + text("x")) * 3000 + b"N" + b"s" * 3000, "levels deep"),
    "huge text": (b"X" + INDEX, "damaged"),
    "very huge text": (b"\x8d" + SIZE, "damaged"),
    "huge bytes": (b"B" + INDEX, "damaged"),
    "very huge bytes": (b"\x8e" + SIZE, "damaged"),
    "huge byte array": (b"\x96" + SIZE, "damaged"),
    "huge integer": (b"\x8b" + struct.pack("<i", 2**31 - 1), "damaged"),
    "huge frame and more": (b"\x95" + SIZE + b"\x8e" + SIZE, "uses FRAME"),
    "popped too far": (b"a", "damaged"),
    "taken from below a mark": (b"]K\x01(a", "damaged"),
    "no mark": (b"]K\x01e", "damaged"),
    "mark left over": (b"K\x01(", "damaged"),
    "nothing": (b"", "damaged"),
    "two ends": (b"N.", "something follows"),
    "text that is no unicode": (b"X\x02\0\0\0\xff\xfe", "damaged"),
    "protocol of the future": (b"\x80\xff", "damaged"),
    "unknown step": (b"\xf0", "damaged"),
    "many steps": (b"]" + b"Na" * 5000, "more than 10000 steps"),
    "many marks": (b"(" * 10**6, "more than 10000 steps"),
}
WHOLE = {
    "empty file": (b"", "damaged"),
    "no end": (b"\x80\x03N", "damaged"),
    "text": (b"hello", "uses BINGET"),
    "trailing bytes": (dumps([1]) + b"x", "something follows"),
    "two pickles": (dumps([1]) * 2, "something follows"),
    "references": (pickle.dumps({"a": 1}, 3), "uses BINPUT"),
    "list in itself, pickled": (pickle.dumps(ITSELF, 3), "uses BINPUT"),
    "protocol 0": (pickle.dumps({"a": 1}, 0), "uses DICT"),
    "protocol 2 bytes": (dumps(b"bytes", 2), "uses GLOBAL"),
    "number keys": (dumps({1: 2}), "has a key"),
    "dtype of objects": (array("|O", (0,), b""), "dtype of an array"),
    "dtype of fields": (array("f4,i4", (0,), b""), "dtype of an array"),
    "dtype of truth": (array("|b1", (1,), b"\x02"), "dtype of an array"),
    "dtype of another byte order": (array(">f4", (1,), b"1234"), "dtype of an array"),
    "dtype of a list": (array(["<f4"], (1,), b"1234"), "dtype of an array"),
    "huge shape": (array(shape=(2**40,)), "does not fit"),
    "huge empty shape": (array("<f8", (0, 2**30, 2**30), b""), "damaged"),
    "huge number in a shape": (array(shape=(2**2000, 2**2000, 0)), "does not fit"),
    "negative shape": (array(shape=(-1, -1)), "does not fit"),
    "shape of truth": (array(shape=(True,)), "shape of an array"),
    "shape of text": (array(shape="1"), "shape of an array"),
    "shape of lists": (array(shape=([1],)), "shape of an array"),
    "too many dimensions": (array(shape=(1,) * 70), "shape of an array"),
    "list for bytes": (array(data=[1]), "does not fit"),
    "text for bytes": (array(data="a"), "does not fit"),
    "shape larger than bytes": (array(shape=(2,)), "does not fit"),
    "shape smaller than bytes": (array(shape=(0,)), "does not fit"),
    "array with an order": (
        dumps({"dtype": "|u1", "shape": [1], "data": b"a", "order": "F"}),
        "belong to no array",
    ),
}
ATTACKS = {
    **{
        f"{key} ({protocol})": (dumps(value, protocol), "it uses ")
        for key, value in CALLS.items()
        for protocol in (3, 4, 5)
    },
    **{key: (b"\x80\x03" + steps + b".", reason) for key, (steps, reason) in STEPS.items()},
    **WHOLE,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_everything_else_is_refused(attack):
    data, reason = ATTACKS[attack]
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(safe_pickle.NotPlainError) as caught:
            safe_pickle.loads(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "EXECUTED" not in os.environ
    assert "antigravity" not in sys.modules
    message = str(caught.value)
    assert reason in message
    assert 10 < len(message) < 130 and message.isprintable()
    assert peak < 10e6 + 3 * len(data)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("call", [key for key in ATTACKS if key.removesuffix(" (3)") in CALLS])
def test_a_name_that_got_past_the_opcodes_would_not_be_looked_up(call):
    with pytest.raises(safe_pickle.NotPlainError, match="asks for a name"):
        safe_pickle._Unpickler(io.BytesIO(ATTACKS[call][0])).load()
    assert "EXECUTED" not in os.environ


def test_the_attacks_are_real():
    """The standard library's own reader falls for them, so refusing them means something."""
    try:
        pickle.loads(ATTACKS["eval (4)"][0])
        assert os.environ.pop("EXECUTED") == "1"
        pickle.loads(ATTACKS["object array (4)"][0])
        assert os.environ.pop("EXECUTED") == "1"
        assert pickle.loads(ATTACKS["global"][0]) == 0
    finally:
        os.environ.pop("EXECUTED", None)


def test_the_largest_file_within_the_limits_is_read():
    assert safe_pickle.loads(b"\x80\x03]" + b"Na" * 4998 + b".") == [None] * 4998
    deep = safe_pickle.loads(b"\x80\x03" + b"]" * 17 + b"a" * 16 + b".")
    assert str(deep) == "[" * 17 + "]" * 17


def test_the_largest_hostile_files_take_little_time_and_memory(thorough):
    size = 2**28 if thorough else 2**20
    length = struct.pack("<I", size)
    for steps in (
        b"\x8b" + length + b"\xff" * size,
        b"X" + length + "\N{GRINNING FACE}".encode() + b"a" * (size - 4),
        b"B" + length + bytes(size),
        b"F" + b"9" * size + b"\n",
        b"V" + rb"\u1234" * (size // 6) + b"\n",
    ):
        start = time.perf_counter()
        tracemalloc.start()
        with contextlib.suppress(safe_pickle.NotPlainError):
            safe_pickle.loads(b"\x80\x03" + steps + b".")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10e6 + 10 * size
        assert time.perf_counter() - start < 20
