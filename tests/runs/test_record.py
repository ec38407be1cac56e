"""Records: what comes back, what is refused, and what a failed write leaves behind."""

import hashlib
import io
import os
import pickle
import random
import struct
import sys
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from records import make_record

from jax_mnist.runs import record as record_lib
from jax_mnist.runs.record import RecordError


def make(**options):
    return make_record(**options) | {"schema": 4}


def changed(field, value):
    """A valid record with another value, or without that field if the value is None."""
    record = make()
    group, _, key = field.rpartition(".")
    holder = record[group] if group else record
    holder[key] = value
    if value is None:
        del holder[key]
    return record


def lists(value):
    """What a stranger would write: arrays as lists, and the rest as it is."""
    if type(value) is dict:
        return {key: lists(item) for key, item in value.items()}
    return value.tolist() if type(value) is np.ndarray and value.dtype.kind in "iuf" else value


def of_schema_3(value):
    """A record as it was written before: arrays as dictionaries of their bytes."""
    if type(value) is np.ndarray:
        return {"dtype": value.dtype.str, "shape": [*value.shape], "data": value.tobytes()}
    if type(value) is not dict:
        return value
    return {key: 3 if key == "schema" else of_schema_3(item) for key, item in value.items()}


def dumps(value, protocol=3):
    """Pickles a value without references, so that only what it asks for is refused."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()


def same(a, b):
    """Whether two values are equal in value, in type and in order, numbers bit for bit."""
    return dumps(a) == dumps(b)


def sealed(data):
    """A pickle with the checksum that anyone can work out."""
    return data + b"sha256:" + hashlib.sha256(data).hexdigest().encode()


def loads(data, path):
    path.write_bytes(sealed(data))
    return record_lib.load_record(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.pkl"


# What comes back.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mistakes": 0},
        {"losses": [0.1, np.inf, np.nan]},
        {"examples": 1, "mistakes": 1, "accuracies": (1.0,)},
        # Pickle divides lists into pieces of 1,000.
        {"examples": 1000, "mistakes": 1000, "accuracies": (0.5,) * 1000},
        {"examples": 10_000, "mistakes": 1001, "accuracies": (0.5,) * 1001},
    ],
)
def test_a_record_comes_back_as_it_was(options, tmp_path):
    record = make(**options)
    path = tmp_path / "runs" / "gbn" / "history.pkl"
    record_lib.save_record(path, record)
    assert os.listdir(path.parent) == ["history.pkl"]
    loaded = record_lib.load_record(str(path))
    assert same(loaded, record)
    assert all(a.flags.writeable and a.flags.c_contiguous for a in loaded["predictions"].values())
    assert same(loads(dumps(of_schema_3(record)), path), record)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=9).filter(record_lib.is_label), inner, max_size=4)
    ),
    max_leaves=30,
)


@settings(max_examples=100, deadline=None)
@given(PLAIN, arrays(np.float32, (40, 10), elements=st.floats(width=32)), arrays(np.float64, 3))
def test_plain_values_and_numbers_come_back_bit_for_bit(tmp_path_factory, value, shares, loss):
    record = changed("config.x", [value, value])  # the second is no reference
    record["predictions"]["probabilities"], record["metrics"]["train_loss"] = shares, loss
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    record_lib.save_record(path, record)
    assert same(record_lib.load_record(path), record)


def test_what_is_not_plain_is_made_plain(path):
    record = changed("config.x", [np.float64(0.1), np.str_("gbn"), np.arange(2)])
    record["seed"] = np.int64(3)
    record["metrics"]["seconds"] = np.arange(6.0)[::2]
    record["metrics"]["learning_rate"] = np.arange(3.0).astype(">f8")
    record_lib.save_record(path, record)
    loaded = record_lib.load_record(path)
    assert same([loaded["seed"], loaded["config"]["x"]], [3, [0.1, "gbn", [0, 1]]])
    assert same(loaded["metrics"]["seconds"], np.array([0.0, 2.0, 4.0]))
    assert same(loaded["metrics"]["learning_rate"], np.arange(3.0))


def test_the_file_can_be_read_without_this_package(tmp_path):
    """As the module's docstring shows."""
    for name in ("a", "b"):
        record_lib.save_record(tmp_path / name, make())
    with open(tmp_path / "a", "rb") as file:
        loaded = pickle.load(file)
    assert same(loaded, lists(make()))
    assert loaded["metrics"]["validation_accuracy"] == [0.9, 0.98, 0.99]
    table = pd.DataFrame(loaded["metrics"])
    assert [*table] == [*record_lib.METRICS] and {*table.dtypes} == {np.dtype(float)}
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("key", ["train_loss", "validation_loss"])
def test_a_run_has_diverged_if_either_loss_of_its_last_epoch_is_not_finite(key):
    for values, diverged in (([np.nan, np.inf, 0.1], False), ([1, 1, np.nan], True)):
        record = changed(f"metrics.{key}", np.array(values))
        assert record_lib.has_diverged(record) == diverged


