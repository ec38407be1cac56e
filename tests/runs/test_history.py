"""History files: what is kept, what is refused, and what a failed write leaves behind."""

import hashlib
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from records import make_record
from test_safe_pickle import ATTACKS, dumps, same

from jax_mnist.runs import history


def sealed(data):
    """The data as a file's contents: with the checksum that anyone can work out."""
    return data + b"sha256:" + hashlib.sha256(data).hexdigest().encode()


def changed(*path, to=None, **options):
    """A valid record with the value at the path replaced, or removed."""
    record = make_record(**options)
    *folders, last = path
    inner = record
    for key in folders:
        inner = inner[key]
    if to is None:
        del inner[last]
    else:
        inner[last] = to
    return record


def test_a_record_comes_back_as_it_was(tmp_path):
    record = make_record()
    history.save(tmp_path / "runs" / "gbn" / "history.pkl", record)
    assert os.listdir(tmp_path / "runs" / "gbn") == ["history.pkl"]
    assert same(history.load(tmp_path / "runs" / "gbn" / "history.pkl"), record)
    assert same(history.load(str(tmp_path / "runs" / "gbn" / "history.pkl")), record)


def test_the_file_can_be_read_without_this_package(tmp_path):
    """By the recipe in the module's docstring."""
    record = make_record()
    history.save(tmp_path / "history.pkl", record)
    with open(tmp_path / "history.pkl", "rb") as file:
        read = pickle.load(file)
    assert read["config"] == record["config"] and read["seed"] == record["seed"]
    for part in ("metrics", "predictions", "mistakes"):
        for key, array in record[part].items():
            plain = read[part][key]
            assert {type(value) for value in plain.values()} == {str, list, bytes}
            assert same(np.frombuffer(plain["data"], plain["dtype"]).reshape(plain["shape"]), array)


def test_the_same_record_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        history.save(tmp_path / name, make_record())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_values_are_made_plain(tmp_path):
    record = make_record()
    record["seed"] = np.int64(3)
    record["config"]["rate"] = np.float64(0.1)
    record["config"]["norm"] = np.str_("gbn")
    record["metrics"]["seconds"] = np.arange(6.0)[::2]
    record["metrics"]["learning_rate"] = np.arange(3.0).astype(">f8")
    record["mistakes"]["images"] = np.asfortranarray(record["mistakes"]["images"])
    history.save(tmp_path / "history.pkl", record)
    read = history.load(tmp_path / "history.pkl")
    assert same([read["seed"], read["config"]["rate"], read["config"]["norm"]], [3, 0.1, "gbn"])
    assert same(read["metrics"]["seconds"], np.array([0.0, 2.0, 4.0]))
    assert same(read["metrics"]["learning_rate"], np.arange(3.0))
    assert read["mistakes"]["images"].flags.c_contiguous


def test_a_run_without_a_mistake_and_one_that_broke_down_are_records(tmp_path):
    perfect, broken = make_record(mistakes=0), make_record(losses=[0.1, np.inf, np.nan])
    for record in (perfect, broken):
        history.save(tmp_path / "history.pkl", record)
        assert same(history.load(tmp_path / "history.pkl"), record)


def test_a_run_has_diverged_if_either_loss_of_its_last_epoch_is_not_finite():
    def diverged(key, values):
        return history.has_diverged(changed("metrics", key, to=np.array(values)))

    for key in ("train_loss", "validation_loss"):
        assert not diverged(key, [np.nan, np.inf, 0.1])  # only the last epoch counts
        assert diverged(key, [0.2, 0.1, np.nan])
        assert diverged(key, [0.2, 0.1, np.inf])


def by_hand(value):
    """What a stranger would write: arrays of any kind as `save` writes its own, the rest as is."""
    if type(value) is np.ndarray:
        return {"dtype": value.dtype.str, "shape": [*value.shape], "data": value.tobytes()}
    return {k: by_hand(v) for k, v in value.items()} if type(value) is dict else value


LOOP: list = []
LOOP.append(LOOP)
DOUBLED: list = []
for _ in range(18):
    DOUBLED = [DOUBLED, DOUBLED]

