"""The training loop by itself: nothing here touches a run's folder."""

import dataclasses
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from rounding import Rounded, assert_close
from tiny import config, kept

from jax_mnist.config import ConfigError
from jax_mnist.runs import loop
from jax_mnist.runs.folder import Run

NOWHERE = Path("/proc/nowhere")  # where nothing can be written


def build(*fields, **common):
    runs = [Run(f"{i}", config(**common, **own), NOWHERE) for i, own in enumerate(fields)]
    return loop.build(runs)


@pytest.fixture(scope="module")
def whole():
    job, progress = build({}, {"seed": 1}, {"l2": 1e30})
    return job, kept(progress), [kept(p) for p in loop.training(job, progress)]


@pytest.fixture
def in_pairs(monkeypatch):
    monkeypatch.setattr(
        loop, "MAX_STEPS_PER_CALL", {"cpu": 6}
    )  # of three replicas: two steps of four


def assert_same(progress, expected):
    for part in ("step", "partial"):
        chex.assert_trees_all_equal(getattr(progress, part), getattr(expected, part))
    chex.assert_trees_all_close(progress.state.params, expected.state.params, rtol=1e-6)
    for epoch, other in zip(progress.epochs, expected.epochs, strict=True):
        for key in epoch.keys() - {"seconds"}:
            np.testing.assert_allclose(epoch[key], other[key], rtol=1e-6)


def test_progress_comes_after_every_call_and_epochs_when_they_end(whole):
    job, start, seen = whole
    assert (job.steps_per_epoch, job.chunk) == (4, 4)
    assert start.step == 0 and start.epochs == () and start.active.all()
    assert [(p.step, len(p.epochs)) for p in seen] == [(4, 1), (8, 2)]
    assert seen[0].partial.loss.shape == (3, 4)


def test_shorter_calls_give_the_same_progress(whole, in_pairs):
    job, start = build({}, {"seed": 1}, {"l2": 1e30})
    assert job.chunk == 2
    seen = list(loop.training(job, start))
    assert [(p.step, len(p.epochs)) for p in seen] == [(2, 0), (4, 1), (6, 1), (8, 2)]
    assert [p.partial.loss.shape[1] for p in seen] == [2, 4, 2, 4]
    assert (seen[0].seconds > 0).all() and (seen[1].seconds == 0).all()
    assert_same(seen[-1], whole[2][-1])


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_training_resumes_from_any_progress(whole, in_pairs, stopped_after):
    job, start = build({}, {"seed": 1}, {"l2": 1e30})
    seen = list(zip(range(stopped_after), loop.training(job, start), strict=False))
    *_, last = loop.training(job, seen[-1][1])
    assert_same(last, whole[2][-1])


def test_a_run_that_diverges_ends_and_the_others_go_on(whole):
    _, _, seen = whole
    for progress in seen:
        assert progress.active.tolist() == [True, True, False]
    last = seen[-1]
    assert [len(last.epochs_of(number)) for number in range(3)] == [2, 2, 1]
    assert not np.isfinite(last.epochs_of(2)[0]["train_loss"])


def test_training_ends_when_no_run_is_left(whole):
    job, start, _ = whole
    params = jax.tree.map(lambda leaf: leaf * np.nan, start.state.params)
    broken = kept(dataclasses.replace(start, state=start.state.replace(params=params)))
    (only,) = loop.training(job, broken)
    assert only.step == 4 and not only.active.any()
    assert len(only.epochs) == 1 and len(only.epochs_of(0)) == 1


def test_an_overflow_in_the_very_last_update_counts_as_divergence(whole):
    job, _, seen = whole
    params = jax.tree.map(lambda leaf: leaf * np.nan, seen[-1].state.params)
    broken = seen[-1].state.replace(params=params, average=None)
    evaluations = loop.evaluate(job, broken)
    last = dataclasses.replace(seen[-1], epochs=seen[-1].epochs[:1])
    progress = loop._after_epoch(last, evaluations)
    assert last.active.tolist() == [True, True, False]
    assert np.isfinite(progress.epochs[-1]["train_loss"][:2]).all()
    assert not progress.active.any()


def test_each_replica_is_the_run_of_its_own_seed(whole):
    for number in range(2):
        job, start = build({"seed": number})
        *_, alone = loop.training(job, start)
        together = whole[2][-1]
        np.testing.assert_array_equal(alone.partial.loss[0], together.partial.loss[number])
        for key in alone.epochs[-1].keys() - {"seconds"}:
            assert alone.epochs[-1][key][0] == together.epochs[-1][key][number], key
    assert not np.array_equal(*whole[2][-1].partial.loss[:2])


def test_metrics_are_those_of_the_epochs(whole):
    last = whole[2][-1]
    # One cycle over 8 steps: 30 % of the way up by step 2; each epoch's last step is recorded.
    for epoch, metrics in enumerate(last.epochs):
        share = ((epoch + 1) * 4 - 1 - 2) / 6
        low, high = 0.2 / 250_000, 0.2
        expected = low + (high - low) * (1 + np.cos(np.pi * share)) / 2
        np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-4)
        assert (metrics["seconds"] > 0).all()
    assert_close(last.epochs[-1]["train_loss"][:2], Rounded(last.partial.loss[:2]).mean(1))


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(ConfigError, match="must be at most the 300 training examples of"):
        build({}, batch_size=301)