# Records that are not valid: a field, its value (None removes it), and the reason.

LOOP: list = []
LOOP.append(LOOP)
FIELDS = [field for field in record_lib.FIELDS if field != "schema"]
SECONDS, PREDICTION, IMAGES = "metrics.seconds", "predictions.prediction", "mistakes.images"
PROBABILITIES = "predictions.probabilities"
FLOATS, INTS, ROWS = (
    r"must be float64 \[3\]",
    r"must be int32 \[40\]",
    r"must be float32 \[40, 10\]",
)
PIXELS = r"must be uint8 \[6, 28, 28\]"
NOT_PLAIN = "not a record: more than plain values, or too many"
INVALID = [
    *((field, None, f"{field} is missing") for field in FIELDS),
    *((field, {"x": 1.5}, f"{field} ") for field in FIELDS if field != "config"),
    ("seed", True, "seed is not of type int"),
    ("packages.jax", 1, "versions of type str"),
    ("name", "a\nb", "printable"),
    ("name", "a" * 65, "printable"),
    ("label_names", [*range(10)], "printable"),
    ("label_names", ["0"], r"must be float32 \[40, 1\]"),
    ("config", {"a\nb": 1}, "has a key"),
    ("config", {1: 1}, "has a key"),
    ("config.x", b"x", "record.config.x is bytes: give plain"),
    ("config.x", {"y": object()}, r"config\.x\.y is object"),
    ("config.x", np.array([None]), "is ndarray"),
    ("config.x", 2**3000, NOT_PLAIN),
    ("config.x", [1] * 10_000, "more than 10000 values"),
    ("config.x", [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]], "too deep"),
    ("config.x", LOOP, "too deep"),
    ("metrics", {key: [] for key in record_lib.METRICS}, "no epoch"),
    ("metrics.more", [0.0] * 3, "metrics are train_loss, train_accuracy"),
    ("metrics.train_accuracy", [90.0, 98.0, 99.0], "fractions, not percent"),
    ("metrics.validation_accuracy", [-0.1, 0.9, np.nan], "fractions, not percent"),
    (SECONDS, np.zeros(4), FLOATS),
    (SECONDS, np.arange(3), FLOATS),
    (SECONDS, [0.0, False, 2.0], FLOATS),
    (SECONDS, 0.5, FLOATS),
    ("predictions", {"label": [], "prediction": [], "probabilities": []}, "no prediction"),
    (PREDICTION, [10] * 40, "leaves the 10 classes"),
    (PREDICTION, [-1] * 40, "leaves the 10 classes"),
    (PREDICTION, [0] * 39, INTS),
    (PREDICTION, [0.0] * 40, INTS),
    (PREDICTION, [2**31] * 40, INTS),
    (PREDICTION, [2**64] * 40, INTS),
    (PROBABILITIES, [[0.5] * 9] * 40, ROWS),
    (PROBABILITIES, [[0.5] * 10] * 38 + [[0.5] * 9, [0.5] * 11], ROWS),
    (PROBABILITIES, [[[0.5]] * 10] * 40, ROWS),
    (PROBABILITIES, [[0.1] * 10] * 40, ROWS),  # no float32
    (PROBABILITIES, [[1e300] * 10] * 40, ROWS),
    (IMAGES, np.zeros((5, 28, 28), int), PIXELS),
    (IMAGES, np.full((6, 28, 28), 256), PIXELS),
    ("mistakes.index", [*range(6)], "where label and prediction differ"),
    ("mistakes.index", make()["mistakes"]["index"][::-1], "where label and prediction differ"),
]


@pytest.mark.parametrize(("field", "value", "reason"), INVALID)
def test_an_invalid_record_is_neither_saved_nor_loaded(field, value, reason, path):
    record = changed(field, value)
    with pytest.raises(RecordError, match=reason) as caught:
        record_lib.save_record(path, record)
    assert str(caught.value).isprintable() and not path.exists()

    try:
        data = dumps(lists(record))
    except (TypeError, ValueError, AttributeError, pickle.PicklingError):
        return  # not even a pickle without references can hold it
    with pytest.raises(RecordError) as caught:
        loads(data, path)
    assert str(caught.value).startswith(f"{str(path)!r}: ") and str(caught.value).isprintable()


def with_array(**changes):
    """A record of schema 3 with changes in the dictionary of an array."""
    record = of_schema_3(make())
    record["predictions"]["probabilities"] |= changes
    return record


