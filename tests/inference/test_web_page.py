"""The page with a network inside places and names drawings as the Python program does."""

import base64
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from browser import opened

from jax_mnist.data import datasets
from jax_mnist.inference import pictures, web_page
from jax_mnist.inference.predict import load
from jax_mnist.nn.cnn import CNN, LAYERS
from jax_mnist.nn.kernels import PLAIN
from jax_mnist.training import augment

ROOT = Path(__file__).parents[2]
NOTHING = "\N{EN DASH}"
SEVEN = [[(0.2, 0.2), (0.8, 0.2), (0.4, 0.85)], [(0.3, 0.5), (0.7, 0.5)]]


@pytest.fixture(scope="module")
def network(run):
    return load(run)


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
    """Those of each replica, `[replicas, batch, 10]`, without compiling for each batch size."""
    padded = np.concatenate([images, np.zeros((200 - len(images), 28, 28), np.uint8)])
    x = augment.normalize(padded[..., None].astype(np.float32) / 255, *network.normalization)
    plain = network.model.clone(kernels=PLAIN)
    logits = [
        plain.apply(jax.tree.map(lambda leaf, r=r: leaf[r], network.variables), x, train=False)
        for r in range(len(network.records))
    ]
    return np.asarray(jax.nn.softmax(np.asarray(logits)))[:, : len(images)]


def test_test_images_get_the_probabilities_of_the_python_model(
    page, network, recorded, record_property
):
    images = datasets.load("mnist", "test[:200]").images[..., 0]
    found, milliseconds = page.evaluate(
        """images => {
            const start = performance.now();
            const found = seeds.map(
                weights => images.map(image => classify(network, weights, image)));
            return [found, (performance.now() - start) / images.length / seeds.length];
        }""",
        images.reshape(200, -1).tolist(),
    )
    np.testing.assert_allclose(found, probabilities(network, images), atol=1e-4)
    np.testing.assert_allclose(np.array(found)[:, :12], recorded, atol=1e-4)
    record_property("measured", f"a network in Chromium: {milliseconds:.1f} ms an image")


def draw(page, strokes):
    """Draws with the mouse; points are fractions of the canvas."""
    page.locator("#drawing").scroll_into_view_if_needed()
    box = page.locator("#drawing").bounding_box()
    for first, *others in strokes:
        page.mouse.move(box["x"] + first[0] * box["width"], box["y"] + first[1] * box["height"])
        page.mouse.down()
        for x, y in others:
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        page.mouse.up()
    page.evaluate("() => new Promise(requestAnimationFrame)")


def placed(page, folder):
    """What the page makes of the drawing, and what `pictures` makes of it as a PNG file."""
    url = page.evaluate("canvas.toDataURL()")
    (folder / "drawing.png").write_bytes(base64.b64decode(url.partition(",")[2]))
    image = page.evaluate("[...imageOfDrawing()]")
    return np.reshape(image, (28, 28)), pictures.read(folder / "drawing.png")


def seen(page):
    """The levels of the picture that the page shows as seen by the network."""
    return page.evaluate(
        """() => [...find("image").getContext("2d").getImageData(0, 0, 28, 28).data]
            .filter((_, i) => i % 4 === 0)"""
    )


DRAWINGS = [
    SEVEN,
    [[(0.5, 0.1), (0.52, 0.9)]],
    [[(0.45, 0.55), (0.55, 0.6)]],
    [[(0.02, 0.3), (0.9, 0.31), (0.7, 0.99)]],  # over the edges
    [*SEVEN, [(0.95, 0.95)]],  # with a dot far away
    [[(0.6, 0.2), (0.4, 0.3), (0.42, 0.7), (0.7, 0.75), (0.65, 0.5), (0.4, 0.6)]],
]


def test_strokes_are_placed_as_a_picture_is_and_named(page, network, tmp_path):
    images, shown = [], []
    for strokes in DRAWINGS:
        page.locator("#clear").click()
        draw(page, strokes)
        image, expected = placed(page, tmp_path)
        np.testing.assert_allclose(image, expected.astype(int), atol=1)
        np.testing.assert_array_equal(seen(page), image.ravel())
        images.append(image.astype(np.uint8))
        answer = page.locator("#answer, #confidence, #votes .vote").all_inner_texts()
        shown.append((answer, page.locator("#classes .percent").all_inner_texts()))
    of_seeds = probabilities(network, np.array(images))
    means = of_seeds.mean(0)
    for each, mean, ((answer, confidence, *votes), percents) in zip(
        of_seeds.transpose(1, 0, 2), means, shown, strict=True
    ):
        assert answer == str(mean.argmax()) and votes == [str(p.argmax()) for p in each]
        numbers = [float(text.removesuffix(" %")) for text in (confidence, *percents)]
        np.testing.assert_allclose(numbers, 100 * np.array([mean.max(), *mean]), atol=0.06)


