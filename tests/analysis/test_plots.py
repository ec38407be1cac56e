"""Figures are drawn for real, from records made by hand, and looked at as far as a test can."""

import functools
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
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image
from records import diverged, make_record

from jax_mnist.analysis import drawing, mistakes, plots, statistics, study_plots
from jax_mnist.runs.record import save_record

accuracy = functools.partial(plots.curves, metric=drawing.ACCURACY)
loss = functools.partial(plots.curves, metric=drawing.LOSS)
ROOT = pathlib.Path(__file__).parents[2]
VARIANTS = {
    "bn": 0.9939,
    "l1": 0.9931,
    "l2": 0.9954,
    "l1_l2": 0.9947,
    "gbn": 0.9940,
    "gbn_l1": 0.9929,
    "gbn_l2": 0.9951,
    "gbn_l1_l2": 0.9944,
}
BY_RESULT = ["l2", "gbn_l2", "l1_l2", "gbn_l1_l2", "gbn", "bn", "l1", "gbn_l1"]
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def eight(epochs=20):
    """Eight variants that start at 90 % and end within a quarter of a percent."""
    way = np.linspace(0, 1, epochs) if epochs > 1 else np.ones(1)
    return [
        make_record(
            name,
            accuracies=0.9 + (final - 0.9) * way**0.3,
            losses=0.3 * 0.07**way * (2 - final) ** 30,
            examples=10_000,
        )
        for name, final in VARIANTS.items()
    ]


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


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def hardest(**fields):
    records = [make_record(mistakes=40, seed=seed, **fields) for seed in range(3)]
    images = mistakes.hardest(records, 25)
    return study_plots.hardest_images(images, records[0]["label_names"], 1000)


