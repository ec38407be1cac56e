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

from jax_mnist.analysis import claims, figures, table
from jax_mnist.analysis.study import Study
from jax_mnist.runs.record import rank_mistakes, save_record

ROOT = pathlib.Path(__file__).parents[2]
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
        for number, name in enumerate(claims.ORIGINAL)
        for seed in range(seeds)
    ]


def hardest(**fields):
    return figures.hardest(Study([make_record(mistakes=40, seed=s, **fields) for s in range(3)]))


def mistaken(mistakes, **fields):
    return figures.misclassified(make_record(mistakes=mistakes, **fields))


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
    "long names": lambda: figures.curves([make_record(i + "mno" * 10) for i in "abc"], "loss"),
    "broken runs": lambda: figures.curves(
        [make_record(losses=[0.2, *ends]) for ends in ((np.inf, np.nan), (0.0, -1.0))], "loss"
    ),
    "only a broken run": lambda: figures.curves([make_record(losses=[np.nan] * 3)], "loss"),
    "all right": lambda: figures.curves([make_record(accuracies=(0.1, 1.0, 1.0))], "accuracy"),
    "differences": lambda: figures.differences(
        table.differences(table.by_seed(table.of_records(eight(seeds=3))), "bn"), "bn"
    ),
    "hardest digits": lambda: hardest(),
    "hardest clothes": lambda: hardest(label_names=FASHION),
    "mistaken clothes": lambda: mistaken(40, label_names=FASHION),
    "one mistake": lambda: mistaken(1),
    "no mistake": lambda: mistaken(0),
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
    shown = texts(figure)
    assert len(shown) >= 2 - (name == "no mistake")
    for text, box in shown:
        assert text.get_fontsize() >= 9, text  # 12 pixels in a picture 800 pixels wide
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for (one, a), (other, b) in itertools.combinations(shown, 2):
        if one.get_rotation() % 90 == 0 == other.get_rotation() % 90:  # else a box is too large
            width = min(a.x1, b.x1) - max(a.x0, b.x0)
            height = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert width <= 0 or height <= 0, (one, other)


def test_files_are_sharp_small_and_the_same_each_time(tmp_path):
    file = tmp_path / "deep" / "picture.png"
    for name in ("1 epoch", "one mistake"):
        figures.save(FIGURES[name](), file)
        assert os.listdir(file.parent) == ["picture.png"]
        assert file.read_bytes() == figures.png(FIGURES[name]())
        pixels = np.asarray(Image.open(file).convert("RGB"))
        assert pixels.shape[1] == 1600 and 300 < pixels.shape[0] < 2200
        assert (pixels[0] == 255).all() and (pixels[:, -1] == 255).all()  # a white margin
        assert pixels.min() < 50
    with pytest.raises(OSError, match="cannot be written: Not a directory; nothing was changed"):
        figures.save(FIGURES["no mistake"](), file / "picture.png")


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize(
    ("seeds", "lines", "bands", "names"),
    [(1, 2, 0, []), (5, 7, 0, ["single seeds"]), (6, 2, 1, ["95 % interval"])],
)
def test_a_panel_shows_a_variant_its_seeds_or_their_interval_and_the_others(
    seeds, lines, bands, names
):
    records = eight(seeds=seeds)[: 2 * seeds]
    figure = figures.curves(records, "loss")
    for axes, name in zip(figure.axes, ("bn", "l1"), strict=True):
        assert (len(axes.get_lines()), len(axes.collections)) == (lines, bands)
        assert axes.get_title().startswith(f"{name}\n")
    mean, *_, grey = figure.axes[1].get_lines()
    expected = np.mean([r["metrics"]["validation_loss"] for r in records[:seeds]], axis=0)
    np.testing.assert_allclose(grey.get_ydata(), expected)
    assert mean.get_xdata()[0] == 1 and mean.get_color() == "#0072B2"
    mean_name = "mean over seeds, with its last value"
    assert legend_of(figure) == [mean_name, *names, "means of the others"]
    alone = figures.curves(records[:seeds], "loss")
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
    record = make_record(mistakes=30)
    figure = figures.misclassified(record)
    assert len(figure.axes) == 25 and not any(axes.axison for axes in figure.axes)
    positions = record["mistakes"]["index"][::-1][:25]
    for rank, (panel, position) in enumerate(zip(figure.axes, positions, strict=True)):
        percent = round(50 + 100 * position / 1024)
        true, said = position % 10, (position + 2) % 10
        assert panel.get_title() == f"true {true}\nsaid {said} ({percent} %)"
        (image,) = panel.get_images()
        assert (image.get_array() == 29 - rank).all() and image.get_clim() == (0, 255)
    titles = {30: "the 25 surest of 30 mistakes", 7: "7 mistakes", 0: "no mistake"}
    for mistakes, title in titles.items():
        assert mistaken(mistakes).get_suptitle() == f"gbn, seed 0: {title} on 40 images"


