"""The reader of strangers' pickles: plain values pass unchanged, everything else is refused."""

import operator
import os
import pickle
import random
import struct
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mnist.runs import safe_pickle

_reconstruct = np.ndarray.__reduce__(np.zeros(1))[0]
NATIVE = np.dtype("i4").newbyteorder("=").str[0]

PROTOCOLS = (3, 4, 5)


def same(a, b):
    """Equal in value and in type, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=30,
)


@settings(max_examples=150, deadline=None)
@given(value=PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_pass_unchanged(value, protocol):
    assert same(safe_pickle.loads(pickle.dumps(value, protocol)), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("code", sorted(safe_pickle.DTYPES))
def test_arrays_pass_unchanged(code, protocol):
    full = (np.arange(24).reshape(2, 3, 4) % 5).astype(code)
    forms = {
        "whole": full,
        "fortran": np.asfortranarray(full[0]),
        "strided": full[:, ::2, 1:3],
        "zero-dimensional": np.array(full[1, 1, 1]),
        "empty": full[:0],
        "empty inside": full[:, :0],
    }
    read = safe_pickle.loads(pickle.dumps(forms, protocol))
    assert same(read, forms)
    assert all(array.flags.writeable and array.flags.c_contiguous for array in read.values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_become_python_scalars(protocol):
    values = [np.float32(0.5), np.int64(-3), np.bool_(True)]
    assert same(safe_pickle.loads(pickle.dumps(values, protocol)), [0.5, -3, True])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_array_named_twice_stays_one(protocol):
    array = np.arange(3)
    first, second = safe_pickle.loads(pickle.dumps([array, array], protocol))
    assert first is second
    assert same(first, array)


def test_names_of_numpy_1_are_known():
    new = pickle.dumps([np.arange(3.0), np.float32(2)], 3)
    old = new.replace(b"numpy._core.", b"numpy.core.")
    assert old != new
    assert same(safe_pickle.loads(old), [np.arange(3.0), 2.0])


# What a file must not do. Steps are spelled out where no pickler would write them.


class Call:
    """Pickles as a call of any function with any arguments, and a state to set on the result."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def text(value):
    value = value.encode()
    return b"X" + struct.pack("<I", len(value)) + value


def name(module, attribute):
    return text(module) + text(attribute) + b"\x93"


def shared(depth, wrap):
    """A value that doubles `depth` times: small in the file, endless to walk, hash or print."""
    return text("x") + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + wrap for i in range(depth))


RECONSTRUCT = name("numpy._core.multiarray", "_reconstruct")
FROMBUFFER = name("numpy._core.numeric", "_frombuffer")
NDARRAY = name("numpy", "ndarray")
UNFILLED = RECONSTRUCT + NDARRAY + b"K\0\x85C\x01b\x87R"
FLOAT = name("numpy", "dtype") + text("f8") + b"\x89\x88\x87R"
BYTE = FLOAT.replace(b"f8", b"u1")
BOOL = FLOAT.replace(b"f8", b"b1")


def filled(shape, dtype=FLOAT, content=b"C\0"):
    return UNFILLED + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"


def from_buffer(content, dtype, shape, order=None):
    return FROMBUFFER + b"(" + content + dtype + shape + (order or text("C")) + b"tR"


EVAL = "__import__('os').environ.__setitem__('EXECUTED', '1')"
EIGHT = b"C\x08" + bytes(8)
SIZE = struct.pack("<Q", 2**62)
MEGABYTE = struct.pack("<I", 2**20)
INDEX = struct.pack("<I", 2**32 - 1)

