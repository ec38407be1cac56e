"""Configs and command lines by chance: each trains, or is refused in one line."""

import collections
import json
import operator
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jax_mnist import config
from jax_mnist.data import datasets
from jax_mnist.runs import history
from jax_mnist.runs.trainer import train

ROOT = Path(__file__).parents[2]

ANY_FLOAT = st.floats() | st.sampled_from([-1.0, 0.0, 1e-45, 1.0, 1e30, 1e308])
NUMBERS = {
    "learning_rate": st.floats(1e-4, 1.0),
    "momentum": st.floats(0, 0.99),
    "norm_momentum": st.floats(0, 0.99),
    "l1": st.floats(0, 0.1),
    "l2": st.floats(0, 0.1),
    "ema": st.sampled_from([0.0, 0.5, 0.999]),
    "brightness": st.floats(0, 2),
    "contrast": st.floats(0, 2),
    "rotation": st.floats(0, 180),
    "shift": st.floats(0, 28),
    "scale": st.floats(0, 0.99),
    "shear": st.floats(0, 89),
}
SPLITS = st.sampled_from(["train[:64]", "test[-1:]", "train[10:74]+test[:3]", "train[99%:]"])
# Few values of what shapes the program: each other one takes seconds to compile.
SHAPES = {
    "seed": st.integers(0, 2**31 - 1),
    "batch_size": st.sampled_from([1, 64]),
    "norm": st.sampled_from(["batch", "ghost"]),
    "ghost_batch_size": st.sampled_from([5, 1_000_000]),
    "stats_update": st.sampled_from(["mean", "pooled", "sequential"]),
    "schedule": st.sampled_from(["constant", "one_cycle"]),
    "nesterov": st.booleans(),
    "train_split": st.sampled_from(["train[:64]", "test[-66:]"]),
    "validation_split": SPLITS,
}
ANY = {
    **dict.fromkeys(NUMBERS, ANY_FLOAT),
    **dict.fromkeys(["seed", "batch_size", "ghost_batch_size"], st.integers()),
    **dict.fromkeys(
        ["norm", "stats_update", "schedule", "dataset", "train_split", "validation_split"],
        st.text(max_size=20),
    ),
}
ONE_OF_ANY = st.sampled_from(sorted(ANY)).flatmap(
    lambda field: st.fixed_dictionaries({field: ANY[field]})
)
CONFIGS = st.builds(operator.or_, st.fixed_dictionaries(NUMBERS | SHAPES), st.just({}) | ONE_OF_ANY)


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
        losses = [record["metrics"][f"{part}_loss"] for part in ("train", "validation")]
        assert losses[0].shape == (1,)
        assert np.isfinite(losses).all() != history.has_diverged(record)
        assert history.load(workdir / "history.pkl")["config"] == generated.to_dict()
        assert (workdir / "variables.msgpack").exists() == np.isfinite(losses).all()
        return True


def test_a_generated_config_trains_or_is_refused_in_one_line(thorough):
    trained = []

    @settings(max_examples=200 if thorough else 8, deadline=None, derandomize=True, database=None)
    @given(CONFIGS)
    @example({"l2": -1.0})
    def check(fields):
        trained.append(train_or_refuse(fields))
        if len(trained) % 20 == 0:
            jax.clear_caches()  # a process may map only so many programs

    with tiny.network():
        check()
    assert {True, False} == set(trained)


# Runs the script once for each of the command lines on standard input, in a process of its own,
# without importing everything again. It ends where training would begin, with the data loaded.
MANY = """
import json, os, runpy, sys, tempfile
from jax_mnist import config
from jax_mnist.analysis import report
from jax_mnist.inference import predict
from jax_mnist.runs import loop, study, workers
script = sys.argv[1]
sys.path.insert(0, os.path.dirname(script))
def begin(*arguments):
    raise config.ConfigError("training would begin")
loop.init_replicas = workers.train_on_every_core = begin
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            sys.argv = [script, *json.loads(line)]
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(end.code)
            except BaseException:
                import traceback
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        print(json.dumps([code, errors.read().decode()]), flush=True)
"""

CONFIG = ["--config", str(ROOT / "configs" / "gbn.py")]
FIELDS = [f"--config.{field}" for field in config.base()]
# Of each script, what makes a good command line, and the flags that are drawn from.
SCRIPTS = {
    "train.py": (
        CONFIG,
        [
            "--config",
            "--workdir",
            "--fresh",
            "--checkpoint_every",
            "--checkpoints_kept",
            "--coordinator_address",
            "--num_processes",
            "--process_id",
            *FIELDS,
        ],
    ),
    "study.py": ([], ["--config", "--quick", "--seeds", "--workdir", *FIELDS]),
    "sweep.py": (
        [*CONFIG, "--vary=l2=0"],
        [
            "--config",
            "--vary",
            "--vary=l2",
            "--vary=norm",
            "--vary=seed",
            "--replicas",
            "--workdir",
            *FIELDS,
        ],
    ),
    "plot.py": ([], ["--out"]),
    "predict.py": ([], ["--json"]),
    "export.py": ([], ["--out"]),
}
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


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_generated_command_line_is_refused_in_one_line_or_trains(name, thorough, tmp_path):
    good, own_flags = SCRIPTS[name]
    some_flag = st.sampled_from([*own_flags, *NO_FLAGS])
    # By itself a flag takes the next word, which is no such folder.
    alone = some_flag.filter(lambda flag: not flag.endswith(("data_dir", "source_dir")))
    arguments = st.lists(some_flag.flatmap(with_value) | alone | VALUES, max_size=3)
    command = [sys.executable, "-c", MANY, ROOT / "scripts" / name]
    ends = collections.Counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:

        @settings(max_examples=500 if thorough else 15, deadline=None, database=None)
        @given(arguments)
        def check(arguments):
            process.stdin.write(json.dumps([*good, *arguments]) + "\n")
            process.stdin.flush()
            code, said = json.loads(process.stdout.readline())
            if {"--help", "-h", "-?"} & set(arguments):
                return
            assert code == 2, said
            lines = [line for line in said.split("\n") if line and "\r" not in line]  # no bar
            assert len(lines) == 1 and lines[0].isprintable(), said
            assert "Traceback" not in said
            assert lines[0].startswith(f"{name}: ") and 10 < len(lines[0]) < 1000
            ends[lines[0].endswith("training would begin")] += 1
            for path in tmp_path.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

        check()
    assert ends[False]
    assert bool(ends[True]) == (name in ("train.py", "study.py", "sweep.py"))
