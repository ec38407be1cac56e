"""Real MNIST where it can be; a few hundred of its digits where a test prepares many times."""

import collections
import functools
import gzip
import hashlib
import http.server
import importlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
import types
import zipfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.utils import file_utils

from jax_mnist.data import datasets

SOURCE = Path(datasets.__file__).parent / "mnist"
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
LOAD = """
import hashlib, sys
from jax_mnist.data import datasets
train, test = datasets.load("mnist", "train"), datasets.load("mnist", "test")
print(*(hashlib.sha256(array).hexdigest() for array in (*train, *test)))
print(*(name for name in ("tensorflow", "tensorflow_datasets") if name in sys.modules))
"""


@functools.cache
def read_idx(path):
    with gzip.open(path) as file:
        assert file.read(3) == b"\0\0\x08"  # unsigned bytes
        rank = file.read(1)[0]
        shape = struct.unpack(f">{rank}I", file.read(4 * rank))
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def as_multiset(images, labels):
    return collections.Counter(zip((i.tobytes() for i in images), labels.tolist(), strict=True))


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def start_load(data_dir):
    return subprocess.Popen(
        [sys.executable, "-c", LOAD],
        env={**os.environ, "TFDS_DATA_DIR": str(data_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def first_loads(tmp_path_factory):
    """Two processes that load MNIST into the same empty folder at the same time."""
    data_dir = tmp_path_factory.mktemp("tfds")
    outputs = []
    for process in [start_load(data_dir), start_load(data_dir)]:
        outputs.append((*process.communicate(timeout=300), process.returncode))
    return data_dir, outputs


@pytest.fixture(scope="session")
def data_dir(first_loads):
    return first_loads[0]


def error_of(*args, **kwargs):
    """Returns the message of the DatasetError that a load must raise."""
    with pytest.raises(datasets.DatasetError) as caught:
        datasets.load(*args, **kwargs)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# Real MNIST


def test_two_processes_prepare_once_and_agree(first_loads):
    data_dir, outputs = first_loads
    (out_1, err_1, code_1), (out_2, err_2, code_2) = outputs
    assert (code_1, code_2) == (0, 0), err_1 + err_2
    assert (err_1 + err_2).count("Preparing mnist") == 1
    assert out_1.splitlines()[0] == out_2.splitlines()[0]
    assert sorted([out_1.splitlines()[1], out_2.splitlines()[1]]) == ["", "tensorflow_datasets"]
    assert files_below(data_dir) == [
        "jax_mnist/lock",
        "jax_mnist/mnist-3.0.1.npz",
        "mnist/3.0.1/dataset_info.json",
        "mnist/3.0.1/features.json",
        "mnist/3.0.1/mnist-test.array_record-00000-of-00001",
        "mnist/3.0.1/mnist-train.array_record-00000-of-00001",
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_are_those_of_the_idx_files(data_dir, split):
    images, labels = datasets.load("mnist", split, data_dir)
    true_images, true_labels = (read_idx(SOURCE / file) for file in FILES[split])
    assert images.shape == (*true_images.shape, 1) and images.dtype == np.uint8
    assert labels.shape == true_labels.shape and labels.dtype == np.int32
    assert as_multiset(images, labels) == as_multiset(true_images, true_labels)


def test_a_tfds_user_reads_the_same(data_dir):
    for builder in (
        tfds.builder("mnist", data_dir=data_dir),
        tfds.builder_from_directory(data_dir / "mnist" / "3.0.1"),
    ):
        assert builder.info.full_name == "mnist/3.0.1"
        for split in ("train[30000:30200]", "test[-200:]"):
            source = builder.as_data_source(split)
            images, labels = datasets.load("mnist", split, data_dir)
            assert len(source) == len(labels) == 200
            np.testing.assert_array_equal(np.stack([e["image"] for e in source]), images)
            np.testing.assert_array_equal([e["label"] for e in source], labels)


def test_order_is_the_one_tfds_has_always_given(data_dir):
    assert datasets.load("mnist", "train[:8]", data_dir).labels.tolist() == [4, 1, 0, 7, 8, 1, 2, 7]
    assert datasets.load("mnist", "test[:8]", data_dir).labels.tolist() == [2, 0, 4, 8, 7, 6, 0, 6]


def test_tfds_lists_its_own_dataset_only(data_dir):
    found = file_utils.list_datasets_in_data_dir(data_dir)
    assert [(f.dataset_name, f.config, str(f.version)) for f in found] == [("mnist", None, "3.0.1")]


def test_cached_load_imports_no_tfds(data_dir):
    process = start_load(data_dir)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and err == ""
    assert out.splitlines()[1] == ""


def test_slices(data_dir):
    train, test = (datasets.load("mnist", split, data_dir) for split in ("train", "test"))
    for split, images, labels in (
        ("train[:50000]", train.images[:50000], train.labels[:50000]),
        ("train[50000:]", train.images[50000:], train.labels[50000:]),
        ("test[-1%:]", test.images[9900:], test.labels[9900:]),
        (
            "test[:7]+train[-5:]",
            np.concatenate([test.images[:7], train.images[-5:]]),
            np.concatenate([test.labels[:7], train.labels[-5:]]),
        ),
    ):
        part = datasets.load("mnist", split, data_dir)
        np.testing.assert_array_equal(part.images, images)
        np.testing.assert_array_equal(part.labels, labels)


# Split strings


@functools.cache
def tfds_splits():
    """The splits as TFDS's own code describes them."""
    template = tfds.core.ShardedFileTemplate(
        dataset_name="mnist", data_dir="/", filetype_suffix="array_record"
    )
    return tfds.core.SplitDict(
        tfds.core.SplitInfo(
            name=name, shard_lengths=[count], num_bytes=0, filename_template=template
        )
        for name, count in (("train", 60_000), ("test", 10_000))
    )


def tfds_slices(split):
    """The (split, start, stop) that TFDS's own parser gives."""
    instruction = tfds.core.splits.AbstractSplit.from_spec(split)
    return [
        (i.splitname, i.from_ or 0, len_of(i.splitname) if i.to is None else i.to)
        for i in instruction.to_absolute(tfds_splits())
    ]


def len_of(name):
    return tfds_splits()[name].num_examples


def check_against_tfds(split):
    try:
        expected = tfds_slices(split)
    except Exception:
        expected = None
    try:
        ours = datasets._parse_split(split, datasets._COUNTS["mnist"])
    except datasets.DatasetError as error:
        assert "\n" not in str(error)
        empty = expected and any(start >= stop for _, start, stop in expected)
        assert expected is None or empty or "shard" in split
    else:
        assert ours == expected


ACCEPTED = """
train|test|all|train+test|test + train|train[:50000]|train[50000:]|train[:80%]|train[80%:]
train[:100]+test[:10]|train[10:20]|train[-10:]|train[:-10]|train[-60000:]|test[:10000]
test[33%:66%]|test[:33.333%]|test[-12.5%:]|train[:0.001%]|train[:50_000]|train[10:50%]
train[10%:50]|train[:100%]|train[-100%:-50%]|test[0:1]|test[-1:]|all+test[5:6]|train[.5%:1.%]
""".replace("\n", "|").strip("|")
REFUSED = """
 train|train |trian|Train|validation|train[]|train[:]|train[::]|train[:70000]|train[-60001:]
test[:10001]|train[5]|train[5%]|train[:1.5]|train[a:b]|train[:101%]|train[-100.5%:]|train[5:5]
train[10:5]|train[60000:]|train[:0]|test[-0:0]|all[:10]|train[:10|train:10]|train[: 10]|+|train+
+train|train,test|train[:10][:5]|train[1:2:3]|train[:_]|train[:.%]|train[:1.2.3%]|train[:--1]
""".replace("\n", "|").strip("|")


@pytest.mark.parametrize("split", ACCEPTED.split("|"))
def test_split_as_tfds_reads_it(split):
    assert datasets._parse_split(split, datasets._COUNTS["mnist"]) == tfds_slices(split)


@pytest.mark.parametrize("split", ["", *REFUSED.split("|"), None, 3, "train[0shard:1shard]"])
def test_bad_split_is_refused(split, tmp_path):
    assert error_of("mnist", split, tmp_path).startswith(f"bad split {split!r}: ")
    assert not list(tmp_path.iterdir())
    if split is not None:
        check_against_tfds(split)


bounds = st.one_of(
    st.just(""),
    st.integers(-61000, 61000).map(str),
    st.integers(-101, 101).map(lambda i: f"{i}%"),
    st.floats(-101, 101).map(lambda x: f"{x:.3f}%"),
)
pieces = st.one_of(
    st.sampled_from(["train", "test", "all"]),
    st.tuples(st.sampled_from(["train", "test", "all"]), bounds, bounds).map(
        lambda t: f"{t[0]}[{t[1]}:{t[2]}]"
    ),
    st.text("train[:%]+-.0123456789 _", max_size=12),
)


@hypothesis.settings(max_examples=500, deadline=None)
@hypothesis.given(st.lists(pieces, min_size=1, max_size=3).map("+".join))
def test_any_split_as_tfds_reads_it_or_refused(split):
    check_against_tfds(split)


# Names


@pytest.mark.parametrize("name", datasets.NAMES)
def test_names_versions_and_label_names_are_those_of_tfds(name, tmp_path):
    builder = tfds.builder(name, data_dir=tmp_path)
    assert datasets.label_names(name) == tuple(builder.info.features["label"].names)
    assert str(builder.version) == datasets._VERSIONS[name]


def test_unknown_name(tmp_path):
    message = error_of("fashon_mnist", "train", tmp_path)
    assert "'fashon_mnist'" in message and "did you mean 'fashion_mnist'?" in message
    message = error_of("cifar10", "train", tmp_path)
    assert "did you mean" not in message and "mnist, fashion_mnist, kmnist" in message
    assert error_of("./nowhere", "train", tmp_path).startswith("no folder './nowhere'")
    assert "did you mean 'emnist/digits'?" in error_of("emnist/digts", "train", tmp_path)
    with pytest.raises(datasets.DatasetError, match="'fashon_mnist'"):
        datasets.label_names("fashon_mnist")
    assert not list(tmp_path.iterdir())


# Source files


def test_damaged_source_file(tmp_path):
    source = shutil.copytree(SOURCE, tmp_path / "source")
    file = source / "train-labels-idx1-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    message = error_of("mnist", "train", tmp_path / "data", source)
    assert str(file) in message and "damaged" in message and "get it from https://" in message
    file.unlink()
    message = error_of("mnist", "train", tmp_path / "data", source)
    assert str(file) in message and "No such file" in message
    assert files_below(tmp_path / "data") == ["jax_mnist/lock"]


def test_files_of_another_dataset_are_refused(tmp_path):
    for name in ("fashion_mnist", "kmnist"):
        message = error_of(name, "train", tmp_path, SOURCE)
        assert "another file" in message and "get it from http://" in message
    assert files_below(tmp_path) == ["jax_mnist/lock"]


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist", "emnist/digits"])
def test_no_network(name, tmp_path, monkeypatch, capfd):
    # Nothing listens on this port, so every download fails, whatever the machine can reach.
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    start = time.monotonic()
    message = error_of(name, "train", tmp_path)
    assert time.monotonic() - start < 30  # TFDS itself would take more than three minutes
    assert message.startswith("cannot download from http") and "refused" in message
    files = ["gzip.zip"] if name == "emnist/digits" else sum(FILES.values(), ())
    assert "source_dir" in message and all(file in message for file in files)
    announced = capfd.readouterr()
    assert announced.out == ""
    assert "Downloading from http" in announced.err and "source_dir" in announced.err
    assert files_below(tmp_path) == ["jax_mnist/lock"]


# A small KMNIST: files of the same form, with fewer images


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def small(tmp_path, monkeypatch):
    """KMNIST as 300 and 100 digits of MNIST, served over HTTP as TFDS expects the real one."""
    served = tmp_path / "served"
    served.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Server, directory=served)
    )
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/"
    counts, true, infos = {"train": 300, "test": 100}, {}, {}
    for split, files in FILES.items():
        true[split] = tuple(read_idx(SOURCE / file)[: counts[split]] for file in files)
        for file, array in zip(files, true[split], strict=True):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            content = gzip.compress(header + array.tobytes())
            (served / file).write_bytes(content)
            infos[url + file] = checksums.UrlInfo(
                size=tfds.core.units.Size(len(content)),
                checksum=hashlib.sha256(content).hexdigest(),
                filename=file,
            )
    builder = importlib.import_module("tensorflow_datasets.image_classification.mnist")
    monkeypatch.setattr(builder.KMNIST, "URL", url)
    monkeypatch.setattr(builder.KMNIST, "url_infos", infos)
    monkeypatch.setattr(builder, "_TRAIN_EXAMPLES", 300)
    monkeypatch.setattr(builder, "_TEST_EXAMPLES", 100)
    monkeypatch.setitem(datasets._COUNTS, "kmnist", counts)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    data_dir = tmp_path / "data"

    def check(**kwargs):
        for split in ("train", "test"):
            part = datasets.load("kmnist", split, data_dir, **kwargs)
            assert as_multiset(*part) == as_multiset(*true[split])

    yield types.SimpleNamespace(
        url=url,
        data_dir=data_dir,
        served=served,
        check=check,
        cache=data_dir / "jax_mnist" / "kmnist-3.0.1.npz",
        folder=data_dir / "kmnist" / "3.0.1",
        own=data_dir / "jax_mnist" / "kmnist" / "3.0.1",
    )
    server.shutdown()
    thread.join()
    server.server_close()


COMPLETE = [
    "jax_mnist/kmnist-3.0.1.npz",
    "jax_mnist/lock",
    "kmnist/3.0.1/dataset_info.json",
    "kmnist/3.0.1/features.json",
    "kmnist/3.0.1/kmnist-test.array_record-00000-of-00001",
    "kmnist/3.0.1/kmnist-train.array_record-00000-of-00001",
    "kmnist/3.0.1/label.labels.txt",
]


def test_download(small, capfd):
    small.check()
    assert files_below(small.data_dir) == COMPLETE
    info = json.loads((small.folder / "dataset_info.json").read_text())
    assert info["name"] == "kmnist" and info["fileFormat"] == "array_record"
    assert capfd.readouterr().out == ""


def test_source_dir(small):
    source = small.served.rename(small.served.with_name("copied by hand"))  # the server has none
    small.check(source_dir=source)
    assert files_below(small.data_dir) == COMPLETE


@pytest.mark.parametrize("way", ["source_dir", "download"])
def test_emnist_comes_in_one_archive(small, way, tmp_path, monkeypatch):
    counts = {"train": 60, "test": 30}
    true = {s: tuple(read_idx(SOURCE / f)[: counts[s]] for f in FILES[s]) for s in FILES}
    with zipfile.ZipFile(small.served / "gzip.zip", "w") as archive:
        for split, arrays in true.items():
            for kind, array in zip(("images-idx3", "labels-idx1"), arrays, strict=True):
                name = f"gzip/emnist-digits-{split}-{kind}-ubyte.gz"
                archive.writestr(name, gzip.compress(idx(array)))
                archive.writestr(name.replace("digits", "letters"), b"")
    content = (small.served / "gzip.zip").read_bytes()
    emnist = tfds.image_classification.EMNIST
    (digits,) = (c for c in emnist.BUILDER_CONFIGS if c.name == "digits")
    monkeypatch.setattr(digits, "train_examples", counts["train"])
    monkeypatch.setattr(digits, "test_examples", counts["test"])
    monkeypatch.setitem(datasets._COUNTS, "emnist/digits", counts)
    info = checksums.UrlInfo(
        size=tfds.core.units.Size(len(content)),
        checksum=hashlib.sha256(content).hexdigest(),
        filename="gzip.zip",
    )
    monkeypatch.setattr(emnist, "URL", small.url + "gzip.zip")
    monkeypatch.setattr(emnist, "url_infos", {emnist.URL: info})
    source_dir = small.served if way == "source_dir" else None
    for split in ("train", "test"):
        data = datasets.load("emnist/digits", split, tmp_path / "data", source_dir)
        assert as_multiset(*data) == as_multiset(*true[split])
    folder = "emnist/digits/3.1.0"
    assert files_below(tmp_path / "data") == [
        f"{folder}/dataset_info.json",
        *(f"{folder}/emnist-{s}.array_record-00000-of-00001" for s in ("test", "train")),
        f"{folder}/features.json",
        "jax_mnist/emnist-digits-3.1.0.npz",
        "jax_mnist/lock",
    ]
    for builder in (
        tfds.builder("emnist/digits", data_dir=tmp_path / "data"),
        tfds.builder_from_directory(tmp_path / "data" / folder),
    ):
        assert builder.info.full_name == folder
        source = builder.as_data_source("test")
        np.testing.assert_array_equal(np.stack([e["image"] for e in source]), data.images)
        np.testing.assert_array_equal([e["label"] for e in source], data.labels)
    damaged = bytearray(content)
    damaged[40] ^= 1
    (small.served / "gzip.zip").write_bytes(damaged)
    message = error_of("emnist/digits", "test", tmp_path / "other", small.served)
    assert "gzip.zip is damaged or another file" in message and "get it from http" in message


def test_damaged_download(small):
    file = small.served / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes() + b"\0")
    message = error_of("kmnist", "train", small.data_dir)
    assert message.startswith("cannot download from http://127.0.0.1")
    assert "wrong checksum" in message and "source_dir" in message
    file.unlink()
    assert "404" in error_of("kmnist", "train", small.data_dir)
    assert files_below(small.data_dir) == ["jax_mnist/lock"]


def flip_image(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"train_images.npy") + 20_000] ^= 1
    path.write_bytes(content)


