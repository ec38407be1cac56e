"""The report's page in a real browser: laptop and phone, light and dark."""

import re

import pytest
from browser import opened
from records import make_record, study

from jax_mnist.analysis import report, table
from jax_mnist.analysis.words import interval, p_value, signed


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["laptop", "phone"])
def page(request, browser, written):
    width, scheme = request.param
    with opened(browser, written.folder / "report.html", width, scheme) as page:
        yield page


def differences(page):
    """The first cells of the visible table of differences."""
    rows = page.locator(".baseline tbody tr:visible").all()
    cells = [row.locator("td").all_text_contents()[:4] for row in rows]
    return [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in cells]


def fits(page):
    return page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]


def test_everything_fits_into_the_screen_in_its_colours(page):
    phone = page.viewport_size["width"] == 390  # which is dark here
    tables = page.locator(".table:visible")
    assert fits(page) and tables.count() == 4
    for element in tables.all():  # a wide table scrolls by itself
        assert element.bounding_box()["width"] <= page.viewport_size["width"]
        assert phone or element.evaluate("table => table.scrollWidth == table.clientWidth")

    def luminance(selector, key):
        colour = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{key}")
        return sum(map(int, re.findall(r"\d+", colour))) / 3

    back = luminance("body", "backgroundColor")
    assert (back < 50) == phone
    for selector in ("body", "td", "a"):
        assert abs(luminance(selector, "color") - back) > 80
    inverted = page.locator(".accuracy").evaluate("e => getComputedStyle(e).filter")
    assert inverted.startswith("invert") == phone


def test_a_chosen_baseline_shows_the_numbers_of_python(page, written):
    wide = written.study.wide
    for baseline in ("bn", "gbn_l2"):
        page.get_by_label("Baseline").select_option(f"Differences to {baseline}")
        expected = [
            [e.Index, signed(e.mean), p_value(e.p), interval(e, signs=True)]
            for e in table.differences(wide, baseline).itertuples()
        ]
        assert differences(page) == expected
        assert page.locator(".differences:visible").count() == (baseline == "bn")
        intervals = [row[3] for row in expected if row[3] != "none"]
        assert page.locator(".bar:visible").count() == len(intervals) >= 6


def test_figures_open_large_by_click_and_by_key(page):
    for name, open_it in (("accuracy", "click"), ("hardest", "Enter")):
        picture, summary = page.locator(f".{name}"), page.locator(f"summary:has(.{name})")
        before = picture.bounding_box()["width"]
        summary.click() if open_it == "click" else summary.press(open_it)
        assert picture.bounding_box()["width"] > 1.25 * before and fits(page)
    who = page.locator("details", has_text="Who gets them wrong").last
    who.locator("summary").click()
    assert who.locator("tbody tr").count() == 6 and fits(page)
    assert who.locator("tbody td").nth(4).text_content() == "2 (3)"


def test_without_scripts_it_can_be_read_and_has_no_dead_controls(browser, written):
    with opened(browser, written.folder / "report.html", java_script_enabled=False) as page:
        assert page.get_by_role("combobox").count() == 0
        assert len(differences(page)) == 7
        page.get_by_text("Differences to gbn_l1_l2").click()
        assert len(differences(page)) == 14


def test_the_page_is_small_and_needs_no_other_file(written):
    text = (written.folder / "report.html").read_text()
    assert len(text) < 600_000
    assert "http:" not in text and "https:" not in text and text.count("<script>") == 1
    identifiers = [part.partition('"')[0] for part in text.split(' id="')[1:]]
    assert len(identifiers) == len(set(identifiers)) == 6


def test_texts_from_strangers_stay_texts(tmp_path, browser):
    names = ("bn", "</script><script>document.title = 1</script>", 'a|b`c*d_e_f![x](y)"</details>')
    records = study(seeds=2, names=names)
    for record in records:
        record["config"]["<b>"] = record["name"]
        record["device"]["kind"] = "x](http://a.b)<img src=http://a.b/c.png>\n# big"
        record["label_names"] = ["<i>0", *"123456789"]
        record["config"]["dataset"] = record["config"]["validation_split"] = "<svg onload=x>"
    report.write(records, tmp_path, "a </code></pre><script>x</script>\n```\n<b>", note="<u>`_")
    with opened(browser, tmp_path / "report.html") as page:
        for tag in ("b:has(b)", "i", "u", "svg", "img[src^=http]", "td em", "script + script",
                    "body a[href^=http]"):  # fmt: skip
            assert page.locator(tag).count() == 0, tag
        assert page.locator("h1").count() == page.locator("script").count() == 1
        of = [f"Differences to {name}" for name in names]
        assert page.locator("option").all_text_contents() == of
        assert [row[0] for row in differences(page)] == list(names[1:])
        assert page.locator("pre code").text_content().startswith("a </code></pre><script>x")
        page.get_by_label("Baseline").select_option(of[1])
        assert [row[0] for row in differences(page)] == [names[0], names[2]]
    text = (tmp_path / "report.md").read_text()
    assert "<script" not in text.partition("The command was:")[0]


def test_a_study_of_one_run_makes_a_page_too(tmp_path, browser):
    report.write([make_record(mistakes=0, accuracies=(0.9,))], tmp_path)
    with opened(browser, tmp_path / "report.html", 390) as page:
        assert fits(page) and page.locator(".figure").count() == 2
        assert page.get_by_role("combobox").count() == 0
