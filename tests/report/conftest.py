"""A browser that opens pages without a network, and looks for complaints."""

import os
import shutil

import pytest

from ldjax.report.page import write_page


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        assert "CI" not in os.environ, "CI has to have Chromium"
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        options = {"executable_path": chromium, "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**options)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens the page of some runs, at an address in it."""
    requests, complaints, contexts = [], [], []
    path = tmp_path / "page.html"

    def opened(runs, at="", **options):
        write_page(runs, path)
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri() + at)
        page.wait_for_selector("html[data-drawn-ms]", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    # What a page makes itself it may also load: a drawing that becomes a picture.
    fetched = [url for url in requests if not url.startswith(("data:", "blob:"))]
    assert [url.partition("#")[0] for url in fetched] == [path.as_uri()] * len(contexts)
