"""How a sweep ranks."""

import modules
from records import diverged, of_variants

script = modules.load("scripts/sweep.py")


def test_combinations_are_ranked_by_their_means_and_diverged_ones_come_last(capsys):
    finals = {"l2=1.0": [0.98] * 3, "l2=0.1": [0.99, 0.98, 0.97, 0.99], "l2=0.2": [0.9, 0.8]}
    rows = script.ranking([diverged("l2=9.0", 0), *of_variants(finals)])
    assert [row[:4] for row in rows] == [
        ["l2=0.1", 4, 0, 98.25],
        ["l2=1.0", 3, 0, 98.0],
        ["l2=0.2", 2, 0, 85.0],
        ["l2=9.0", 1, 1, ""],
    ]
    low, high = rows[0][4:]
    assert (low + high) / 2 == 98.25 and 1.5 < 98.25 - low < 1.53  # 3.182 standard errors
    assert rows[1][4:] == ["", ""]  # equal accuracies have no interval
    assert rows[2][4:] == [80.0, 90.0]  # the lowest and the highest
    script.show(rows, "train[-10000:]")
    _, first, equal, two, lost = capsys.readouterr().out.splitlines()
    assert first.startswith("98.250 % (96.7") and equal == "98.000 %  l2=1.0"
    assert two == "85.000 % (80.000 to 90.000)  l2=0.2" and lost == "diverged  l2=9.0"