def flip_with_right_crc(path):
    """Changes a pixel in a way that only the checksum of the arrays can tell."""
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["train_images"][7, 14, 14, 0] ^= 1
    np.savez(path, **arrays)


def drop_image(path):
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["train_images"] = arrays["train_images"][1:]
    np.savez(path, **arrays)


def pickle_images(path):
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["train_images"] = np.array([Exploding()], object)
    np.savez(path, **arrays)


class Exploding:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize(
    "damage",
    [
        flip_image,
        flip_with_right_crc,
        drop_image,
        pickle_images,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:100_000]),
        lambda path: path.write_bytes(b"not an archive"),
    ],
)
def test_damaged_cache_is_rebuilt(small, damage, caplog):
    small.check()
    good = small.cache.read_bytes()
    shutil.rmtree(small.served)  # it is rebuilt from the TFDS directory
    damage(small.cache)
    assert small.cache.read_bytes() != good
    caplog.clear()
    small.check()
    assert [r.getMessage() for r in caplog.records] == [
        f"{small.cache} is damaged and is written anew"
    ]
    with np.load(small.cache) as rebuilt, np.load(io.BytesIO(good)) as original:
        assert dict(rebuilt).keys() == dict(original).keys()
        for key in original:
            np.testing.assert_array_equal(rebuilt[key], original[key])