def test_images_are_placed_as_pictures_are(page):
    """Images of the test set, enlarged in several sizes, and with a speck."""
    images = datasets.load("mnist", "test[:30]").images[..., 0]
    for number, image in enumerate(images):
        large = np.pad(np.kron(image, np.ones((1 + number % 4,) * 2)), 10 + number) / 255
        large[3, 5] = 1
        found = page.evaluate(
            "([ink, width, height]) => [...centre(ink, width, height)]",
            [large.ravel().tolist(), *large.shape[::-1]],
        )
        expected = pictures.centre(1 - large).astype(int).ravel()
        np.testing.assert_allclose(found, expected, atol=1)


def test_clear_is_reached_with_the_keyboard_and_forgets_the_drawing(page):
    draw(page, SEVEN)
    assert max(seen(page)) == 255 and page.locator("#answer").inner_text() in "0123456789"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Clear"
    page.keyboard.press("Enter")
    page.evaluate("() => new Promise(requestAnimationFrame)")
    assert max(seen(page)) == 0 and page.locator("#answer").inner_text() == NOTHING
    assert set(page.locator("#votes .vote, #votes .percent").all_inner_texts()) == {NOTHING, ""}
    draw(page, SEVEN[:1])
    assert page.locator("#answer").inner_text() in "0123456789"


def test_a_finger_draws_on_a_phone_and_nothing_overflows(browser, path):
    with opened(browser, path, width=390, color_scheme="dark") as page:
        box = page.locator("#drawing").bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_function("find('confidence').textContent.endsWith('%')")
        client = page.context.new_cdp_session(page)

        def touch(kind, *points):
            touches = [
                {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
                for x, y in points
            ]
            client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

        before = page.evaluate("inkOfDrawing().reduce((a, b) => a + b)")
        touch("touchStart", (0.3, 0.2))
        for y in (0.4, 0.6, 0.8):
            touch("touchMove", (0.3, y))
        touch("touchEnd")
        assert page.evaluate("inkOfDrawing().reduce((a, b) => a + b)") > 3 * before
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
        assert page.locator("#votes").count() == 0  # of one seed
        draw(page, SEVEN)
        image, expected = placed(page, tmp_path)
        np.testing.assert_allclose(image.T, expected.astype(int), atol=1)
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_page_of_a_wider_network_has_its_layers(network):
    *hidden, last = LAYERS
    wider = (*(layer._replace(features=2 * layer.features) for layer in hidden), last)
    model = CNN(layers=wider)
    variables = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), np.zeros((1, 28, 28, 1))
    )
    ones = jax.tree.map(lambda leaf: np.ones((1, *leaf.shape), np.float32), variables)
    page = web_page.to_html(network._replace(model=model, variables=ones)).decode()
    about = json.loads(page.partition('id="network">')[2].partition("</script>")[0])
    assert [layer["features"] for layer in about["layers"]] == [
        *(2 * layer.features for layer in LAYERS[:-1]), 10,
    ]  # fmt: skip
    params = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert len(base64.b64decode(about["weights"][0])) == 4 * params


def test_the_page_is_small(path):
    text = path.read_text()
    assert len(text) < 120_000  # two networks of 46 kB, and the page
    assert "http" not in text
    about = json.loads(text.partition('id="network">')[2].partition("</script>")[0])
    assert about["seeds"] == [0, 1] and len(about["layers"]) == 12


def test_the_page_in_docs_is_made_of_the_present_files(network):
    parts = {p.name for p in web_page._FILES.iterdir()} - {"page.html"}
    committed = (ROOT / "docs" / "draw.html").read_text()
    for part in parts:
        assert web_page._read(part) in committed, "export docs/draw.html anew"
    made = web_page.to_html(network).decode()

    def markup(text):  # up to the rows of the votes, without what depends on the networks
        return text.partition("<main>")[2].partition('<table id="votes">')[0]

    assert markup(committed) == markup(made)
