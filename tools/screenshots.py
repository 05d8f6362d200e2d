"""Pictures of the real page for the documents, with `python -m tools.screenshots`.

Starts a server with the default model and Chromium, asks for the same answers each time (seeds are fixed),
and writes docs/screenshots/*.png. Look at them before they are committed.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from loadtest.server_process import running_draftline
from tools.browser import Page, find_browser, start_browser

FOLDER = Path(__file__).parent.parent / "docs" / "screenshots"
_QUESTION = (
    "Repeat this list word for word:\n1. apples from the north garden\n2. pears from the south garden\n"
    "3. plums from the old orchard"
)


def _ask(page: Page, text: str, **settings: object) -> None:
    for name, value in settings.items():
        page.set(f".settings [name={name}]", value)
    page.say(text)
    page.wait_for_answer()


def _provenance(page: Page) -> None:
    page.set(".settings select:not([name])", "Greedy")
    _ask(page, _QUESTION, seed=7, max_tokens=120, speculation="ngram")
    page.click("Same seed, same tokens?")
    page.one(".checked")
    page.click("Provenance", ".answer")
    page.one(".answer .cache")


def _distribution(page: Page) -> None:
    _ask(page, "Tell me about the sea in two sentences.", seed=5, max_tokens=60)
    page.click("Tokens", ".answer")
    page.nth(6, ".answer [role=option]").click()
    page.one(".bars")
    for label, value in (("temperature", 0.8), ("top-k", 40), ("top-p", 0.9), ("min-p", 0.02)):
        page.set(f".distribution input[aria-label='{label} slider']", value)
    page.driver.execute_script("document.querySelector('.answer').scrollIntoView()")


def _tokens(page: Page) -> None:
    page.one("[role=option]")
    page.click("Surprise")
    page.one(".sum")


def _attention(page: Page) -> None:
    page.one(".triangle")
    page.set("input[type=range]", 10)
    page.wait(lambda: "Layer 10" in page.text(), "the layer")


def _server(page: Page) -> None:
    page.run(
        "for (let number = 0; number < 12; number += 1) {"
        "  const prompt = `Once upon a time ${number % 4} there`;"
        "  const body = { prompt, max_tokens: 300, ignore_eos: true };"
        "  setTimeout(() => fetch('v1/completions', { method: 'POST', body: JSON.stringify(body),"
        "    headers: { 'Content-Type': 'application/json' } }), 900 * number); }"
    )
    page.wait(lambda: len(page.all("tbody tr")) > 1, "requests")
    page.run("await new Promise((done) => setTimeout(done, 9000));")


_SHOTS: tuple[tuple[str, str, bool, Callable[[Page], None], int], ...] = (
    ("provenance", "chat", False, _provenance, 640),
    ("distribution", "chat", True, _distribution, 900),
    ("tokens", "tokens", False, _tokens, 420),
    ("attention", "attention", False, _attention, 820),
    ("server", "server", True, _server, 700),
)


def main() -> None:
    """Take every picture."""
    paths = find_browser()
    if paths is None:
        raise SystemExit("no Chromium with chromedriver here: apt-get install chromium chromium-driver")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as profile,
        running_draftline("smollm2-135m-instruct", 18437, "--enable-attention") as server,
    ):
        driver = start_browser(paths, Path(profile))
        try:
            for name, view, is_dark, prepare, height in _SHOTS:
                page = Page(driver, server.spec.base_url)
                page.open(view, width=1200, height=height, is_dark=is_dark)
                prepare(page)
                page.run("await new Promise((done) => setTimeout(done, 300));")
                driver.save_screenshot(str(FOLDER / f"{name}.png"))
                print(FOLDER / f"{name}.png")
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
