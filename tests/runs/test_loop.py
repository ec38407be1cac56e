"""The training loop by itself: nothing here touches a run's folder."""

import dataclasses
import operator

import chex
import jax
import numpy as np
import pytest
from rounding import Rounded, assert_close
from tiny import config, copy_of

from jax_mnist.runs import loop
from jax_mnist.runs.folder import Run


def build(*fields, **common):
    return loop.build([Run("", config(**common, **own), None) for own in fields])


def last_of(job, progress):
    *_, last = loop.advance(job, progress)
    return last


def assert_same(progress, expected, **tolerance):
    """That two trainings ended alike, but for their times."""
    chex.assert_trees_all_close(
        *[
            (p.step, p.partial, p.state.params, [{**e, "seconds": 0} for e in p.epochs])
            for p in (progress, expected)
        ],
        **tolerance or {"rtol": 1e-6},
    )


def test_progress_comes_after_every_call_and_epochs_when_they_end(three):
    job, progresses = three
    assert (job.steps_per_epoch, job.chunk) == (4, 2)
    assert [(p.step, len(p.epochs)) for p in progresses] == [(0, 0), (2, 0), (4, 1), (6, 1), (8, 2)]
    assert [p.partial.loss.shape for p in progresses] == [(3, n) for n in (0, 2, 4, 2, 4)]
    assert [(p.seconds > 0).all() for p in progresses] == [False, True, False, True, False]


def test_training_resumes_from_any_progress_to_the_same_result(three):
    job, progresses = three
    for progress in progresses[1:4]:
        assert_same(last_of(job, copy_of(progress)), progresses[-1])


def test_longer_calls_give_the_same_result(three):
    job, start = build({}, {"seed": 1}, {"l2": 1e30})
    assert job.chunk == 4
    assert_same(last_of(job, start), three[1][-1])


def test_each_replica_is_the_run_of_its_own_seed(three, monkeypatch):
    monkeypatch.setattr(loop, "MAX_STEPS_PER_CALL", {"cpu": 2})
    alone, together = last_of(*build({"seed": 1})), three[1][-1]
    np.testing.assert_array_equal(alone.partial.loss[0], together.partial.loss[1])
    for key in alone.epochs[-1].keys() - {"seconds"}:
        assert alone.epochs[-1][key][0] == together.epochs[-1][key][1], key
    assert not np.array_equal(*together.partial.loss[:2])


# Those that draw for each example, mix neighbours, or need the gradient of the whole batch.
REGULARIZERS = {"dropout": 0.2, "mixup": 0.3, "sam": 0.05}


@pytest.mark.parametrize("shape", [(2, 2), (8, 1), (1, 8)])
@pytest.mark.parametrize("norm", ["ghost", "batch"])
def test_replicas_and_batches_spread_over_devices_give_the_run_of_one(norm, shape, thorough):
    if (norm, shape) != ("ghost", (2, 2)) and not thorough:
        pytest.skip("a mesh of both axes shows it: --thorough")
    common = {"norm": norm, "epochs": 1, **REGULARIZERS}
    seeds = [{"seed": seed} for seed in range(3)]
    expected = last_of(*build(*seeds, **common))
    spread = {"replica_devices": shape[0], "data_devices": shape[1]}
    job, start = build(*seeds, **common, **spread)
    assert tuple(job.mesh.shape.values()) == shape
    last = last_of(job, start)
    # Spare replicas fill the mesh.
    params = jax.tree.map(operator.itemgetter(slice(3)), jax.device_get(last.state.params))
    state = last.state.replace(params=params)
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if shape[1] > 1 else {"rtol": 1e-6}
    assert_same(dataclasses.replace(last, state=state), expected, **tolerance)


def test_a_run_that_diverges_ends_and_the_others_go_on(three):
    last = three[1][-1]
    assert last.active.tolist() == [True, True, False]
    assert [len(last.epochs_of(number)) for number in range(3)] == [2, 2, 1]
    assert not np.isfinite(last.epochs_of(2)[0]["train_loss"])


def test_training_ends_when_no_run_is_left(three):
    job, (start, *_) = three
    params = jax.tree.map(lambda leaf: leaf * np.nan, start.state.params)
    broken = copy_of(dataclasses.replace(start, state=start.state.replace(params=params)))
    (only,) = loop.advance(job, broken)
    assert only.step == 2 and not only.active.any()
    assert len(only.epochs) == 1 and len(only.epochs_of(0)) == 1


def test_metrics_are_those_of_the_epochs(three):
    last = three[1][-1]
    # One cycle over 8 steps: 30 % of the way up by step 2; each epoch's last step is recorded.
    for epoch, metrics in enumerate(last.epochs):
        share = ((epoch + 1) * 4 - 1 - 2) / 6
        low, high = 0.2 / 250_000, 0.2
        expected = low + (high - low) * (1 + np.cos(np.pi * share)) / 2
        np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-4)
        assert (metrics["seconds"] > 0).all()
    assert_close(last.epochs[-1]["train_loss"][:2], Rounded(last.partial.loss[:2]).mean(1))
