"""Figures are drawn for real, from records made by hand, and looked at as far as a test can."""

import itertools
import os
import pathlib
import pickle
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.text import Text
from PIL import Image
from records import diverged, make_record

from jax_mnist.analysis import figures, table
from jax_mnist.analysis.study import Study
from jax_mnist.runs.record import rank_mistakes, save_record

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("bn", "l1", "l2", "l1_l2", "gbn", "gbn_l1", "gbn_l2", "gbn_l1_l2")
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def eight(epochs=20, seeds=1):
    """Eight variants that start at 90 % and end within a quarter of a percent."""
    way = np.linspace(0, 1, epochs) if epochs > 1 else np.ones(1)
    return [
        make_record(
            name,
            seed,
            accuracies=0.9 + (0.093 + 3e-4 * number + 1e-4 * seed) * way**0.3,
            losses=0.3 * 0.07**way * (1.01 - 1e-3 * number) * 1.01**seed,
            examples=10_000,
        )
        for number, name in enumerate(NAMES)
        for seed in range(seeds)
    ]


def hardest(**fields):
    return figures.hardest(
        Study([make_record(mistakes=40, seed=seed, **fields) for seed in range(3)])
    )


class Recorder(RendererAgg):
    """Draws, and remembers the numbers of the texts that it was told to draw."""

    def open_group(self, s, gid=None):
        if s == "text":
            self.drawn = [*getattr(self, "drawn", []), gid]


def texts(figure):
    """Draws a figure and returns its texts with their boxes in pixels."""
    figure.draw_without_rendering()  # makes the ticks, and the layout
    figure.set_layout_engine("none")  # which stays as it is
    every = figure.findobj(Text)
    for number, text in enumerate(every):
        text.set_gid(number)
    renderer = Recorder(*figure.bbox.size, figure.dpi)
    figure.draw(renderer)
    return [(every[number], every[number].get_window_extent(renderer)) for number in renderer.drawn]


