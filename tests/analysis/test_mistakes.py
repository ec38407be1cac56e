"""The images and classes that several runs get wrong, by hand."""

import numpy as np
from records import make_record

from jax_mnist.analysis import mistakes


def test_the_hardest_images_are_those_with_most_votes():
    records = [make_record(mistakes=m, seed=m) for m in (1, 2, 3)]  # 0; 0, 39; 0, 20, 39
    hardest = mistakes.hardest(records, 2)
    assert [(image.position, image.votes) for image in hardest] == [(0, 3), (39, 2)]
    assert [(image.label, image.prediction) for image in hardest] == [(0, 2), (9, 1)]
    np.testing.assert_array_equal(hardest[0].image, records[0]["mistakes"]["images"][0])
    assert len(mistakes.hardest(records, 25)) == 3
    assert mistakes.hardest([make_record(mistakes=0)], 25) == []


def test_confusions_count_both_ways_for_a_mean_run():
    record = make_record(mistakes=40)  # every image of class c is called c + 2
    other = make_record(mistakes=0)
    found = mistakes.confusions([record, other])
    assert len(found) == 10
    assert all(pair.both == 2 for pair in found)
    assert found[0] == ((0, 2), 2, 2, 0)
    assert ((0, 8), 2, 0, 2) in found
    assert mistakes.confusions([other]) == []
