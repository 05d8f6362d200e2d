"""The page as a whole: nothing foreign, nothing executed, readable for all at every width; keys; charts."""

import json
from pathlib import Path

import httpx
import pytest

from tests.browser.test_chat import use
from tests.fakes import FakeEngine, Script
from tests.server.harness import serving
from tools.browser import Page

VIEWS = ["chat", "completion", "tokens", "attention", "server"]
AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
KEY = "a-key-for-the-page"

HOSTILE = r"""<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">
<svg onload="window.hacked=3">
![picture](http://evil.invalid/a.png) [go](javascript:window.hacked=4) [out](http://evil.invalid/b "x")
<iframe src="http://evil.invalid/c"></iframe><style>body{display:none}</style>
<form action="http://evil.invalid/d"><input></form>
<a href="http://evil.invalid/e" style="position:fixed" onclick="window.hacked=5">x</a> **bold** `code`
<link rel=stylesheet href=http://evil.invalid/f><meta http-equiv=refresh content="0;url=http://evil.invalid/g">
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.hacked=6&gt;">
<https://evil.invalid/h> ![ref][1]

[1]: http://evil.invalid/i.png

```html
<script>window.hacked = 7</script>
```
"""


def open_with_answers(page: Page, view: str) -> None:
    """Open a view with something in it."""
    if view == "chat":
        use(page, max_tokens=12, temperature=0)
        page.say("Say hello to the reader.")
        page.wait_for_answer()
        page.click("Provenance", ".answer")
        page.nth(1, "[aria-label='Tokens of the answer'] [role=option]").click()
        page.wait(lambda: page.all(".bars"), "the bars")
    elif view == "completion":
        use(page, max_tokens=8)
        page.click("Generate")
        page.click("Surprise", ".answer")
        page.one(".sum")
    elif view == "server":
        page.wait(lambda: page.all(".u-wrap"), "charts")
    else:
        page.wait(lambda: page.all("[role=option]"), "tokens")


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_serious(page, view, is_dark):
    page.open(view, is_dark=is_dark)
    open_with_answers(page, view)
    page.driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    try:
        page.driver.execute_script(AXE.read_text())
        found = page.run("return (await axe.run(document, { resultTypes: ['violations'] })).violations")
    finally:
        page.driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})
    serious = [
        (one["id"], one["help"], [node["html"][:200] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious, serious


@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_the_window(page, view, width):
    page.open(view, width=width, height=800)
    open_with_answers(page, view)
    widest = page.driver.execute_script("return document.scrollingElement.scrollWidth")
    assert widest <= width


def test_a_hostile_answer_executes_and_fetches_nothing(browser):
    steps = [[byte] for byte in HOSTILE.encode()]
    engine = FakeEngine(lambda request: Script(steps=tuple(tuple(step) for step in steps)))
    with serving(engine) as server:
        page = Page(browser, server.url)
        page.requested()
        page.open()
        page.say(HOSTILE)
        page.wait_for_answer()
        assert page.driver.execute_script("return window.hacked") is None
        for selector in (
            "script:not([src])",
            "img",
            "iframe",
            "svg",
            "style",
            "form:not(.composer)",
            "input:not(.side input)",
            "math",
            "link[href*=evil]",
        ):
            assert not page.all(f"main {selector}"), selector
        for link in page.all(".markdown a"):
            assert (link.get_attribute("href") or "http://").startswith(("http://", "https://"))
            assert link.get_attribute("rel") == "noopener noreferrer nofollow"
            assert not link.get_attribute("style")
        assert page.one(".markdown strong").text == "bold"
        assert "<script>window.hacked = 1</script>" in page.one(".markdown").text
        assert page.one(".message.is-user p").text.startswith("<script>")
        page.check_nothing_went_wrong()


@pytest.mark.parametrize("name", ["toFragment"])
def test_markdown_of_a_model_is_elements_without_handlers(page, name):
    page.open()
    kept = page.run(
        f"const {{ {name} }} = await import('/static/playground/markdown.js');"
        "const box = document.createElement('div'); box.append(toFragment(args[0]));"
        "return Array.from(box.querySelectorAll('*'), (one) => [one.localName, one.getAttributeNames()]);",
        HOSTILE,
    )
    assert {tag for tag, _ in kept} <= {"a", "br", "code", "p", "pre", "strong"}
    names = {attribute for _, attributes in kept for attribute in attributes}
    assert names <= {"href", "target", "rel", "tabindex"}


def test_the_key_is_asked_for_and_stays_in_the_tab(browser):
    with serving(FakeEngine(), keys=[KEY]) as server:
        page = Page(browser, server.url)
        page.open()
        page.type("#key", "wrong")
        page.click("Open")
        page.wait(lambda: "does not know this key" in page.text(), "the refusal")
        page.type("#key", KEY)
        page.click("Open")
        page.wait(lambda: page.all(".composer"), "the chat")
        page.say("hi")
        page.wait_for_answer()
        assert KEY not in json.dumps(page.stored())
        page.click("Export")
        assert KEY not in page.one(".export").text
        assert "Bearer $DRAFTLINE_API_KEY" in page.one(".export").text
        page.click("Close", "dialog")
        page.reload()
        page.wait(lambda: page.all(".composer"), "the chat, with the key of this tab")
        browser.execute_script("sessionStorage.clear()")
        page.reload()
        page.one("#key")
        page.check_nothing_went_wrong(allowed=("401",))


def test_the_server_view_counts_what_runs_and_ends_it(page, server):
    page.open("server")
    url = f"{page.url}/v1/completions"
    body = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", url, json=body, headers={"x-request-id": "to-be-ended"}, timeout=60) as reply:
        lines = reply.iter_lines()
        next(lines)
        page.wait(lambda: page.one("[data-metric=running]").text == "1", "the running request")
        page.wait(lambda: page.one("[data-metric=generated]").text not in ("\u2013", "0"), "tokens a second")
        page.click("Cancel to-be-ended")
        rest = "\n".join(lines)
    assert "request_cancelled" in rest
    page.wait(lambda: page.one("[data-metric=running]").text == "0", "it to be gone")


def test_prometheus_text_is_read_as_it_is_written(page, server):
    page.open("server")
    text = server.get("/metrics").text
    found = page.run(
        "const { parseMetrics, quantile, between } = await import('/static/playground/metrics.js');"
        "const now = parseMetrics(args[0]); const none = new Map();"
        "return [now.get('generation_tokens_total'), "
        "  quantile(none, now, 'time_to_first_token_seconds', 0.5), between(none, now, 2)];",
        text,
    )
    tokens = next(
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("draftline_generation_tokens_total")
    )
    assert found[0] == tokens
    assert found[2]["generated"] == tokens / 2
    assert found[1] is None or found[1] > 0


def test_the_theme_is_chosen_and_kept(page):
    page.open()

    def ground():
        return page.driver.execute_script("return getComputedStyle(document.documentElement).backgroundColor")

    light = ground()
    page.click("Dark")
    page.wait(lambda: ground() != light, "another ground")
    dark = ground()
    page.reload()
    page.wait(lambda: ground() == dark, "the same ground")
    page.click("Light")
    page.wait(lambda: ground() == light, "the first ground")