def test_cache_of_another_dataset_is_not_taken(small, caplog):
    small.check()
    shutil.copy(small.cache, small.cache.with_name("fashion_mnist-3.0.1.npz"))
    assert "another file" in error_of("fashion_mnist", "train", small.data_dir, small.served)


def truncate(folder):
    path = next(folder.glob("*train*"))
    path.write_bytes(path.read_bytes()[:-2000])


def flip(folder):
    path = next(folder.glob("*test*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_info(folder):
    (folder / "dataset_info.json").unlink()


def lose_shard(folder):
    next(folder.glob("*test*")).unlink()


def as_tfrecord(folder):
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))


def more_examples(folder):
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace('"300"', '"301"'))


@pytest.mark.parametrize(
    "damage", [truncate, flip, lose_info, lose_shard, as_tfrecord, more_examples]
)
def test_unreadable_tfds_directory_stays_and_ours_is_made_beside_it(small, damage, caplog):
    small.check()
    before = {p: p.read_bytes() for p in small.folder.iterdir()}
    damage(small.folder)
    damaged = {p: p.read_bytes() for p in small.folder.iterdir()}
    assert damaged != before
    small.cache.unlink()
    caplog.clear()
    small.check()
    assert {p: p.read_bytes() for p in small.folder.iterdir()} == damaged
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert message.startswith(f"cannot read {small.folder}") and "\n" not in message
    assert len(tfds.builder_from_directory(small.own).as_data_source("train")) == 300
    # The one beside is read again, and rebuilt when it is damaged too.
    small.cache.unlink()
    served = small.served.rename(small.served.with_name("away"))
    small.check()
    truncate(small.own)
    small.cache.unlink()
    small.check(source_dir=served)
    assert len(tfds.builder_from_directory(small.own).as_data_source("train")) == 300


