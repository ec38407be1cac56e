"""The report's page in a real browser: laptop and phone, light and dark."""

import itertools

import pytest
from browser import opened
from records import make_record, study

from jax_mnist.analysis import report, statistics
from jax_mnist.analysis.markup import interval, p_value, signed
from jax_mnist.analysis.run import final_accuracy

SCREENS = tuple(itertools.product((1280, 390), ("light", "dark")))

two_screens = pytest.mark.parametrize("page", [SCREENS[0], SCREENS[3]], indirect=True)


@pytest.fixture(params=SCREENS, ids=lambda screen: "{}-{}".format(*screen))
def page(request, browser, written):
    width, scheme = request.param
    with opened(browser, written.folder / "report.html", width, scheme) as page:
        yield page


def differences(page):
    """The cells of the visible table of differences, without the line below each row."""
    rows = page.locator(".choice:visible .row")
    return [
        [cell.strip() for cell in row.locator("td").all_text_contents()[:4]] for row in rows.all()
    ]


def test_everything_fits_into_the_screen(page):
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    tables = page.locator(".table:visible")
    assert tables.count() == 4
    for table in tables.all():
        main = table.locator("tr:not(.below) > :not(.more)")
        ends = main.evaluate_all("cells => cells.map(cell => cell.getBoundingClientRect().right)")
        assert 0 < max(ends) <= width
        outer = table.evaluate("table => table.scrollWidth <= table.clientWidth")
        assert outer
    lefts = (
        page.locator(".panels")
        .first.locator("svg")
        .evaluate_all("panels => panels.map(panel => panel.getBoundingClientRect().left)")
    )
    assert len(lefts) == 8 and len(set(lefts)) == (4 if width == 1280 else 2)
    below = page.locator(".below", has_text="errors: 6.0")
    assert below.count() == 8 and below.first.is_visible() == (width == 390)


@pytest.mark.parametrize("page", [SCREENS[0], SCREENS[1]], indirect=True)
def test_figures_have_the_colours_of_the_page(page):
    def luminance(selector, key):
        colour = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{key}")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(", "))) / 3

    back = luminance("body", "backgroundColor")
    for selector, key in (("body", "color"), (".panels text", "fill"), (".row td", "color")):
        assert abs(luminance(selector, key) - back) > 150
    assert abs(luminance(".panels svg path[style*=accent]", "stroke") - back) > 60


@two_screens
def test_a_chosen_baseline_shows_the_numbers_of_python(page, written):
    for baseline in ("bn", "gbn_l2"):
        if baseline != "bn":
            page.get_by_label("Baseline").select_option(baseline)
        others = [name for name in written.variants if name != baseline]
        effects = statistics.differences(written.variants, final_accuracy, others, baseline)
        assert differences(page) == [
            [name, signed(e.mean), p_value(e.p), interval(e, signed)] for name, e in effects.items()
        ]
        heading = page.locator(".choice:visible th").nth(1)
        assert heading.text_content() == f"difference to {baseline}, pp"


@two_screens
def test_a_box_hides_a_variant_in_all_curves(page):
    curves = page.locator(".variant-2")  # its panels, and its line in the panels of the others
    assert curves.count() == 2 + 2 * 8
    box = page.get_by_role("checkbox", name="l2", exact=True)
    panel = page.locator(".panel", has_text="l2").first
    assert panel.is_visible()
    box.click()
    assert not any(curve.is_visible() for curve in curves.all())
    assert page.locator(".panel:visible").count() == 14
    box.click()
    assert panel.is_visible() and page.locator(".panel:visible").count() == 16


@two_screens
def test_figures_open_large_by_click_and_by_key(page):
    for selector, open_it in ((".panel", "click"), (".hardest details", "Enter")):
        figure = page.locator(selector).nth(1)
        picture = figure.locator("svg, img")
        before = picture.bounding_box()["width"]
        if open_it == "click":
            figure.locator("summary").click()
        else:
            figure.locator("summary").press(open_it)
        assert picture.bounding_box()["width"] > 1.9 * before
        assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    rows = figure.locator("tbody tr")
    assert rows.count() == 8 and rows.first.is_visible()
    assert rows.first.text_content() == "bn3 of 30 (3)"


def test_the_command_is_copied_as_it_was(browser, written):
    path = written.folder / "report.html"
    with opened(browser, path, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_role("button", name="Copy").click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == written.command


def test_without_scripts_it_can_be_read_and_has_no_dead_controls(browser, written):
    with opened(browser, written.folder / "report.html", java_script_enabled=False) as page:
        for control in ("checkbox", "combobox", "button"):
            assert page.get_by_role(control).count() == 0
        assert len(differences(page)) == 7
        page.locator(".panel summary").first.click()
        assert page.locator(".panel[open]").count() == 1


def test_the_page_is_small_and_needs_no_other_file(written):
    text = (written.folder / "report.html").read_text()
    assert len(text) < 400_000  # real images take some more
    assert "http:" not in text and "https:" not in text and text.count("<script>") == 1
    identifiers = [part.partition('"')[0] for part in text.split(' id="')[1:]]
    assert len(identifiers) == len(set(identifiers)) > 16


def test_texts_from_strangers_stay_texts(tmp_path, browser):
    names = ("bn", "</script><script>document.title = 1</script>", 'a|b`c*d_e_f![x](y)"')
    records = study(seeds=2, names=names)
    for record in records:
        record["config"]["<b>"] = record["name"]
        record["device"]["kind"] = "x](http://a.b)<img src=http://a.b/c.png>\n# big"
        record["label_names"] = ["<i>0", *"123456789"]
        record["config"]["dataset"] = record["config"]["validation_split"] = "<svg onload=x>"
    report.write(records, tmp_path, "a </code></pre><script>x</script>\n```\n<b>", note="<u>`_")
    with opened(browser, tmp_path / "report.html") as page:
        for tag in (
            "b:has(b)",
            "i",
            "u",
            "img[src^=http]",
            ".row em",
            "script + script",
            "body a[href^=http]",
        ):
            assert page.locator(tag).count() == 0, tag
        assert page.locator("h1").count() == 1
        assert page.locator("script").count() == 1
        assert page.locator("option").all_text_contents() == list(names)
        assert [row[0] for row in differences(page)] == list(names[1:])
        assert page.locator(".command code").text_content().startswith("a </code></pre><script>x")
        page.get_by_label("Baseline").select_option(names[1])
        assert [row[0] for row in differences(page)] == [names[0], names[2]]
    text = (tmp_path / "report.md").read_text()
    assert "<script" not in text.partition("The command was:")[0]


def test_a_study_of_one_run_makes_a_page_too(tmp_path, browser):
    report.write([make_record(mistakes=0, accuracies=(0.9,))], tmp_path)
    with opened(browser, tmp_path / "report.html", 390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator(".panel").count() == 2
        assert page.get_by_role("checkbox").count() == 0