# Each attack, and a part of the reason that its refusal must give.
CALLS = {
    "system": (Call(os.system, ("true",)), "asks for 'posix.system'"),
    "putenv": (Call(os.putenv, ("EXECUTED", "1")), "asks for 'posix.putenv'"),
    "eval": (Call(eval, (EVAL,)), "asks for 'builtins.eval'"),
    "exec": (Call(exec, (EVAL,)), "asks for 'builtins.exec'"),
    "import": (Call(__import__, ("antigravity",)), "asks for 'builtins.__import__'"),
    "open": (Call(open, (os.devnull, "rb")), "asks for"),
    "attrgetter": (Call(operator.attrgetter, ("__class__",)), "asks for 'operator.attrgetter'"),
    "numpy load": (Call(np.load, ("file.npy",)), "asks for 'numpy.load'"),
    "numpy memmap": (Call(np.memmap, (os.devnull,)), "asks for"),
    "numpy frombuffer": (Call(np.frombuffer, (b"12345678",)), "asks for"),
    "ndarray itself": (Call(np.ndarray, ((2**30,),)), "calls numpy's ndarray"),
    "reconstruct a class": (Call(_reconstruct, (Call, (0,), b"b")), "asks for"),
    "reconstruct a dtype": (Call(_reconstruct, (np.dtype, (0,), b"b")), "calls numpy's"),
    "reconstruct a size": (Call(_reconstruct, (np.ndarray, (2**40,), b"b")), "calls numpy's"),
    "reconstruct objects": (Call(_reconstruct, (np.ndarray, (0,), b"O")), "calls numpy's"),
    "object array": (np.array([Call(eval, (EVAL,))], object), "not of plain numbers"),
    "structured array": (np.zeros(2, "f4,i4"), "not of plain numbers"),
    "text array": (np.array(["a"]), "not of plain numbers"),
    "date array": (np.array(["2000-01-01"], "M8[D]"), "not of plain numbers"),
    "complex array": (np.array([1j]), "not of plain numbers"),
    "foreign byte order": (np.arange(3, dtype=">i4" if NATIVE == "<" else "<i4"), "byte order"),
    "masked array": (np.ma.masked_array([1, 2], [True, False]), "asks for 'numpy.ma"),
    "set": ({1}, ""),  # protocol 3 calls a name where 4 has a step of its own
    "complex": (1j, "asks for 'builtins.complex'"),
    "class": (Call, "asks for"),
    "number keys": ({1: 2}, "key that is not text"),
}
STEPS = {
    "persistent id": (b"Pname\n", "uses PERSID"),
    "binary persistent id": (text("name") + b"Q", "uses BINPERSID"),
    "extension": (b"\x82\x01", "uses EXT1"),
    "inst": (b"(" + text("true") + b"ios\nsystem\n", "uses INST"),
    "obj": (b"(" + NDARRAY + b"o", "uses OBJ"),
    "newobj": (NDARRAY + b")\x81", "uses NEWOBJ"),
    "newobj_ex": (NDARRAY + b")}\x92", "uses NEWOBJ_EX"),
    "global": (b"cos\nsystem\n" + text("true") + b"\x85R", "asks for 'os.system'"),
    "long name": (name("a" * 99, "é\n" * 99), "asks for 'aaa"),
    "text that looks like a known name": (text("_reconstruct") + b")R", "no function"),
    "call of a number": (b"K\x01)R", "no function"),
    "call of an array": (UNFILLED + b")R", "no function"),
    "call with a list": (RECONSTRUCT + b"]R", "no function"),
    "state of a known name": (RECONSTRUCT + b"}" + text("x") + b"K\x01sb", "sets the state"),
    "slot state of a name": (RECONSTRUCT + b"N}" + text("__code__") + b"Ns\x86b", "sets the state"),
    "state of text": (text("x") + b"}b", "sets the state"),
    "second state of an array": (
        filled(b"K\0\x85") + b"(K\x01K\0\x85" + FLOAT + b"\x89C\0tb",
        "sets the state",
    ),
    "array before its state": (UNFILLED + b"q\x01h\x01\x86", "no contents yet"),
    "dtype with flags": (
        FLOAT + b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb",
        "odder",
    ),
    "dtype with fields": (
        FLOAT + b"(K\x03" + text("|") + b"N" + text("a") + b"\x85NNNNtb",
        "odder",
    ),
    "dtype of a class": (name("numpy", "dtype") + NDARRAY + b"\x89\x88\x87R", "plain numbers"),
    "dtype of objects": (FLOAT.replace(text("f8"), text("O8")), "plain numbers"),
    "items for an array": (UNFILLED + b"(K\x01e", "items for"),
    "items for a known name": (RECONSTRUCT + b"(" + text("x") + b"K\x01u", "items for"),
    "odd number of items": (b"}(" + text("x") + b"u", "damaged"),
    "unhashable key": (b"}]K\x01s", "key that is not text"),
    "huge shape": (filled(b"\x8a\x06" + bytes(5) + b"\x01\x85"), "impossible shape"),
    "huge empty shape": (filled(b"K\0\x8a\x08" + bytes(7) + b"\x01\x86"), "impossible shape"),
    "negative shape": (filled(b"J\xff\xff\xff\xff\x85"), "impossible shape"),
    "shape of truth": (filled(b"\x88\x85", BYTE, b"C\x01a"), "impossible shape"),
    "too many dimensions": (filled(b"(" + b"K\x01" * 70 + b"t", BYTE, b"C\x01a"), "proper shape"),
    "list for a shape": (filled(b"]K\x01a", BYTE, b"C\x01a"), "proper shape"),
    "list for bytes": (filled(b"K\0\x85", FLOAT, b"]"), "not of numbers"),
    "text for a dtype": (filled(b"K\0\x85", text("f8")), "not of numbers"),
    "shape larger than bytes": (from_buffer(EIGHT, FLOAT, b"K\x02\x85"), "does not fit"),
    "shape smaller than bytes": (from_buffer(EIGHT, FLOAT, b"K\0\x85"), "does not fit"),
    "text for bytes": (from_buffer(text("12345678"), FLOAT, b"K\x01\x85"), "not of numbers"),
    "unknown order": (from_buffer(b"C\x01a", BYTE, b"K\x01\x85", text("A")), "proper shape"),
    "truth that is neither": (from_buffer(b"C\x01\x02", BOOL, b"K\x01\x85"), "neither"),
    "the same bytes for many arrays": (
        b"(B%s%sq\0%sq\x01%sq\x02" % (MEGABYTE, bytes(2**20), FROMBUFFER, BYTE)
        + (b"h\x01(h\0h\x02J%s\x85" % MEGABYTE + text("C") + b"tR") * 3000
        + b"t",
        "larger than the file",
    ),
    "huge memo index read": (b"]j" + INDEX, "damaged"),
    "memo never written": (b"h\x05", "damaged"),
    "huge text": (b"\x8d" + SIZE, "damaged"),
    "huge bytes": (b"\x8e" + SIZE, "damaged"),
    "huge byte array": (b"\x96" + SIZE, "damaged"),
    "huge integer": (b"\x8b" + struct.pack("<i", 2**31 - 1), "damaged"),
    "huge frame and more": (b"\x95" + SIZE + b"\x8e" + SIZE, "damaged"),
    "endless hash of a dtype": (
        name("numpy", "dtype") + shared(60, b"\x86") + b"\x89\x88\x87R",
        "plain numbers",
    ),
    "endless text of a name": (shared(60, b"\x86") + text("x") + b"\x93", "not text"),
    "endless key": (b"}" + shared(60, b"\x86") + b"Ns", "key that is not text"),
    "deep dtype": (
        name("numpy", "dtype") + b")" + b"\x85" * 100_000 + b"\x89\x88\x87R",
        "plain numbers",
    ),
    "popped too far": (b"\x86", "lacks its operands"),
    "taken from below a mark": (b"K\x01K\x02(\x86", "lacks its operands"),
    "no mark": (b"K\x01t", "damaged"),
    "mark left over": (b"K\x01(", "left over"),
    "two values": (b"NN", "left over"),
    "nothing": (b"", "left over"),
    "two ends": (b"N.", "left over"),
    "text that is no unicode": (b"X\x02\0\0\0\xff\xfe", "damaged"),
    "unknown step": (b"\xf0", "damaged"),
}
WHOLE = {
    "empty file": (b"", "damaged"),
    "no end": (b"\x80\x04N", "damaged"),
    "text": (b"hello", "damaged"),
    "trailing bytes": (pickle.dumps([1]) + b"x", "left over"),
    "two pickles": (pickle.dumps([1]) * 2, "left over"),
    "protocol 0": (pickle.dumps({"a": 1}, 0), "uses"),
    "protocol 2 bytes": (pickle.dumps(b"bytes", 2), "asks for '_codecs.encode'"),
}
ATTACKS = {
    **{
        f"{key} ({protocol})": (pickle.dumps(value, protocol), reason)
        for key, (value, reason) in CALLS.items()
        for protocol in PROTOCOLS
    },
    **{key: (b"\x80\x04" + steps + b".", reason) for key, (steps, reason) in STEPS.items()},
    **WHOLE,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_everything_else_is_refused(attack):
    data, reason = ATTACKS[attack]
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(pickle.UnpicklingError) as caught:
            safe_pickle.loads(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "EXECUTED" not in os.environ
    assert "antigravity" not in sys.modules
    message = str(caught.value)
    assert reason in message
    assert 10 < len(message) < 130 and message.isprintable()
    assert peak < 20e6 + 3 * len(data)
    assert time.perf_counter() - start < 5


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


@pytest.mark.parametrize("step", [b"]", b"\x94", b"(", b"]q\x01"])
def test_steps_are_limited(step):
    count = safe_pickle.MAX_STEPS // (2 if step == b"]q\x01" else 1)
    with pytest.raises(pickle.UnpicklingError, match="more than"):
        safe_pickle.loads(b"\x80\x04]" + step * count + b".")


def test_a_huge_memo_index_takes_no_memory():
    tracemalloc.start()
    try:
        assert safe_pickle.loads(b"\x80\x04]r" + INDEX + b".") == []
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_containers_in_themselves_are_read_but_never_walked():
    loop = []
    loop.append(loop)
    (inner,) = read = safe_pickle.loads(pickle.dumps(loop))
    assert inner is read
    doubled = safe_pickle.loads(b"\x80\x04" + shared(200, b"\x86") + b".")
    assert len(doubled) == 2 and doubled[0] is doubled[1]


FORBIDDEN = ("exec", "compile", "import", "open", "os.", "subprocess.", "pickle.", "ctypes.")
SEEN: list[str] | None = None


def watch(event, arguments):
    if SEEN is not None and event.startswith(FORBIDDEN):
        SEEN.append(f"{event} {arguments}")


sys.addaudithook(watch)


def watched(function, argument):
    """Calls a function; returns its result and what the interpreter says that it did meanwhile."""
    global SEEN
    SEEN = seen = []
    try:
        return function(argument), seen
    except pickle.UnpicklingError:
        return None, seen
    finally:
        SEEN = None


def test_damaged_files_never_execute_anything():
    value = {"a": np.arange(30.0), "b": [np.float32(1), {"c": (None, True, "text", 2**70)}]}
    good = [pickle.dumps(value, protocol) for protocol in PROTOCOLS]
    bad = [data for data, _ in ATTACKS.values()]
    chance = random.Random(7)
    read = 0
    "".encode("raw_unicode_escape")  # pickletools's own first use of a codec imports it
    for _ in range(4000):
        data = bytearray(chance.choice(good))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            match chance.randrange(5):
                case 0:
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    data[at] = chance.randrange(256)
                case 2:
                    del data[at:]
                    data += b"."
                case 3:
                    del data[at : at + chance.randint(1, 9)]
                    data += b"."
                case 4:  # a piece of an attack
                    piece = chance.choice(bad)[:200]
                    data[at:at] = piece[chance.randrange(len(piece) + 1) :]
        result, seen = watched(safe_pickle.loads, bytes(data))
        assert seen == []
        read += result is not None
    assert 40 < read < 2000  # changed numbers and texts are read; most else is not
    _, seen = watched(pickle.loads, good[0])
    assert any("find_class" in event for event in seen)  # the watch does see
