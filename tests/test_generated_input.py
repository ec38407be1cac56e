"""Configs and command lines by chance: each trains, or is refused in one line."""

import json
import operator
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mnist import analysis, config, datasets, history, runner

ROOT = Path(__file__).parent.parent

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
    "stats_update": st.sampled_from(["mean", "sequential"]),
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
        generated.update(epochs=1, mesh="data=1", **fields)
        try:
            (record,) = runner.train(generated, workdir)
        except (config.ConfigError, datasets.DatasetError) as error:
            assert str(error).isprintable() and 20 < len(str(error)) < 400
            assert not workdir.exists()
            return False
        loss = record["metrics"]["train_loss"]
        assert loss.shape == (1,)
        assert np.isfinite(loss).all() != analysis.has_diverged(record)
        assert history.load(workdir / "history.pkl")["config"] == generated.to_dict()
        assert (workdir / "variables.msgpack").exists() == np.isfinite(loss).all()
        return True


def test_a_generated_config_trains_or_is_refused_in_one_line(thorough):
    trained = []

    @settings(max_examples=500 if thorough else 12, deadline=None, derandomize=True, database=None)
    @given(CONFIGS)
    def check(fields):
        trained.append(train_or_refuse(fields))
        if len(trained) % 20 == 0:
            jax.clear_caches()  # a process may map only so many programs

    check()
    assert {True, False} == set(trained)


# Runs the script once for each of the command lines on standard input, in a process of its own,
# without importing everything again.
MANY = """
import json, os, runpy, sys, tempfile
from jax_mnist import analysis, runner
script = sys.argv[1]
sys.path.insert(0, os.path.dirname(script))
for line in sys.stdin:
    with tempfile.TemporaryFile() as out:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
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
        out.seek(0)
        print(json.dumps([code, out.read().decode()]), flush=True)
"""

FLAGS = (
    *("--config", "--workdir", "--fresh", "--checkpoint_every", "--checkpoints_kept", "--", ""),
    *(f"--config.{field}" for field in config.base()),
    *("--config.", "--config.epochs.x", "--config.l2.", "--no_such_flag", "--config.no_such_field"),
)
WORDS = st.sampled_from(["", "nan", "-inf", "1e999", "-1", "0", "True", "()", "None", "/", "\x00"])
VALUES = WORDS | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
ARGUMENTS = st.lists(
    st.builds("{}={}".format, st.sampled_from(FLAGS), VALUES) | st.sampled_from(FLAGS) | VALUES,
    max_size=3,
)


def test_a_generated_command_line_is_refused_in_one_line(thorough, tmp_path):
    command = [sys.executable, "-c", MANY, ROOT / "scripts" / "train.py"]
    good = ["--config", str(ROOT / "configs" / "gbn.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:

        @settings(max_examples=500 if thorough else 50, deadline=None, database=None)
        @given(ARGUMENTS)
        def check(arguments):
            line = [*good, "--config.learning_rate=nan", *arguments, "--config.l1=-1"]
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            code, said = json.loads(process.stdout.readline())
            if {"--help", "-h", "-?"} & set(arguments):
                return
            assert code == 2, said
            assert len(said.splitlines()) == 1, said
            assert said.startswith("train.py: ")
            assert not list(tmp_path.iterdir())

        check()
