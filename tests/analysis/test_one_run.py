"""Mistakes, confusions and summaries, against cases worked out by hand."""

import numpy as np
import pytest
from records import diverged, make_record

from jax_mnist.analysis import run as one_run
from jax_mnist.runs.record import rank_mistakes


def hand_made():
    """Six images of three classes; images 1, 2, 4 and 5 are wrong."""
    record = make_record(accuracies=(0.25, 0.5, 0.5, 1 / 3))
    record["label_names"] = ["a", "b", "c"]
    record["predictions"] = {
        "label": np.array([0, 0, 1, 2, 2, 1], np.int32),
        "prediction": np.array([0, 1, 2, 2, 1, 2], np.int32),
        "probabilities": np.array(
            [
                [0.9, 0.1, 0.0],
                [0.25, 0.5, 0.25],  # wrong, 0.5
                [0.0, 0.25, 0.75],  # wrong, 0.75
                [0.0, 0.0, 1.0],
                [0.0, 1.0, 0.0],  # wrong, 1.0
                [0.0, 0.25, 0.75],  # wrong, 0.75 again
            ],
            np.float32,
        ),
    }
    images = np.stack([np.full((28, 28), value, np.uint8) for value in (11, 12, 14, 15)])
    record["mistakes"] = {"index": np.array([1, 2, 4, 5], np.int32), "images": images}
    return record


def test_mistakes_come_surest_first():
    found = [
        (m.image[0, 0], m.label, m.prediction, m.probability, m.position)
        for m in rank_mistakes(hand_made(), 25)
    ]
    assert found == [
        (14, 2, 1, 1.0, 4),
        (12, 1, 2, 0.75, 2),  # equal ones in the order of the data
        (15, 1, 2, 0.75, 5),
        (11, 0, 1, 0.5, 1),
    ]


def test_equally_sure_mistakes_stay_in_the_order_of_the_data():
    record = make_record(examples=200, mistakes=100)
    record["predictions"]["probabilities"][:] = 0.5
    record["predictions"]["probabilities"][100:] = 0.75
    positions = record["mistakes"]["index"].tolist()
    expected = [p for p in positions if p >= 100] + [p for p in positions if p < 100]
    assert [m.position for m in rank_mistakes(record, 100)] == expected


@pytest.mark.parametrize("count", [0, 1, 3, 4, 25])
def test_no_more_mistakes_than_asked_for(count):
    positions = [mistake.position for mistake in rank_mistakes(hand_made(), count)]
    assert positions == [4, 2, 5, 1][:count]


def test_a_probability_that_is_no_number_comes_last():
    record = hand_made()
    record["predictions"]["probabilities"][4] = np.nan
    assert [m.position for m in rank_mistakes(record, 25)] == [2, 5, 1, 4]


def test_a_negative_count_is_an_error():
    with pytest.raises(ValueError, match="count must not be negative, it is -1"):
        rank_mistakes(hand_made(), -1)


def test_confusion_has_true_classes_in_rows():
    expected = [
        [1, 1, 0],  # a: once a, once b
        [0, 0, 2],  # b: twice c
        [0, 1, 1],  # c: once b, once c
    ]
    found = one_run.confusion_matrix(hand_made())
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_a_class_that_never_occurs_keeps_its_place():
    record = hand_made()
    record["label_names"] = ["a", "b", "c", "d"]
    found = one_run.confusion_matrix(record)
    assert found.shape == (4, 4)
    assert found[3].sum() == found[:, 3].sum() == 0


def test_summary():
    assert one_run.summary(hand_made()) == one_run.Summary(
        final_accuracy=1 / 3,
        best_accuracy=0.5,
        best_epoch=2,  # the first of the two
    )


def test_without_mistakes():
    record = make_record(mistakes=0, accuracies=(1.0,))
    assert rank_mistakes(record, 25) == []
    assert one_run.confusion_matrix(record).tolist() == np.diag([4] * 10).tolist()
    assert one_run.summary(record) == (1.0, 1.0, 1)


def test_measures_of_a_run():
    record = make_record(accuracies=(0.5, 0.9, 0.8, 0.85, 0.95, 0.9), mistakes=4)
    assert one_run.final_accuracy(record) == 90
    assert one_run.errors(record) == 4
    assert one_run.largest_drop(record) == pytest.approx(10)
    assert one_run.spread(record) == pytest.approx(100 * np.std([0.9, 0.8, 0.85, 0.95, 0.9]))
    assert one_run.seconds(record) == 6 * 12.5
    assert one_run.largest_drop(make_record(accuracies=(0.8, 0.9))) == 0
    assert one_run.largest_drop(make_record(accuracies=(0.8,))) == 0
    assert f"{one_run.largest_drop(make_record(accuracies=(0.8, 0.8)))}" == "0.0"  # and not -0.0


def test_a_run_that_diverged_counts_as_a_collapse():
    record = diverged("l2", 0)
    assert one_run.final_accuracy(record) == pytest.approx(9.8)
    assert one_run.largest_drop(record) == one_run.spread(record) == one_run.COLLAPSE == 90