@pytest.mark.parametrize("limit", [10_000, 60_000, 100_000, 250_000])
def test_full_disk(small, limit):
    """A limit on the size of files stands for a full disk: writes fail at some byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        message = error_of("kmnist", "train", small.data_dir, small.served)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in message and "data_dir" in message and "MB free" in message
    complete = [file for file in COMPLETE if not file.endswith("npz")]
    assert files_below(small.data_dir) in (["jax_mnist/lock"], complete)
    small.check()


def test_leftovers_of_an_interrupted_run_are_cleared(small):
    for path in (
        small.data_dir / "jax_mnist" / "incomplete" / "kmnist" / "3.0.1" / "features.json",
        small.data_dir / "jax_mnist" / "kmnist-3.0.1.incomplete",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    small.check()
    assert files_below(small.data_dir) == COMPLETE


def test_data_dir_that_cannot_be_written(small, tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    message = error_of("kmnist", "train", file)
    assert str(file) in message and "Not a directory" in message and "data_dir" in message


def test_default_data_dir_is_that_of_tfds(small, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "named"))
    datasets.load("kmnist", "test")
    assert files_below(tmp_path / "named") == COMPLETE
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    datasets.load("kmnist", "test")
    assert files_below(tmp_path / "home" / "tensorflow_datasets") == COMPLETE


# A folder of IDX files.


def idx(array):
    """An array of bytes in the format of the original files."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "own"
    folder.mkdir()
    for prefix, count in (("train", 50), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def test_a_folder_of_idx_files_is_a_data_set(idx_folder, capsys):
    train = datasets.load(str(idx_folder), "train")
    assert train.images.shape == (50, 28, 28, 1) and train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32 and train.labels.tolist() == list(range(10)) * 5
    part = datasets.load(str(idx_folder), "train[80%:]+test[:5]")
    np.testing.assert_array_equal(part.images[:10], train.images[40:])
    assert part.labels.tolist() == [*range(10), *range(5)]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3  # one of the first load, two of the second
    path = idx_folder / "train-images-idx3-ubyte.gz"
    whole = "50 images of 28x28, 10 classes, 5 images of each; sizes and one gzip checksum are "
    content = train.images.tobytes() + train.labels.astype(np.uint8).tobytes()
    digest = hashlib.sha256(content).hexdigest()
    assert said[0] == f"{path}: {whole}right, SHA-256 of pixels and labels {digest}"
    assert said[:2] == [said[0], said[0]] and "t10k-images-idx3-ubyte.gz: 20 images" in said[2]
    assert datasets.label_names(str(idx_folder)) == tuple("0123456789")
    with pytest.raises(datasets.DatasetError, match="beyond the 20 examples of test"):
        datasets.load(str(idx_folder), "test[:21]")


def test_the_home_of_nobody_is_a_folder_that_there_is_not():
    with pytest.raises(datasets.DatasetError, match="no folder '~nobody_at_all/x'"):
        datasets.load("~nobody_at_all/x", "train")


def test_a_worker_of_a_study_says_nothing(idx_folder, capfd):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=datasets.load, args=(str(idx_folder), "all"))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_dot_before_the_format_is_as_good(idx_folder, end):
    expected = datasets.load(str(idx_folder), "train")
    path = idx_folder / "train-images-idx3-ubyte.gz"
    data = path.read_bytes() if end else gzip.decompress(path.read_bytes())
    path.unlink()
    (idx_folder / "train-images-idx3-ubyte").mkdir()  # some programs unpack into such a folder
    (idx_folder / f"train-images.idx3-ubyte{end}").write_bytes(data)
    found = datasets.load(str(idx_folder), "train")
    np.testing.assert_array_equal(found.images, expected.images)


