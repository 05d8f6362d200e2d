"""The attention view: the server's own weights, and what it says where there are none."""

import json

import pytest

from tests.fakes import FakeEngine
from tests.server.harness import serving
from tools.browser import Page


def test_attention_is_the_servers_and_its_rows_end_at_the_diagonal(page, server):
    page.open("attention")
    page.set("textarea", "The cat sat on the mat")
    page.set("input[type=range]", 2)
    reply = server.post("/v1/attention", json={"prompt": "The cat sat on the mat", "layer": 2}).json()
    page.wait(lambda: "Layer 2, head 0" in page.text(), "the layer")
    page.wait(lambda: len(page.all("[role=option]")) == len(reply["tokens"]), "the tokens")
    assert len(page.all(".heads button")) == reply["num_heads"]
    page.click("head 3")
    page.all("[role=option]")[4].click()
    row = reply["attention"][3][4]
    assert len(row) == 5
    page.wait(lambda: page.all("[aria-selected=true]") == [page.all("[role=option]")[4]], "the token")
    weights = page.run(
        "return Array.from(document.querySelectorAll('[role=option]'), "
        "  (one) => Number(one.style.getPropertyValue('--weight')));"
    )
    assert weights == pytest.approx([*row, *[0] * (len(reply["tokens"]) - 5)])
    strongest = max(range(5), key=row.__getitem__)
    assert json.dumps(reply["tokens"][strongest]["text"]) in page.one(".strongest li").text


def test_a_server_without_attention_says_which_flag_turns_it_on(browser):
    with serving(FakeEngine()) as server:
        page = Page(browser, server.url)
        page.open("attention")
        page.wait(lambda: "--enable-attention" in page.text(), "the flag")
        browser.get_log("browser")