FIGURES = {
    "accuracy of eight": lambda: figures.curves(eight(), "accuracy", "10,000 test images"),
    "loss of ten seeds": lambda: figures.curves(eight(seeds=10), "loss"),
    "1 epoch": lambda: figures.curves(eight(1), "loss"),
    "long names": lambda: figures.curves(
        [make_record(f"{i}_" + "mno" * 10) for i in "abc"], "loss"
    ),
    "broken runs": lambda: figures.curves(
        [make_record(losses=[0.2, np.inf, np.nan]), make_record("bn", losses=[0.2, 0.0, -1.0])],
        "loss",
    ),
    "only a broken run": lambda: figures.curves([make_record(losses=[np.nan] * 3)], "loss"),
    "all right": lambda: figures.curves([make_record(accuracies=(0.1, 1.0, 1.0))], "accuracy"),
    "differences": lambda: figures.differences(
        table.differences(table.by_seed(table.of_records(eight(seeds=3))), "bn"), "bn"
    ),
    "hardest digits": lambda: hardest(),
    "hardest clothes": lambda: hardest(label_names=FASHION),
    "mistaken clothes": lambda: figures.misclassified(
        make_record(mistakes=40, label_names=FASHION)
    ),
    "one mistake": lambda: figures.misclassified(make_record(mistakes=1)),
    "no mistake": lambda: figures.misclassified(make_record(mistakes=0)),
    "confusion": lambda: figures.confusion([make_record(mistakes=30)]),
    "confusion of clothes": lambda: figures.confusion([make_record(label_names=FASHION)]),
    "confusion of many": lambda: figures.confusion(
        [make_record(seed=seed, examples=60_000, mistakes=30_000) for seed in range(2)]
    ),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.filterwarnings("error")
def test_texts_are_readable_and_do_not_overlap(name):
    figure = FIGURES[name]()
    assert figure.get_figwidth() == 8
    figure.set_dpi(100)
    found = texts(figure)
    assert len(found) >= 2 - (name == "no mistake")
    for text, box in found:
        assert text.get_fontsize() >= 9, text  # 12 pixels in a picture 800 pixels wide
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for (one, a), (other, b) in itertools.combinations(found, 2):
        if one.get_rotation() % 90 == 0 == other.get_rotation() % 90:  # else a box is too large
            width = min(a.x1, b.x1) - max(a.x0, b.x0)
            height = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert width <= 0 or height <= 0, (one, other)


def test_files_are_sharp_small_and_the_same_each_time(tmp_path):
    for name in ("1 epoch", "one mistake"):
        figures.save(FIGURES[name](), tmp_path / "deep" / "picture.png")
        assert os.listdir(tmp_path / "deep") == ["picture.png"]
        assert (tmp_path / "deep" / "picture.png").read_bytes() == figures.png(FIGURES[name]())
        with Image.open(tmp_path / "deep" / "picture.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[1] == 1600 and 300 < pixels.shape[0] < 2200
        assert (pixels[0] == 255).all() and (pixels[:, -1] == 255).all()  # a white margin
        assert pixels.min() < 50
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(OSError, match="cannot be written: Not a directory; nothing was changed"):
        figures.save(FIGURES["no mistake"](), tmp_path / "file" / "picture.png")


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize(
    ("seeds", "lines", "bands", "named"),
    [(1, 2, 0, []), (5, 7, 0, ["single seeds"]), (6, 2, 1, ["95 % interval"])],
)
def test_a_panel_shows_a_variant_its_seeds_or_their_interval_and_the_others(
    seeds, lines, bands, named
):
    figure = figures.curves([r for r in eight(seeds=seeds) if r["name"] in ("bn", "l1")], "loss")
    for axes, name in zip(figure.axes, ("bn", "l1"), strict=True):
        assert (len(axes.get_lines()), len(axes.collections)) == (lines, bands)
        assert axes.get_title().startswith(f"{name}\n")
    mean, *_, grey = figure.axes[1].get_lines()
    expected = np.mean([r["metrics"]["validation_loss"] for r in eight(seeds=seeds)[:seeds]], 0)
    np.testing.assert_allclose(grey.get_ydata(), expected)
    assert mean.get_xdata()[0] == 1 and mean.get_color() == "#0072B2"
    mean_name = "mean over seeds, with its last value"
    assert legend_of(figure) == [mean_name, *named, "means of the others"]
    alone = figures.curves(eight(seeds=seeds)[:seeds], "loss")
    assert "means of the others" not in legend_of(alone) and len(alone.axes) == 1


def test_a_seed_that_diverged_is_left_out_and_a_second_run_of_a_seed_is_told_apart():
    records = [make_record("gbn", s, (0.9, 0.98 + s / 100), examples=1000) for s in (0, 1)]
    records += [make_record("_$x^{ {0} %s \\a$", losses=[0.2, np.inf, np.nan])]
    figure = figures.curves(records, "loss")  # a broken run does not hide the others
    assert figure.axes[1].get_title() == "_$x^{ {0} %s \\a$\nseed 0: nan"
    assert any(text.get_text().startswith("_$x^{ {0} %s \\a$") for text, _ in texts(figure))
    low, high = figure.axes[0].get_ylim()
    assert 0.03 < low < 0.05 and 0.5 < high < 0.6
    (axes, _) = figures.curves([*records, diverged("gbn", 2)], "accuracy").axes[:2]
    assert axes.get_title() == "gbn\n2 of 3 seeds: 98.500 %"
    titles = [axes.get_title() for axes in figures.curves(records[:2] * 2, "accuracy").axes]
    assert titles == ["gbn\n98.500 %", "gbn #2\n98.500 %"]


def height(axes, value):
    """Where a value of the y axis is: 0 at the lower end, 1 at the upper end."""
    return axes.transAxes.inverted().transform(axes.transData.transform((1, value)))[1]


def test_accuracies_near_99_are_told_apart_beside_a_first_epoch_at_90():
    figure = figures.curves(eight(), "accuracy")
    ends = []
    for axes in figure.axes:
        line = axes.get_lines()[0]
        heights = [height(axes, y) for y in line.get_ydata()]
        assert 0 < heights[0] < 0.15 and 0.8 < heights[-1] < 1
        assert heights == sorted(heights)  # better is higher
        ends.append(heights[-1])
    assert ends == sorted(ends) and ends[-1] - ends[0] > 0.1  # a quarter of a percent
    FigureCanvasAgg(figure).draw()
    ticks = figure.axes[0].yaxis.get_major_ticks()
    shown = {float(tick.label1.get_text()): tick.get_loc() for tick in ticks}
    assert {95, 98, 99} <= set(shown)
    # The curve of an accuracy passes exactly where the axis has its label.
    record = make_record(accuracies=(0.95, 0.99), examples=10_000)
    (line,) = figures.curves([record], "accuracy").axes[0].get_lines()
    assert line.get_ydata() == pytest.approx([shown[95], shown[99]])


@pytest.mark.parametrize(
    "accuracies", [(0.99,), (0.99, 0.991), (0.9, 0.99), (0.1, 0.999), (0.9, *[0.99] * 150)]
)
def test_the_axes_have_a_few_ticks_whatever_their_range(accuracies):
    (axes,) = figures.curves([make_record(accuracies=accuracies, examples=10_000)], "accuracy").axes
    shown = [tick for tick in axes.get_yticks() if 0 <= height(axes, tick) <= 1]
    assert 3 <= len(shown) <= 12 and len(axes.yaxis.get_minorticklocs()) == 0
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 1 <= len(shown) <= 6 and all(tick == round(tick) for tick in shown)


def test_misclassified_images_have_their_labels_the_surest_first():
    # Of 40 images 30 are wrong; image j has probability 0.5 + j / 1024, so the last come first.
    record = make_record(mistakes=30, seed=4)
    figure = figures.misclassified(record)
    assert len(figure.axes) == 25 and not any(axes.axison for axes in figure.axes)
    positions = record["mistakes"]["index"][::-1][:25]
    for rank, (panel, position) in enumerate(zip(figure.axes, positions, strict=True)):
        percent = round(50 + 100 * position / 1024)
        true, said = position % 10, (position + 2) % 10
        assert panel.get_title() == f"true {true}\nsaid {said} ({percent} %)"
        (image,) = panel.get_images()
        assert (image.get_array() == 29 - rank).all() and image.get_clim() == (0, 255)
    assert figure.get_suptitle() == "gbn, seed 4: the 25 surest of 30 mistakes on 40 images"
    seven = figures.misclassified(make_record(mistakes=7))
    assert seven.get_suptitle() == "gbn, seed 0: 7 mistakes on 40 images"
    assert FIGURES["no mistake"]().get_suptitle() == "gbn, seed 0: no mistake on 40 images"


def test_equally_sure_mistakes_stay_in_the_order_of_the_data_and_nan_comes_last():
    record = make_record(examples=200, mistakes=100)
    record["predictions"]["probabilities"][:] = 0.5
    record["predictions"]["probabilities"][100:] = 0.75
    positions = record["mistakes"]["index"].tolist()
    record["predictions"]["probabilities"][positions[3]] = np.nan
    expected = [p for p in positions if p >= 100] + [p for p in positions if p < 100]
    expected.append(expected.pop(expected.index(positions[3])))
    assert [m.position for m in rank_mistakes(record, 100)] == expected


def test_a_confusion_matrix_shows_counts_colours_errors_alone_and_says_each_accuracy():
    record = make_record(examples=10_000, mistakes=0)
    record["predictions"]["prediction"][[3, 13, 23, 33]] = 5  # four threes said to be fives
    record["predictions"]["prediction"][7] = 1  # one seven said to be a one
    record["mistakes"]["index"] = np.array([3, 7, 13, 23, 33], np.int32)
    figure = figures.confusion([record])
    (axes,) = figure.axes
    shown = {tuple(reversed(text.get_position())): text.get_text() for text in axes.texts}
    expected = {(i, i): "1,000" for i in range(10)}
    assert shown == expected | {(3, 3): "996", (3, 5): "4", (7, 7): "999", (7, 1): "1"}
    assert axes.get_title() == "gbn, seed 0: 5 mistakes on 10,000 images"
    (right,) = axes.child_axes
    of_class = [label.get_text() for label in right.get_yticklabels()]
    assert (of_class[0], of_class[3], of_class[7]) == ("100.00 %", "99.60 %", "99.90 %")
    (image,) = axes.get_images()
    shade = image.get_array()
    assert shade.mask.tolist() == np.eye(10, dtype=bool).tolist()  # no colour on the diagonal
    assert shade[3, 5] > shade[7, 1] > shade[0, 1] == 0
    # Of several seeds the mean is shown.
    (axes,) = figures.confusion([record, make_record(seed=1, examples=10_000, mistakes=0)]).axes
    assert {"2.0", "0.5", "998"} <= {text.get_text() for text in axes.texts}
    assert axes.get_title() == "gbn, mean of 2 seeds: 2.5 mistakes on 10,000 images"


def test_mistakes_are_drawn_of_a_single_variant_or_of_all_with_safe_names():
    def names(records, every=False):
        curves = ["validation_accuracy.png", "validation_loss.png"]
        found = [name for name, _ in figures.of_runs(records, every)]
        assert found[:2] == curves
        return found[2:]

    assert names([make_record("../a b")]) == ["confusion_.._a_b.png", "misclassified_.._a_b.png"]
    two = [make_record("é", seed) for seed in (0, 3)]
    of_two = ["confusion_é.png", "misclassified_é_seed_0.png", "misclassified_é_seed_3.png"]
    assert names(two) == of_two
    several = [make_record("a b"), make_record("a/b"), make_record("a/b")]
    assert names(several) == []
    of_all = [f"{kind}_{n}_a_b" for n in (1, 2) for kind in ("confusion", "misclassified")]
    assert names(several, every=True) == [
        *(f"{name}.png" for name in of_all), "confusion_3_a_b_2.png", "misclassified_3_a_b_2.png"
    ]  # fmt: skip


def run(*command):
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_drawing_leaves_global_settings_alone():
    before = dict(matplotlib.rcParams)
    for draw in (FIGURES["1 epoch"], FIGURES["confusion"]):
        draw()
    assert dict(matplotlib.rcParams) == before
    names = "{'jax', 'matplotlib.pyplot'}"
    code = f"import jax_mnist.analysis.report, sys; print({names} & set(sys.modules))"
    process = run(sys.executable, "-c", code)
    assert process.stdout == "set()\n", process.stderr


def test_the_script_draws_a_comparison_and_of_a_single_run_its_mistakes(tmp_path):
    for name in ("bn", "gbn"):
        save_record(tmp_path / "runs" / name / "history.pkl", make_record(name, mistakes=2))
    paths = (tmp_path / "runs" / "bn" / "history.pkl", tmp_path / "runs" / "gbn")  # file, folder
    curves = ["validation_accuracy.png", "validation_loss.png"]
    of_one = [*curves, "confusion_gbn.png", "misclassified_gbn.png"]
    for runs, expected in ((paths, curves), (paths[1:], of_one)):
        out = tmp_path / "new" / str(len(runs))
        process = run(sys.executable, "scripts/plot.py", *runs, "--out", out)
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout.splitlines() == [str(out / name) for name in expected]
        assert sorted(os.listdir(out)) == sorted(expected)


def test_the_script_refuses_bad_files_in_one_line(tmp_path):
    good, bad = tmp_path / "good.pkl", tmp_path / "bad.pkl"
    save_record(good, make_record())
    bad.write_bytes(pickle.dumps(eval))
    process = run(sys.executable, "scripts/plot.py", good, bad, "--out", tmp_path / "out")
    assert (process.returncode, process.stdout) == (2, "")
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"plot.py: {str(bad)!r}: ") and "not a record" in line
    assert not (tmp_path / "out").exists()