def test_the_packaged_files_as_a_folder_are_known_as_what_they_are(data_dir):
    for split, part in datasets.read_folder(SOURCE).items():
        by_name = datasets.load("mnist", split, data_dir)  # in the order of TFDS
        assert as_multiset(*part.data) == as_multiset(*by_name)
        assert part.checked.endswith("pixels and labels are those of the original mnist")


def test_a_folder_of_known_images_has_their_label_names(idx_folder, monkeypatch):
    assert datasets.label_names(str(idx_folder)) == tuple("0123456789")
    digest = datasets.read_folder(idx_folder)["test"].sha256
    monkeypatch.setitem(datasets._ORIGINALS, digest, "fashion_mnist")
    assert datasets.label_names(str(idx_folder)) == datasets.label_names("fashion_mnist")


DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_is_the_original(tmp_path):
    parts = datasets.read_folder(DEBIAN).values()
    assert all(part.checked.endswith("the original fashion_mnist") for part in parts)
    # Debian's gzip files lack the time and the name of the original ones. With them, they have the
    # checksums that TFDS registers, and so the contents.
    for file in sum(FILES.values(), ()):
        time = {"train": 1504176606, "t10k-": 1504176627}[file[:5]]
        head = b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + b"\0\3" + file[:-3].encode()
        (tmp_path / file).write_bytes(head + b"\0" + (DEBIAN / file).read_bytes()[10:])
    builder = datasets._builder_class("fashion_mnist", download=False)
    datasets._verify(builder, tmp_path, "")


