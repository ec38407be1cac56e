"""The page with a network inside places and names drawings as the Python program does."""

import base64
import io
from pathlib import Path

import jax
import numpy as np
import pytest
from browser import opened
from PIL import Image

from jax_mnist.data import datasets
from jax_mnist.inference import pictures, web_page
from jax_mnist.inference.predict import load_network
from jax_mnist.training import evaluation

ROOT = Path(__file__).parents[2]
NOTHING = "\N{EN DASH}"
SEVEN = [[(0.2, 0.2), (0.8, 0.2), (0.4, 0.85)], [(0.3, 0.5), (0.7, 0.5)]]


@pytest.fixture(scope="module")
def network(run):
    return load_network(run)


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "network.html"
    path.write_bytes(web_page.to_html(network))
    return path


@pytest.fixture
def page(browser, path):
    with opened(browser, path) as page:
        yield page


def probabilities(network, images):
    """Those of each replica, `[replicas, batch, 10]`."""
    logits = evaluation.predict(
        network.model, network.variables, images[..., None], network.normalization
    )
    return np.asarray(jax.nn.softmax(logits))


def test_test_images_get_the_probabilities_of_the_python_model(page, network, recorded):
    images = datasets.load("mnist", "test[:80]").images[..., 0]
    results = page.evaluate(
        "images => seeds.map(weights => images.map(image => classify(network, weights, image)))",
        images.reshape(80, -1).tolist(),
    )
    np.testing.assert_allclose(results, probabilities(network, images), atol=1e-4)
    np.testing.assert_allclose(np.array(results)[:, :12], recorded, atol=1e-4)


def on_drawing(page, x, y):
    """A point of the window; the arguments are fractions of the canvas."""
    box = page.locator("#drawing").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def draw(page, strokes):
    """Draws with the mouse; points are fractions of the canvas."""
    page.locator("#drawing").scroll_into_view_if_needed()
    for first, *others in strokes:
        page.mouse.move(*on_drawing(page, *first))
        page.mouse.down()
        for point in others:
            page.mouse.move(*on_drawing(page, *point), steps=8)
        page.mouse.up()
    page.evaluate("() => new Promise(requestAnimationFrame)")


def canvas_file(page, name):
    """A canvas as a PNG file."""
    url = page.evaluate(f"find('{name}').toDataURL()")
    return io.BytesIO(base64.b64decode(url.partition(",")[2]))


def seen(page):
    """The image that the page shows as seen by the network."""
    return np.asarray(Image.open(canvas_file(page, "image")).convert("L"))


def check_that_the_drawing_is_placed(page, image):
    expected = pictures.read(canvas_file(page, "drawing"))
    np.testing.assert_allclose(image.astype(int), expected.astype(int), atol=1)


DRAWINGS = [
    SEVEN,
    [[(0.45, 0.55), (0.55, 0.6)]],
    [[(0.02, 0.3), (0.9, 0.31), (0.7, 0.99)], [(0.05, 0.95)]],  # over the edges, and a dot
]


def test_strokes_are_placed_as_a_picture_is_and_named(page, network):
    for strokes in DRAWINGS:
        page.locator("#clear").click()
        draw(page, strokes)
        check_that_the_drawing_is_placed(page, seen(page))
        of_seeds = probabilities(network, seen(page)[None])[:, 0]
        means = of_seeds.mean(0)
        answer, *votes = page.locator("#answer, #votes .vote").all_inner_texts()
        assert answer == str(means.argmax()) and votes == [str(p.argmax()) for p in of_seeds]
        percents = page.locator("#confidence, #classes .percent").all_inner_texts()
        numbers = [float(text.removesuffix(" %")) for text in percents]
        np.testing.assert_allclose(numbers, 100 * np.array([means.max(), *means]), atol=0.06)


def test_images_are_placed_as_pictures_are(page):
    """Images of the test set, enlarged in several sizes, and with a speck."""
    images = datasets.load("mnist", "test[:12]").images[..., 0]
    for number, image in enumerate(images):
        large = np.pad(np.kron(image, np.ones((1 + number % 4,) * 2)), 10 + number) / 255
        large[3, 5] = 1
        image_of_page = page.evaluate(
            "([ink, side]) => [...centre(ink, side, side)]", [large.ravel().tolist(), len(large)]
        )
        expected = pictures.centre(1 - large).astype(int).ravel()
        np.testing.assert_allclose(image_of_page, expected, atol=1)


def test_clear_is_reached_with_the_keyboard_and_forgets_the_drawing(page):
    draw(page, SEVEN)
    assert seen(page).max() == 255 and page.locator("#answer").inner_text() in "0123456789"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Clear"
    page.keyboard.press("Enter")
    page.evaluate("() => new Promise(requestAnimationFrame)")
    assert seen(page).max() == 0 and page.locator("#answer").inner_text() == NOTHING
    assert set(page.locator("#votes .vote, #votes .percent").all_inner_texts()) == {NOTHING, ""}
    draw(page, SEVEN[:1])
    assert page.locator("#answer").inner_text() in "0123456789"


def test_a_finger_draws_on_a_phone_and_nothing_overflows(browser, path):
    with opened(browser, path, width=390, color_scheme="dark") as page:
        client = page.context.new_cdp_session(page)

        def touch(kind, *points):
            points = [dict(zip("xy", on_drawing(page, *point), strict=True)) for point in points]
            client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        page.touchscreen.tap(*on_drawing(page, 0.5, 0.5))
        page.wait_for_function("find('confidence').textContent.endsWith('%')")
        dot = page.evaluate("inkOfDrawing().reduce((a, b) => a + b)")
        touch("touchStart", (0.3, 0.2))
        for y in (0.4, 0.6, 0.8):
            touch("touchMove", (0.3, y))
        touch("touchEnd")
        assert page.evaluate("inkOfDrawing().reduce((a, b) => a + b)") > 3 * dot
        assert page.evaluate("scrollY") == 0  # the stroke does not scroll the page
        answer = page.locator("#answer").bounding_box()
        assert answer["y"] + answer["height"] < 844  # in view with the drawing
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_another_data_set_has_its_own_labels_and_texts_are_escaped(network, browser, tmp_path):
    labels = ["T-shirt/top", "Ankle boot", "</script><b>", *"3456789"]
    record = network.records[0] | {"label_names": labels, "name": "<i>"}
    record["config"] = record["config"] | {"dataset": "emnist/digits"}  # transposed
    one = network._replace(
        records=[record], variables=jax.tree.map(lambda leaf: leaf[:1], network.variables)
    )
    (tmp_path / "page.html").write_bytes(web_page.to_html(one))
    with opened(browser, tmp_path / "page.html", width=390) as page:
        assert page.locator("h1").inner_text() == "Draw a picture"
        assert page.locator("#classes th").all_inner_texts() == labels
        assert not page.locator("#votes").is_visible()  # of one seed
        draw(page, SEVEN)
        check_that_the_drawing_is_placed(page, seen(page).T)
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_page_in_docs_is_made_of_the_present_files(network):
    def constant_lines(page):  # those that do not depend on the networks
        varying = ("<p>", '<script type="application/json"')
        return [line for line in page.splitlines() if not line.startswith(varying)]

    committed = (ROOT / "docs" / "draw.html").read_text()
    assert constant_lines(committed) == constant_lines(web_page.to_html(network).decode()), (
        "export docs/draw.html anew"
    )
