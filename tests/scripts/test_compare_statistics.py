"""The comparison of the rules for running statistics, with few images and the dense network."""

import sys

import modules
import pytest


@pytest.fixture(scope="module")
def comparison():
    return modules.load("scripts/compare_statistics.py")


def test_it_evaluates_one_network_with_the_statistics_of_every_rule(
    comparison, monkeypatch, capsys, quickly_compiled
):
    monkeypatch.setattr(comparison, "SPLITS", ("train[:2048]", "train[-500:]"))
    monkeypatch.setattr(comparison, "NETWORKS", {"dense": comparison.Dense})
    arguments = ["--epochs=8", "--seeds=1", "--sizes", "4"]
    monkeypatch.setattr(sys, "argv", ["compare_statistics.py", *arguments])
    comparison.main()
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.startswith("| network | ghost batch | mean: loss | error, % | pooled: loss |")
    name, size, *numbers = row.strip("| ").split(" | ")
    assert (name, size) == ("dense", "4")
    losses, errors = numbers[::2], numbers[1::2]
    assert len(set(losses)) == 3  # each rule has statistics of its own
    assert all(0 < float(error) < 25 for error in errors)  # and all of them have learnt


def test_a_bad_argument_of_the_comparison_ends_in_one_line(comparison, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_statistics.py", "--seeds=x"])
    with pytest.raises(SystemExit) as end:
        comparison.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