# Byte 9 of a gzip file names a system, and 4 to 7 a time: nothing depends on them.
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:2] + bytes([data[2] ^ 1]) + data[3:],
        lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        lambda data: data + b"x",
    ],
)
def test_a_damaged_idx_file_is_found(idx_folder, name, damage):
    path = idx_folder / name
    path.write_bytes(damage(path.read_bytes()))
    if name.startswith("t10k") and len(path.read_bytes()) == 28 and path.read_bytes()[2] == 8:
        damaged = "holds the label"  # plain files have no checksum: a label may be another one
        path.write_bytes(path.read_bytes()[:-1] + bytes([200]))
    else:
        damaged = re.escape(str(path))
    with pytest.raises(datasets.DatasetError, match=damaged) as error:
        datasets.read_folder(idx_folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "train-labels-idx1-ubyte",
            np.zeros(49, np.uint8),
            "holds 50 images, train-labels-idx1-ubyte 49 labels",
        ),
        ("t10k-labels-idx1-ubyte", np.full(20, 10, np.uint8), "holds the label 10"),
        ("t10k-images-idx3-ubyte", np.zeros((20, 32, 32), np.uint8), "images of 32x32"),
        ("t10k-images-idx3-ubyte", np.zeros((20, 784), np.uint8), "not begin as one of bytes in 3"),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(idx_folder, name, array, message):
    (idx_folder / f"{name}.gz").unlink(missing_ok=True)
    (idx_folder / name).write_bytes(idx(array))
    with pytest.raises(datasets.DatasetError, match=message):
        datasets.read_folder(idx_folder)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_claim_of_many_bytes_takes_no_memory(idx_folder, suffix):
    for path in idx_folder.glob("train-images*"):
        path.unlink()
    claim = bytes([0, 0, 8, 3]) + np.array([2**31, 28, 28], ">u4").tobytes()
    (idx_folder / f"train-images-idx3-ubyte{suffix}").write_bytes(
        gzip.compress(claim) if suffix else claim
    )
    with pytest.raises(datasets.DatasetError, match="too small for the 1,683,627,180,032 bytes"):
        datasets.read_folder(idx_folder)


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(datasets.DatasetError, match="holds no train-images-idx3-ubyte"):
        datasets.load(str(tmp_path), "train")