FIGURES = {
    "accuracy": lambda: accuracy(eight()),
    "loss": lambda: loss(eight()),
    "25 epochs": lambda: accuracy(eight(25)),
    "1 epoch": lambda: loss(eight(1)),
    "thirty records": lambda: accuracy(
        [make_record("a_name_of_thirty_two_letters_" + "mno") for _ in range(30)]
    ),
    "seeds": lambda: accuracy([make_record(n, i) for n in ("bn", "gbn") for i in range(3)]),
    "broken run": lambda: loss(
        [make_record(losses=[0.2, np.inf, np.nan]), make_record("bn", losses=[0.2, 0.0, -1.0])]
    ),
    "only broken runs": lambda: loss([make_record(losses=[np.nan] * 3)]),
    "all right": lambda: accuracy([make_record(accuracies=(0.1, 1.0, 1.0))]),
    "all wrong": lambda: accuracy([make_record(accuracies=(0.098, 0.098))]),
    "misclassified clothes": lambda: plots.misclassified(
        make_record(mistakes=40, label_names=FASHION)
    ),
    "hardest digits": lambda: hardest(),
    "hardest clothes": lambda: hardest(label_names=FASHION),
    "one mistake": lambda: plots.misclassified(make_record(mistakes=1)),
    "seven mistakes": lambda: plots.misclassified(make_record(mistakes=7)),
    "no mistake": lambda: plots.misclassified(make_record(mistakes=0)),
    "confusion": lambda: plots.confusion(make_record(mistakes=30)),
    "confusion of clothes": lambda: plots.confusion(make_record(label_names=FASHION)),
    "confusion of long names": lambda: plots.confusion(
        make_record(label_names=[f"category {i}" for i in range(10)])
    ),
    "confusion of many": lambda: plots.confusion(make_record(examples=60_000, mistakes=30_000)),
    "no confusion": lambda: plots.confusion(make_record(mistakes=0)),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.filterwarnings("error")
def test_texts_are_readable_and_do_not_overlap(name):
    figure = FIGURES[name]()
    assert figure.get_figwidth() == 8
    figure.set_dpi(100)
    found = texts(figure)
    assert len(found) >= (1 if name == "no mistake" else 2)
    for text, box in found:
        assert text.get_fontsize() >= 9, text  # 12 pixels in a picture 800 pixels wide
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for (one, a), (other, b) in itertools.combinations(found, 2):
        if one.get_rotation() % 90 == 0 == other.get_rotation() % 90:  # else a box is too large
            width = min(a.x1, b.x1) - max(a.x0, b.x0)
            height = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert width <= 0 or height <= 0, (one, other)


@pytest.mark.parametrize("name", ["accuracy", "confusion", "no mistake"])
def test_pictures_are_sharp_at_the_size_of_a_readme(name, tmp_path):
    plots.save(FIGURES[name](), tmp_path / "deep" / "picture.png")
    assert os.listdir(tmp_path / "deep") == ["picture.png"]
    with Image.open(tmp_path / "deep" / "picture.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == 1600
    assert 300 < pixels.shape[0] < 2200
    assert (pixels[0] == 255).all() and (pixels[:, -1] == 255).all()  # a white margin
    assert pixels.min() < 50


def test_the_same_records_make_the_same_file():
    one, other = (plots.png(FIGURES["seven mistakes"]()) for _ in range(2))
    assert one == other


def test_a_figure_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(OSError, match="cannot be written: Not a directory; nothing was changed"):
        plots.save(FIGURES["no mistake"](), tmp_path / "file" / "picture.png")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("draw", "last"),
    [
        (accuracy, lambda r: f"{100 * VARIANTS[r['name']]:.2f} %"),
        (loss, lambda r: f"{r['metrics']['validation_loss'][-1]:.4f}"),
    ],
)
def test_the_legend_names_all_variants_by_their_result(draw, last):
    records = eight()
    words = {record["name"]: last(record) for record in records}
    assert legend_of(draw(records)) == [f"{name}  {words[name]}" for name in BY_RESULT]


@pytest.mark.parametrize("number", [1, 2])
def test_the_bands_of_a_study_name_others_where_there_are_some(number):
    variants = statistics.by_variant(eight()[:number])
    names = legend_of(study_plots.bands(variants, drawing.ACCURACY, "Accuracy"))
    assert ("means of the others" in names) == (number > 1)
    assert "95 % interval" in names


@pytest.mark.parametrize("draw", [accuracy, loss])
def test_eight_lines_differ_in_more_than_colour(draw):
    figure = draw(eight())
    (axes,) = figure.axes
    lines = axes.get_lines()
    assert len({to_hex(line.get_color()) for line in lines}) == 8
    assert len({line.get_marker() for line in lines}) == 8
    assert len({line.get_linestyle() for line in lines}) == 2
    # The legend shows each line as it is drawn.
    (legend,) = figure.legends
    for handle, name in zip(legend.get_lines(), BY_RESULT, strict=True):
        line = lines[list(VARIANTS).index(name)]
        for look in ("get_color", "get_marker", "get_linestyle"):
            assert getattr(handle, look)() == getattr(line, look)()


def test_lines_beyond_eight_still_differ():
    figure = accuracy([make_record(f"{i}") for i in range(30)])
    looks = [
        (line.get_color(), line.get_marker(), line.get_linestyle())
        for line in figure.axes[0].get_lines()
    ]
    assert len(set(looks)) == 30


@pytest.mark.parametrize("epochs", [1, 2, 3, 12, 13, 20, 25, 60, 61, 150])
def test_epochs_are_whole_numbers_from_one(epochs):
    (axes,) = accuracy(eight(epochs)).axes
    ticks = axes.get_xticks()
    assert ticks[0] == 1 and ticks[-1] <= epochs
    assert len(ticks) <= 14
    assert all(tick == round(tick) for tick in ticks)
    assert len(ticks) == epochs if epochs <= 12 else len(ticks) >= 3
    for line in axes.get_lines():
        assert line.get_xdata().tolist() == list(range(1, epochs + 1))
    assert axes.get_xlabel() == "epoch"


def height(axes, value):
    """Where a value of the y axis is: 0 at the lower end, 1 at the upper end."""
    return axes.transAxes.inverted().transform(axes.transData.transform((1, value)))[1]


def test_accuracies_near_99_are_told_apart_beside_a_first_epoch_at_90():
    (axes,) = accuracy(eight()).axes
    ends = {}
    for line, name in zip(axes.get_lines(), VARIANTS, strict=True):
        heights = [height(axes, y) for y in line.get_ydata()]
        assert 0 < min(heights) < 0.15 and 0.8 < max(heights) < 1  # from bottom to top
        assert heights == sorted(heights)  # better is higher
        ends[name] = heights[-1]
    assert sorted(ends, key=ends.get, reverse=True) == BY_RESULT
    assert ends["l2"] - ends["gbn_l1"] > 0.1  # a quarter of a percent
    assert ends["l2"] - ends["bn"] > 0.05


def test_ticks_of_the_accuracy_axis_say_percent_right():
    figure = accuracy(eight())
    (axes,) = figure.axes
    FigureCanvasAgg(figure).draw()
    shown = {
        float(tick.label1.get_text()): tick.get_loc()
        for tick in axes.yaxis.get_major_ticks()
        if 0 <= height(axes, tick.get_loc()) <= 1
    }
    assert {95, 98, 99, 99.4, 99.5} <= set(shown)
    # The curve of an accuracy passes exactly where the axis has its label.
    record = make_record(accuracies=(0.95, 0.99), examples=10_000)
    (line,) = accuracy([record]).axes[0].get_lines()
    assert line.get_ydata() == pytest.approx([shown[95], shown[99]])
    assert "%" in axes.get_ylabel()


@pytest.mark.parametrize(
    "accuracies", [(0.99,), (0.99, 0.991), (0.99, 0.994), (0.9, 0.99), (0.1, 0.999)]
)
def test_the_axis_has_a_few_ticks_whatever_its_range(accuracies):
    figure = accuracy([make_record(accuracies=accuracies, examples=10_000)])
    (axes,) = figure.axes
    shown = [tick for tick in axes.get_yticks() if 0 <= height(axes, tick) <= 1]
    assert 3 <= len(shown) <= 12
    assert len(axes.yaxis.get_minorticklocs()) == 0


def test_losses_are_drawn_as_they_are():
    records = eight()
    (axes,) = loss(records).axes
    for line, record in zip(axes.get_lines(), records, strict=True):
        assert line.get_ydata().tolist() == record["metrics"]["validation_loss"].tolist()
        heights = [height(axes, y) for y in line.get_ydata()]
        assert 0 < heights[-1] < 0.3 and 0.7 < heights[0] < 1
        assert heights == sorted(heights, reverse=True)


def test_a_broken_run_does_not_hide_the_others():
    broken = make_record("broken", losses=[0.2, np.inf, np.nan])
    figure = loss([broken, make_record("bn", losses=[0.2, 0.1, 0.05])])
    assert legend_of(figure) == ["bn  0.0500", "broken  nan"]
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert 0.03 < low < 0.05 and 0.2 < high < 0.3


def test_a_perfect_epoch_is_inside_the_picture():
    figure = accuracy([make_record(accuracies=(0.9, 1.0), examples=1000)])
    assert legend_of(figure) == ["gbn  100.00 %"]
    (axes,) = figure.axes
    assert 0.5 < height(axes, axes.get_lines()[0].get_ydata()[-1]) < 1


def test_records_of_one_name_are_told_apart():
    records = [
        make_record("gbn", seed=0),
        make_record("gbn", seed=1),
        make_record("gbn", seed=1),
        make_record("bn", seed=1),
    ]
    expected = ["gbn seed 0", "gbn seed 1", "gbn seed 1 #2", "bn"]
    assert plots.record_names(records) == expected
    assert legend_of(accuracy(records)) == [f"{x}  99.00 %" for x in expected]


def test_seeds_of_one_name_are_a_mean_in_a_band():
    finals = (0.98, 0.99, 0.97)
    records = [
        make_record("gbn", seed, (0.9, final), examples=1000) for seed, final in enumerate(finals)
    ]
    figure = accuracy([*records, make_record("bn", accuracies=(0.9, 0.96))])
    assert legend_of(figure) == ["gbn, 3 seeds  98.00 %", "bn  96.00 %"]
    (axes,) = figure.axes
    np.testing.assert_allclose([line.get_ydata()[-1] for line in axes.get_lines()], [2.0, 4.0])
    (band,) = axes.collections
    (path,) = band.get_paths()
    last = path.vertices[path.vertices[:, 0] == 2, 1]
    np.testing.assert_allclose([last.min(), last.max()], [1.0, 3.0])


def test_a_seed_that_diverged_is_left_out_of_the_mean():
    records = [make_record("gbn", 0, (0.9, 0.98)), make_record("gbn", 1, (0.9, 0.99))]
    figure = accuracy([*records, diverged("gbn", 2)])
    assert legend_of(figure) == ["gbn, 2 of 3 seeds  98.50 %"]


def test_odd_names_are_shown_as_they_are():
    record = make_record("_$x^{ {0} %s \\alpha$")
    assert legend_of(accuracy([record])) == ["_$x^{ {0} %s \\alpha$  99.00 %"]
    found = [text.get_text() for text, _ in texts(plots.confusion(record))]
    assert any(text.startswith("_$x^{ {0} %s \\alpha$: ") for text in found)


def test_misclassified_images_have_their_labels():
    # Of 40 images 30 are wrong; image j has probability 0.5 + j / 1024, so the last come first.
    record = make_record(mistakes=30)
    figure = plots.misclassified(record)
    panels = figure.axes
    assert len(panels) == 25
    positions = record["mistakes"]["index"][::-1][:25]
    for rank, (panel, position) in enumerate(zip(panels, positions, strict=True)):
        true, said = position % 10, (position + 2) % 10
        percent = round(50 + 100 * position / 1024)
        assert panel.get_title() == f"true {true}\nsaid {said} ({percent} %)"
        (image,) = panel.get_images()
        assert (image.get_array() == 29 - rank).all()
        assert image.get_cmap().name == "gray" and image.get_clim() == (0, 255)
    assert figure.get_suptitle() == "gbn: the 25 surest of 30 mistakes on 40 images"


@pytest.mark.parametrize(("mistakes", "shown"), [(1, 1), (4, 4), (7, 7), (24, 24), (40, 25)])
def test_as_many_panels_as_mistakes(mistakes, shown):
    figure = plots.misclassified(make_record(mistakes=mistakes))
    assert sum(len(axes.get_images()) for axes in figure.axes) == shown
    assert not any(axes.axison for axes in figure.axes)
    if mistakes <= 25:
        words = "1 mistake" if mistakes == 1 else f"{mistakes} mistakes"
        assert figure.get_suptitle() == f"gbn: {words} on 40 images"


def test_fewer_panels_can_be_asked_for():
    figure = plots.misclassified(make_record(mistakes=30), count=10)
    assert sum(len(axes.get_images()) for axes in figure.axes) == 10
    assert figure.get_suptitle() == "gbn: the 10 surest of 30 mistakes on 40 images"


def test_no_mistake_is_said_in_words():
    ((text, _),) = texts(plots.misclassified(make_record(mistakes=0)))
    assert text.get_text() == "gbn: no mistake on 40 images"


def test_confusion_shows_counts_and_colours_errors_alone():
    record = make_record(examples=10_000, mistakes=0)
    record["predictions"]["prediction"][[3, 13, 23, 33]] = 5  # four threes said to be fives
    record["predictions"]["prediction"][7] = 1  # one seven said to be a one
    record["mistakes"] = {
        "index": np.array([3, 7, 13, 23, 33], np.int32),
        "images": np.zeros((5, 28, 28), np.uint8),
    }
    figure = plots.confusion(record)
    (axes,) = figure.axes
    shown = {tuple(reversed(text.get_position())): text.get_text() for text in axes.texts}
    expected = {(i, i): "1,000" for i in range(10)}
    expected |= {(3, 3): "996", (3, 5): "4", (7, 7): "999", (7, 1): "1"}
    assert shown == expected
    assert axes.get_title() == "gbn: 5 mistakes on 10,000 images"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")

    (image,) = axes.get_images()
    shade = image.get_array()
    assert shade.mask.tolist() == np.eye(10, dtype=bool).tolist()  # no colour on the diagonal
    assert shade[3, 5] > shade[7, 1] > shade[0, 1] == 0
    # One error is seen beside none, and black digits are legible on the darkest cell.
    light = [np.dot(image.to_rgba(np.array([[v]]))[0, 0, :3], [0.2126, 0.7152, 0.0722]) for v in
             (shade[0, 1], shade[7, 1], 1.0)]  # fmt: skip
    assert light[0] - light[1] > 0.04
    assert light[2] > 0.3


def test_figures_are_named_safely_and_once():
    records = [
        make_record(name, seed=seed, mistakes=0)
        for seed, name in enumerate(["gbn", "gbn", "../gbn", "a b", "a/b", "é"])
    ]
    names = [name for name, _ in plots.figures(records)]
    parts = ["gbn_seed_0", "gbn_seed_1", ".._gbn", "a_b", "a_b_2", "é"]
    expected = [f"{kind}_{part}.png" for part in parts for kind in ("misclassified", "confusion")]
    assert names == ["validation_accuracy.png", "validation_loss.png", *expected]


def test_drawing_leaves_global_settings_alone():
    before = dict(matplotlib.rcParams)
    for draw in (FIGURES["accuracy"], FIGURES["confusion"]):
        draw()
    assert dict(matplotlib.rcParams) == before
    names = "{'jax', 'matplotlib.pyplot'}"
    code = f"import jax_mnist.analysis.plots, sys; print({names} & set(sys.modules))"
    process = run(sys.executable, "-c", code)
    assert process.stdout == "set()\n", process.stderr


def run(*command):
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_script_draws_from_pickles_alone(tmp_path):
    for name in ("bn", "gbn"):
        save_record(tmp_path / "runs" / name / "history.pkl", make_record(name, mistakes=2))
    paths = (tmp_path / "runs" / "bn" / "history.pkl", tmp_path / "runs" / "gbn")  # file, folder
    process = run(sys.executable, "scripts/plot.py", *paths, "--out", tmp_path / "new" / "out")
    expected = ["validation_accuracy.png", "validation_loss.png"]
    expected += [
        f"{kind}_{n}.png" for n in ("bn", "gbn") for kind in ("misclassified", "confusion")
    ]
    assert process.stdout.splitlines() == [str(tmp_path / "new" / "out" / x) for x in expected]
    assert (process.returncode, process.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path / "new" / "out")) == sorted(expected)
    for name in expected:
        with Image.open(tmp_path / "new" / "out" / name) as image:
            image.load()
            assert image.width == 1600


def test_the_script_refuses_bad_files_in_one_line(tmp_path):
    good, bad = tmp_path / "good.pkl", tmp_path / "bad.pkl"
    save_record(good, make_record())
    bad.write_bytes(pickle.dumps(eval))
    process = run(sys.executable, "scripts/plot.py", good, bad, "--out", tmp_path / "out")
    assert (process.returncode, process.stdout) == (2, "")
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"plot.py: {str(bad)!r}: ")
    assert "not a history" in line
    assert not (tmp_path / "out").exists()