SCHEMAS = [
    ([1], "schema None"),
    (changed("schema", None), "schema None"),
    (changed("schema", "a\nb"), r"schema 'a\\nb'"),
    (changed("schema", 4.0), "schema is not of type int"),
    (changed("schema", 2), "schema 2, this version of jax_mnist reads schema 4: install"),
    (changed("schema", 2**1000), "schema 107150860, this version .* reads schema 4: install"),
    (changed(SECONDS, dict.fromkeys([0.0, 1.0, 2.0])), FLOATS),
    (changed("schema", 3), r"must be float64 \[E\]"),
    (of_schema_3(make()) | {"schema": 4}, r"must be float64 \[E\]"),
    (with_array(dtype=">f4"), ROWS),
    (with_array(dtype="|O", shape=[0], data=b""), ROWS),
    (with_array(shape=[2**40, 0], data=b""), ROWS),
    (with_array(shape=[2**2000, 2**2000, 0], data=b""), ROWS),
    (with_array(shape=[-1, -1]), ROWS),
    (with_array(data=[1]), ROWS),
    (with_array(data=bytes(1601)), ROWS),
]


@pytest.mark.parametrize(("record", "reason"), SCHEMAS)
def test_a_file_is_what_its_schema_says(record, reason, path):
    with pytest.raises(RecordError, match=reason):
        loads(dumps(lists(record)), path)


# What a file must not do. Steps are spelled out where no pickler would write them, and stand for a
# value in a record that is valid otherwise.


class Call:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def text(value):
    value = value.encode()
    return b"X" + struct.pack("<I", len(value)) + value


def in_record(steps):
    """A record's pickle whose configuration begins with a value that these steps make."""
    record = make(accuracies=(0.5, 0.75), examples=12, mistakes=2)
    record["config"] = {"x": "HERE"} | record["config"]
    return dumps(lists(record)).replace(text("HERE"), steps)


