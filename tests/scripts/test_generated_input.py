"""Configs and command lines by chance: each trains, or is refused in one line."""

import operator
import re
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from forked_scripts import ForkedScripts
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jax_mnist import config
from jax_mnist.data import datasets
from jax_mnist.runs.record import has_diverged, load_record
from jax_mnist.runs.trainer import train

ROOT = Path(__file__).parents[2]

NUMBERS = {
    "learning_rate": st.floats(1e-4, 1.0),
    "ema": st.sampled_from([0.0, 0.5, 0.999]),
    **dict.fromkeys(["momentum", "norm_momentum", "scale"], st.floats(0, 0.99)),
    **dict.fromkeys(["l1", "l2"], st.floats(0, 0.1)),
    **dict.fromkeys(["brightness", "contrast"], st.floats(0, 2)),
    "rotation": st.floats(0, 180),
    "shift": st.floats(0, 28),
    "shear": st.floats(0, 89),
}
# Few values of what shapes the program: each other one takes seconds to compile.
CHOICES = {
    "batch_size": [1, 64],
    "norm": ["batch", "ghost"],
    "ghost_batch_size": [5, 1_000_000],
    "stats_update": ["mean", "pooled", "sequential"],
    "schedule": ["constant", "one_cycle"],
    "nesterov": [False, True],
    "train_split": ["train[:64]", "test[-66:]"],
    "validation_split": ["train[:64]", "test[-1:]", "train[10:74]+test[:3]", "train[99%:]"],
}
GOOD = {name: st.sampled_from(values) for name, values in CHOICES.items()}
GOOD |= NUMBERS | {"seed": st.integers(0, 2**31 - 1)}
# Any value of a field's type.
TYPES = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats() | st.sampled_from([-1.0, 0.0, 1e-45, 1.0, 1e30, 1e308]),
    str: st.text(max_size=20),
}
ONE_OF_ANY = st.sampled_from(sorted([*GOOD, "dataset"])).flatmap(
    lambda field: st.fixed_dictionaries({field: TYPES[type(config.base()[field])]})
)
CONFIGS = st.builds(operator.or_, st.fixed_dictionaries(GOOD), st.just({}) | ONE_OF_ANY)


def train_or_refuse(fields):
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        generated = config.base()
        generated.update(epochs=1, data_devices=1, **fields)
        try:
            (record,) = train(generated, workdir)
        except (config.ConfigError, datasets.DatasetError) as error:
            assert str(error).isprintable() and 20 < len(str(error)) < 400
            assert not workdir.exists()
            return False
        losses = [record["metrics"][f"{part}_loss"][0] for part in ("train", "validation")]
        assert np.isfinite(losses).all() != has_diverged(record)
        assert load_record(workdir / "history.pkl")["config"] == generated.to_dict()
        assert (workdir / "variables.msgpack").exists() == np.isfinite(losses).all()
        return True


def test_a_generated_config_trains_or_is_refused_in_one_line(thorough):
    trained = []

    @settings(max_examples=200 if thorough else 6, deadline=None, derandomize=True, database=None)
    @given(CONFIGS)
    @example({"l2": -1.0})
    def check(fields):
        trained.append(train_or_refuse(fields))
        if len(trained) % 20 == 0:
            jax.clear_caches()  # a process may map only so many programs

    with tiny.network():
        check()
    assert {True, False} == set(trained)


# A script ends where training would begin, with the data loaded.
BEGIN = """
from jax_mnist import config
from jax_mnist.analysis import report
from jax_mnist.runs import loop, study
def begin(*arguments):
    raise config.ConfigError("training would begin")
loop.init_replicas = study._train_on_every_core = begin
"""
# Of each script, what makes a good command line, and the flags that are drawn from.
SCRIPTS = {
    "train.py": ("gbn", "--config --workdir --fresh --checkpoint_every --checkpoints_kept"),
    "study.py": ("", "--config --quick --seeds --workdir --baseline"),
    "sweep.py": ("gbn --vary=l2=0", "--config --vary --vary=l2 --vary=norm --replicas --workdir"),
    "plot.py": ("", "--out"),
    "predict.py": ("", "--json"),
    "export.py": ("", "--out"),
}
THAT_TRAIN = ("train.py", "study.py", "sweep.py")
NO_FLAGS = ["--config.", "--config.epochs.x", "--config.l2.", "--no_such_flag", "--config.no", "--"]
WORDS = ["", "nan", "-inf", "1e999", "-1", "0", "2", "0.5", "True", "()", "None", "/", "."]
# Without NUL, which ends an argument, and without a stroke: a path outside the test's folder could
# be written to.
VALUES = st.sampled_from(WORDS) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\x00"), max_size=9
)
# A folder that can be had would be filled with the data, which takes its time.
FOLDERS = st.sampled_from(["", "/dev/null", "/proc/none"])


def with_value(flag):
    values = FOLDERS if flag.endswith(("data_dir", "source_dir")) else VALUES
    return st.builds(f"{flag}={{}}".format, values)


@pytest.fixture(scope="module")
def scripts():
    with ForkedScripts(BEGIN) as scripts:
        yield scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_generated_command_line_is_refused_in_one_line_or_trains(
    name, thorough, scripts, tmp_path
):
    good, flags = (words.split() for words in SCRIPTS[name])
    fields = [f"--config.{field}" for field in config.base()] if name in THAT_TRAIN else []
    some_flag = st.sampled_from([*flags, *fields, *NO_FLAGS])
    # By itself a flag takes the next word, which is no such folder.
    alone = some_flag.filter(lambda flag: not flag.endswith(("data_dir", "source_dir")))
    arguments = st.lists(some_flag.flatmap(with_value) | alone | VALUES, max_size=3)
    ends = set()

    @settings(max_examples=500 if thorough else 15, deadline=None, database=None)
    @given(arguments)
    def check(arguments):
        result = scripts.run(ROOT / "scripts" / name, *good, *arguments, cwd=tmp_path)
        if any(re.match(r"--?(help|h$|\?$)", argument) for argument in arguments):
            return
        assert result.returncode == 2, result.stderr
        lines = [line for line in result.stderr.split("\n") if line and "\r" not in line]
        assert len(lines) == 1 and lines[0].isprintable(), result.stderr
        assert lines[0].startswith(f"{name}: ") and 10 < len(lines[0]) < 1000
        ends.add(lines[0].endswith("training would begin"))
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    check()
    assert ends == ({False, True} if name in THAT_TRAIN else {False})