INVALID = {
    "no dict": ([1], "a record is a dict"),
    "no schema": (changed("schema"), "no schema number"),
    "schema of truth": (changed("schema", to=True), "no schema number"),
    "older": (
        {"schema": 2, "more": "x"},
        "schema 2, this version of jax_mnist reads schema 3: inst",
    ),
    "newer": (changed("schema", to=2**2000), r"schema 114813069, this .* reads schema 3: install"),
    **{f"no {key}": (changed(key), key) for key in make_record() if key != "schema"},
    **{
        f"no {key}": (changed(part, key), f"{key} is missing")
        for part in ("metrics", "predictions", "mistakes", "device")
        for key in make_record()[part]
    },
    "seed of truth": (changed("seed", to=True), "seed"),
    "config of another kind": (changed("config", to=[1]), "config"),
    "device count as text": (changed("device", "count", to="1"), "count"),
    "package version as number": (changed("packages", "jax", to=1), "jax"),
    "name with a line break": (changed("name", to="a\nb"), "printable"),
    "empty name": (changed("name", to=""), "printable"),
    "long name": (changed("name", to="a" * 65), "printable"),
    "label name of another kind": (changed("label_names", to=[*range(10)]), "printable"),
    "too few label names": (changed("label_names", to=["0"]), "probabilities must be"),
    "key with a line break": (changed("config", "a\nb", to=1), "has a key"),
    "key of another kind": (changed("config", 1, to=1), "has a key"),
    "key that cannot be pickled": (changed("config", lambda: 0, to=1), "has a key"),
    "bytes": (changed("config", "x", to=b"x"), r"record\['config'\]\['x'\] is bytes: give plain"),
    "tuple": (changed("config", "x", to=(1, 2)), "is tuple: give plain"),
    "integers": (changed("config", "x", to=np.arange(3)), "is array of int64"),
    "four axes": (changed("config", "x", to=np.zeros((1, 1, 1, 1))), "at most 3 integers"),
    "array by hand": (
        changed("config", "x", to=dict.fromkeys(("dtype", "shape", "data"))),
        "dtype",
    ),
    "long list": (changed("config", "x", to=[1] * 10_000), "more than 10000 steps"),
    "set": (changed("config", "x", to={1}), "is set: give plain"),
    "object": (
        changed("config", "model", "x", to=object()),
        r"record\['config'\]\['model'\]\['x'\] is object",
    ),
    "objects": (changed("config", "x", to=np.array([None])), "is array of object"),
    "texts": (changed("config", "x", to=np.array(["a"])), "is array of <U1"),
    "subclass": (changed("config", "x", to=np.ma.ones(2)), "is MaskedArray"),
    "ordered dict": (changed("config", "x", to=os.environ), "is _Environ"),
    "huge integer": (changed("config", "x", to=2**3000), "not a history"),
    "loop": (changed("config", "x", to=LOOP), "deep"),
    "endless": (changed("config", "x", to=DOUBLED), "deep"),
    "metric of another type": (
        changed("metrics", "seconds", to=np.zeros(3, np.float32)),
        r"seconds must be float64 \[3\], it is float32 \[3\]",
    ),
    "metric of another length": (
        changed("metrics", "seconds", to=np.zeros(4)),
        r"seconds must be float64 \[3\], it is float64 \[4\]",
    ),
    "metric that is a list": (changed("metrics", "seconds", to=[1.0] * 3), "seconds is missing"),
    "metric with two axes": (changed("metrics", "seconds", to=np.zeros((3, 1))), "seconds must"),
    "extra metric of another length": (changed("metrics", "more", to=np.zeros(2)), "more must"),
    "no epoch": (make_record(accuracies=()), "no epoch"),
    "no prediction": (make_record(examples=0, mistakes=0), "no prediction"),
    "percent": (make_record(accuracies=(90, 98)), "fractions, not percent"),
    "negative accuracy": (make_record(accuracies=(-0.1, 0.9)), "fractions, not percent"),
    "accuracy that is no number": (make_record(accuracies=(np.nan,)), "fractions"),
    "label out of range": (
        changed("predictions", "label", to=np.full(40, 10, np.int32)),
        "leaves the 10 classes",
    ),
    "negative prediction": (
        changed("predictions", "prediction", to=np.full(40, -1, np.int32)),
        "leaves the 10 classes",
    ),
    "labels of another type": (changed("predictions", "label", to=np.zeros(40)), "label must be"),
    "predictions of another length": (
        changed("predictions", "prediction", to=np.zeros(39, np.int32)),
        r"prediction must be int32 \[40\]",
    ),
    "images of another size": (
        changed("mistakes", "images", to=np.zeros((6, 28, 27), np.uint8)),
        r"images must be uint8 \[6, 28, 28\]",
    ),
    "images too few": (
        changed("mistakes", "images", to=np.zeros((5, 28, 28), np.uint8)),
        r"images must be uint8 \[6, 28, 28\]",
    ),
    "mistakes that are none": (
        changed("mistakes", "index", to=np.arange(6, dtype=np.int32)),
        "where label and prediction differ",
    ),
    "mistakes in another order": (
        changed("mistakes", "index", to=make_record()["mistakes"]["index"][::-1]),
        "where label and prediction differ",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_record_is_neither_saved_nor_loaded(case, tmp_path):
    record, reason = INVALID[case]
    path = tmp_path / "history.pkl"
    with pytest.raises(history.HistoryError, match=reason) as caught:
        history.save(path, record)
    assert str(caught.value).isprintable()
    assert os.listdir(tmp_path) == []

    try:
        path.write_bytes(sealed(dumps(by_hand(record))))
    except (TypeError, ValueError, AttributeError, pickle.PicklingError):
        return  # not even a pickle without references can hold it
    with pytest.raises(history.HistoryError) as caught:
        history.load(path)
    assert str(caught.value).startswith(f"{str(path)!r}: ")
    assert str(caught.value).isprintable()


def test_a_strangers_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "history.pkl"
    for data, reason in ATTACKS.values():
        path.write_bytes(sealed(data))
        with pytest.raises(history.HistoryError) as caught:
            history.load(path)
        assert str(caught.value).startswith(f"{str(path)!r}: not a history: ")
        assert reason in str(caught.value) and str(caught.value).isprintable()
    assert "EXECUTED" not in os.environ


@pytest.mark.parametrize(
    ("name", "reason"), [("absent", "No such file"), (".", "directory"), ("file/x", "directory")]
)
def test_a_file_that_cannot_be_read(name, reason, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(history.HistoryError, match=f"cannot be read: .*{reason}"):
        history.load(tmp_path / name)


def test_a_file_too_large_is_not_read_into_memory(tmp_path):
    with open(tmp_path / "history.pkl", "wb") as file:
        file.truncate(2**40)  # sparse: it takes no disk
    with pytest.raises(history.HistoryError, match="larger than"):
        history.load(tmp_path / "history.pkl")


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "history.pkl"
    history.save(path, make_record())
    good = path.read_bytes()
    chance = random.Random(0)
    flipped = [bytearray(good) for _ in range(100)]
    for data in flipped:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    for data in (good[:-71], good[:-1], good[:50], b"", good + b"x", *flipped):
        path.write_bytes(data)
        with pytest.raises(history.HistoryError, match="damaged, or not a history: its checksum"):
            history.load(path)


SEEN: list[str] | None = None


def watch(event, _arguments):
    watched = ("exec", "compile", "import", "open", "os.", "subprocess.", "pickle.", "ctypes.")
    if SEEN is not None and event.startswith(watched):
        SEEN.append(event)


sys.addaudithook(watch)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in pickletools
def test_mutated_files_never_execute_anything(thorough, monkeypatch):
    """With a checksum that fits, so that only the reader stands in their way."""
    good = dumps(by_hand(make_record(accuracies=(0.5, 0.75), examples=12, mistakes=2)))
    bad = [data for data, _ in ATTACKS.values()]
    chance = random.Random(7)
    read, total = 0, 50_000 if thorough else 1000
    "".encode("raw_unicode_escape")  # pickletools' own first use of a codec imports it
    monkeypatch.setattr(sys.modules[__name__], "SEEN", [])
    tracemalloc.start()
    for _ in range(total):
        data = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            piece = chance.choice(bad)[:200]
            match chance.randrange(4):
                case 0:
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    data[at] = chance.randrange(256)
                case 2:
                    del data[at : at + chance.randint(1, 9)]
                case 3:
                    data[at:at] = piece[chance.randrange(len(piece) + 1) :]
        try:
            history._parse(sealed(bytes(data)))
            read += 1
        except history.HistoryError as error:
            assert str(error).isprintable() and len(str(error)) < 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert SEEN == [] and peak < 5e6
    assert total / 100 < read < total / 2  # changed numbers and pixels are read; most else is not
    pickle.loads(pickle.dumps(np.arange(3.0)))
    assert "pickle.find_class" in SEEN  # the watch does see


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    """On a full disk, which a limit on the size of files stands for, in a process of its own."""
    path = tmp_path / "history.pkl"
    history.save(path, make_record(seed=1))
    before = path.read_bytes()
    process = subprocess.run(
        [sys.executable, __file__, path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.stdout == (
        f"{str(path)!r}: cannot be written: File too large; nothing was changed\n"
    ), process.stderr
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["history.pkl"]


def test_a_reader_keeps_the_earlier_file_whole(tmp_path):
    path = tmp_path / "history.pkl"
    history.save(path, make_record(seed=1))
    with open(path, "rb") as file:
        history.save(path, make_record(seed=2))
        assert pickle.load(file)["seed"] == 1
    assert same(history.load(path), make_record(seed=2))


@pytest.mark.parametrize("name", ["file/history.pkl", "folder"])
def test_a_path_that_cannot_be_written(name, tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    with pytest.raises(history.HistoryError, match=r"cannot be written: \w+ a directory; nothing"):
        history.save(tmp_path / name, make_record())
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"kept"


if __name__ == "__main__":  # the process of test_a_failed_write_leaves_the_earlier_file
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        history.save(sys.argv[1], make_record(seed=2))
    except history.HistoryError as failure:
        os.write(1, f"{failure}\n".encode())
