"""The real default model behind a server process, and one Chromium, for all tests of the page."""

import os
from collections.abc import Iterator

import httpx
import pytest

from loadtest.server_process import running_draftline
from tests.ports import free_port
from tools.browser import Page, find_browser, start_browser

_REQUIRED = "REQUIRE_BROWSER"


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    paths = find_browser()
    if paths is None:
        message = "no Chromium with chromedriver here: apt-get install chromium chromium-driver"
        if os.environ.get(_REQUIRED):
            pytest.fail(f"{message}; {_REQUIRED} is set")
        pytest.skip(message)
    driver = start_browser(paths, tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def server() -> Iterator[httpx.Client]:
    """A server of the default model that drafts for itself, so that every source of tokens is seen."""
    model = "smollm2-135m-instruct"
    with (
        running_draftline(model, free_port(), "--enable-attention", "--max-model-len", "2048") as process,
        httpx.Client(base_url=process.spec.base_url, timeout=60) as client,
    ):
        yield client


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    """The playground of the real model; the test fails if the page complained of anything."""
    page = Page(browser, str(server.base_url).rstrip("/"))
    page.requested()
    browser.get_log("browser")
    yield page
    page.check_nothing_went_wrong()
