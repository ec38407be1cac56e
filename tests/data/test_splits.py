"""Split strings mean what they mean to TFDS's own parser, or are refused."""

import functools

import hypothesis
import hypothesis.strategies as st
import pytest
import tensorflow_datasets as tfds

from jax_mnist.data import splits
from jax_mnist.data.types import DatasetError

COUNTS = {"train": 60_000, "test": 10_000}


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
        for name, count in COUNTS.items()
    )


def tfds_slices(split):
    """The (split, start, stop) that TFDS's own parser gives; [] if it refuses, or one is empty."""
    try:
        instruction = tfds.core.splits.AbstractSplit.from_spec(split)
        slices = [
            (i.splitname, i.from_ or 0, COUNTS[i.splitname] if i.to is None else i.to)
            for i in instruction.to_absolute(tfds_splits())
        ]
    except Exception:
        return []
    return slices if all(start < stop for _, start, stop in slices) else []


def check(split):
    if (expected := tfds_slices(split)) and "shard" not in split:
        assert splits.parse(split, COUNTS) == expected
        return
    with pytest.raises(DatasetError) as error:
        splits.parse(split, COUNTS)
    assert str(error.value).startswith(f"bad split {split!r}: ") and "\n" not in str(error.value)


SPLITS = """
train|test|all|train+test|test + train|train[:50000]|train[50000:]|train[:80%]|train[80%:]
train[:100]+test[:10]|train[10:20]|train[-10:]|train[:-10]|train[-60000:]|test[:10000]
test[33%:66%]|test[:33.333%]|test[-12.5%:]|train[:0.001%]|train[:50_000]|train[10:50%]
train[10%:50]|train[:100%]|train[-100%:-50%]|test[0:1]|test[-1:]|all+test[5:6]|train[.5%:1.%]
 train|train |trian|Train|validation|train[]|train[:]|train[::]|train[:70000]|train[-60001:]
test[:10001]|train[5]|train[5%]|train[:1.5]|train[a:b]|train[:101%]|train[-100.5%:]|train[5:5]
train[10:5]|train[60000:]|train[:0]|test[-0:0]|all[:10]|train[:10|train:10]|train[: 10]|+|train+
+train|train,test|train[:10][:5]|train[1:2:3]|train[:_]|train[:.%]|train[:1.2.3%]|train[:--1]
train[0shard:1shard]|
""".strip("\n").replace("\n", "|")


@pytest.mark.parametrize("split", [*SPLITS.split("|"), None, 3])
def test_split_as_tfds_reads_it_or_refused(split):
    check(split)


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


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.lists(pieces, min_size=1, max_size=3).map("+".join))
def test_any_split_as_tfds_reads_it_or_refused(split):
    check(split)