EVAL = "__import__('os').environ.__setitem__('EXECUTED', '1')"
CALLS = {
    "eval": Call(eval, (EVAL,)),
    "array": np.arange(3.0),
    "huge array": Call(np.ndarray, ((2**30,),)),
    "object array": np.array([Call(eval, (EVAL,))], object),
    "class": Call,
}
INDEX = struct.pack("<I", 2**32 - 1)
ONE_HASH = [b"\x8a\x0a%bN" % (k * (2**61 - 1)).to_bytes(10, "little") for k in range(9000)]
STEPS = {
    "global": b"cos\nsystem\n" + text("true") + b"\x85R",
    "endless key": b"}" + text("x") + b"q\0h\0\x86" * 60 + b"Ns",
    "deep key": b"})" + b"\x85" * 100_000 + b"Ns",
    "huge memo index": b"]r" + INDEX,
    "huge text": b"X" + INDEX,
    "huge bytes": b"B" + INDEX,
    "two ends": b"N.",
    "many numbers at once": b"](" + b"K\1" * 10**6 + b"e",
    "many steps": b"]" + b"Na" * 10_000,
    "many marks": b"(" * 10**6,
    "many keys": b"}(" + b"K\1K\2" * 10_000 + b"u",
}
DAMAGE = {
    "odd number of items": b"}(" + text("x") + b"u",
    "list as key": b"}](K\1eK\1s",
    "popped too far": b"a",
    "mark left over": b"K\1(",
    "text that is no unicode": b"X\2\0\0\0\xff\xfe",
}
ATTACKS = {
    **{key: (in_record(dumps(value)[2:-1]), NOT_PLAIN) for key, value in CALLS.items()},
    **{key: (in_record(steps), NOT_PLAIN) for key, steps in STEPS.items()},
    **{key: (in_record(steps), "is damaged") for key, steps in DAMAGE.items()},
    "keys of one hash": (in_record(b"}(" + b"".join(ONE_HASH) + b"u"), "has a key"),
    "deep list": (in_record(b"]" * 9000 + b"a" * 8999), "too deep"),
    "deep dict": (in_record((b"}" + text("x")) * 6000 + b"N" + b"s" * 6000), "too deep"),
    "empty file": (b"", NOT_PLAIN),
    "no end": (b"\x80\x03N", NOT_PLAIN),
    "one long text of many": (dumps(lists(changed(PREDICTION, ["a" * 10**6, *"b" * 39]))), "int32"),
    "references": (pickle.dumps(lists(make()), 3), NOT_PLAIN),
    **{f"protocol {k}": (dumps(lists(make()), k), NOT_PLAIN) for k in (0, 1, 2, 4, 5)},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_strangers_file_is_refused_in_one_line(attack, path):
    data, reason = ATTACKS[attack]
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(RecordError) as caught:
        loads(data, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - start < 5 and peak < 10e6 + 3 * len(data)
    assert "EXECUTED" not in os.environ
    message = str(caught.value).removeprefix(f"{str(path)!r}: ")
    assert reason in message and message.isprintable() and len(message) < 150


@pytest.mark.parametrize("code", sorted({*range(256)} - {*b"N\x88\x89JKM\x8aGXCB(]ae}su"}))
def test_steps_that_no_plain_value_needs_are_not_taken(code, path):
    data = in_record(b"]]%c" % code + bytes(8))
    with pytest.raises(RecordError, match=f"at byte {data.index(b']]') + 2}$"):
        loads(data, path)


@pytest.mark.parametrize("call", CALLS)
def test_a_name_that_got_past_the_steps_would_not_be_looked_up(call):
    with pytest.raises(RecordError, match="asks for a name"):
        record_lib._Unpickler(io.BytesIO(ATTACKS[call][0])).load()


def test_the_attacks_are_real():
    """The standard library's own reader falls for them, so refusing them means something."""
    for attack in ("eval", "object array"):
        pickle.loads(ATTACKS[attack][0])
        assert os.environ.pop("EXECUTED") == "1"
    assert pickle.loads(ATTACKS["global"][0])["config"]["x"] == 0


@pytest.mark.parametrize("unit", [b"]K\1a", b"](](K\1e", b"](](K\1ee", b"M\1\1", b"G" + bytes(8)])
def test_the_size_of_a_hostile_file_bounds_the_memory_that_it_takes(unit, thorough, path):
    size = 2**24 if thorough else 2**17
    data = in_record(b"](" + unit * (size // len(unit)) + b"e")
    tracemalloc.start()
    with pytest.raises(RecordError):
        loads(data, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6 + 30 * size


EVENTS: list[str] | None = None


def watch(event, _arguments):
    watched = ("exec", "compile", "import", "open", "os.", "subprocess.", "pickle.", "ctypes.")
    if EVENTS is not None and event.startswith(watched):
        EVENTS.append(event)


sys.addaudithook(watch)


def mutate(data, chance):
    """Changes, removes or inserts a few bytes."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data))
        piece = chance.choice([*ATTACKS.values()])[0][:200]
        match chance.randrange(4):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.randrange(256)
            case 2:
                del data[at : at + chance.randint(1, 9)]
            case 3:
                data[at:at] = piece[chance.randrange(len(piece) + 1) :]
    return bytes(data)


def test_mutated_files_never_execute_anything(thorough, monkeypatch):
    record = make(accuracies=(0.5, 0.75), examples=12, mistakes=2)
    good = [dumps(lists(record)), dumps(of_schema_3(record))]
    chance = random.Random(7)
    read, total = 0, 50_000 if thorough else 1000
    monkeypatch.setattr(sys.modules[__name__], "EVENTS", [])
    tracemalloc.start()
    for _ in range(total):
        try:
            record_lib._parse(sealed(mutate(chance.choice(good), chance)))
            read += 1
        except RecordError as error:
            assert str(error).isprintable() and len(str(error)) < 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert EVENTS == [] and peak < 5e6
    assert total / 100 < read < total / 2  # changed numbers and pixels are read; most else is not
    pickle.loads(pickle.dumps(np.arange(3.0)))
    assert "pickle.find_class" in EVENTS  # the watch does see


# Files that cannot be read or written.


@pytest.mark.parametrize(("name", "reason"), [("absent", "No such file"), (".", "directory")])
def test_a_file_that_cannot_be_read(name, reason, tmp_path):
    with pytest.raises(RecordError, match=f"cannot be read: .*{reason}"):
        record_lib.load_record(tmp_path / name)


def test_a_path_that_cannot_be_written(tmp_path):
    with pytest.raises(RecordError, match=r"cannot be written: \w+ a directory; nothing"):
        record_lib.save_record(tmp_path, make())


def test_a_file_too_large_is_refused(path):
    with open(path, "wb") as file:
        file.truncate(2**40)  # sparse: it takes no disk
    with pytest.raises(RecordError, match="larger than"):
        record_lib.load_record(path)


def test_a_damaged_file_is_refused(path):
    record_lib.save_record(path, make())
    good, chance = path.read_bytes(), random.Random(0)
    flipped = [bytearray(good) for _ in range(100)]
    for data in flipped:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    for data in (good[:-71], good[:-1], b"", good + b"x", *flipped):
        path.write_bytes(data)
        with pytest.raises(RecordError, match="damaged, or not a record: its checksum"):
            record_lib.load_record(path)
