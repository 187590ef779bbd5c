"""The browser of the tests that look at a page."""

import shutil

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")

needed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
