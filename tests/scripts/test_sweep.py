"""What a sweep prints."""

import modules
from records import diverged, of_variants

from jax_mnist.analysis import table

script = modules.load("scripts/sweep.py")


def test_combinations_are_printed_with_their_intervals_and_those_that_diverged_last(capsys):
    finals = {"l2=1.0": [0.98] * 3, "l2=0.1": [0.99, 0.98, 0.97, 0.99], "l2=0.2": [0.9, 0.8]}
    runs = table.of_records([diverged("l2=9.0", 0), *of_variants(finals)])
    script.show(table.ranking(runs), "train[-10000:]")
    assert capsys.readouterr().out.splitlines() == [
        "mean accuracy (95 % interval) on train[-10000:], 4 seeds each",
        "98.250 % (96.727 to 99.773)  l2=0.1",
        "98.000 %  l2=1.0",
        "85.000 % (80.000 to 90.000)  l2=0.2",
        "diverged  l2=9.0",
    ]