def test_equally_sure_mistakes_stay_in_the_order_of_the_data_and_nan_comes_last():
    record = make_record(examples=6, mistakes=6)
    record["predictions"]["probabilities"][:] = np.array([[0.5, np.nan, 0.5, 0.7, 0.5, 0.7]]).T
    assert [m.position for m in rank_mistakes(record, 9)] == [3, 5, 0, 2, 4, 1]


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
        files = [name.removesuffix(".png") for name, _ in figures.of_runs(records, every)]
        assert files[:2] == ["validation_accuracy", "validation_loss"]
        return files[2:]

    assert names([make_record("../a b")]) == ["confusion_.._a_b", "misclassified_.._a_b"]
    of_two = ["confusion_é", "misclassified_é_seed_0", "misclassified_é_seed_3"]
    assert names([make_record("é", seed) for seed in (0, 3)]) == of_two
    several = [make_record("a b"), make_record("a/b"), make_record("a/b")]
    assert names(several) == []
    of_all = [
        f"{k}_{n}" for n in ("1_a_b", "2_a_b", "3_a_b_2") for k in ("confusion", "misclassified")
    ]
    assert names(several, every=True) == of_all


def run(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_drawing_leaves_global_settings_alone():
    before = dict(matplotlib.rcParams)
    FIGURES["1 epoch"]()
    assert dict(matplotlib.rcParams) == before
    names = "{'jax', 'matplotlib.pyplot'}"
    code = f"import jax_mnist.analysis.report, sys; print({names} & set(sys.modules))"
    process = run("-c", code)
    assert process.stdout == "set()\n", process.stderr


def test_the_script_draws_a_comparison_and_of_a_single_run_its_mistakes(tmp_path):
    for name in ("bn", "gbn"):
        save_record(tmp_path / name / "history.pkl", make_record(name, mistakes=2))
    file, folder = tmp_path / "bn" / "history.pkl", tmp_path / "gbn"
    curves = ["validation_accuracy.png", "validation_loss.png"]
    of_one = [*curves, "confusion_gbn.png", "misclassified_gbn.png"]
    for paths, expected in (((file, folder), curves), ((folder,), of_one)):
        out = tmp_path / "new" / str(len(paths))
        process = run("scripts/plot.py", *paths, "--out", out)
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout.splitlines() == [str(out / name) for name in expected]
        assert sorted(os.listdir(out)) == sorted(expected)


def test_the_script_refuses_bad_files_in_one_line(tmp_path):
    good, bad = tmp_path / "good.pkl", tmp_path / "bad.pkl"
    save_record(good, make_record())
    bad.write_bytes(pickle.dumps(eval))
    process = run("scripts/plot.py", good, bad, "--out", tmp_path / "out")
    assert (process.returncode, process.stdout) == (2, "")
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"plot.py: {str(bad)!r}: ") and "not a record" in line
    assert not (tmp_path / "out").exists()
