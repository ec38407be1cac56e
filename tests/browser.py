"""Opens pages in Chromium, which is driven by Playwright."""

import contextlib
import shutil

import pytest

HEIGHTS = {1280: 800, 390: 844}  # of a laptop's screen and of a phone's, by width


@contextlib.contextmanager
def chromium():
    """The system's Chromium; the test is skipped where there is none, or no Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, nor in most containers.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, path, width=1280, color_scheme="light", **options):
    """The page of a file; an error in a script, or a request for another address, is an error."""
    context = browser.new_context(
        viewport={"width": width, "height": HEIGHTS[width]},
        color_scheme=color_scheme,
        has_touch=width == 390,
        is_mobile=width == 390,
        **options,
    )
    page, errors, requests = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.resolve().as_uri())
    yield page
    assert not errors
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests), requests
    context.close()
