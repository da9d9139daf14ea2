"""Types and array shapes of gnomon.numerics and gnomon.theory are checked while the tests run, and only then; the browser that pages are looked at with."""

import os
import shutil

import jaxtyping
import pytest

# Before any test imports what is to be checked.
jaxtyping.install_import_hook(("gnomon.numerics", "gnomon.theory"), "checking.checked")

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def chromium():
    for place in (os.environ.get("GNOMON_CHROMIUM"), "/usr/bin/chromium", shutil.which("chromium"), shutil.which("chromium-browser"), shutil.which("google-chrome")):
        if place and os.access(place, os.X_OK):
            return place
    if os.environ.get("GNOMON_NO_BROWSER") == "1":
        pytest.skip("no browser, and GNOMON_NO_BROWSER=1")
    pytest.fail(
        "No Chromium to test the page in. Install one (apt-get install chromium), name it with GNOMON_CHROMIUM=/path/to/chromium, or skip these tests with GNOMON_NO_BROWSER=1."
    )


@pytest.fixture(scope="module")
def browser():
    """A Chromium, once a file."""
    place = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=place, args=ARGUMENTS)
        yield started
        started.close()
