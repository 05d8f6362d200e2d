"""A page of the real server in real headless Chromium, and what must hold of every page at its end."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
)
_T = TypeVar("_T")
_STORE = "draftline.playground.1"


def find_browser() -> tuple[str, str] | None:
    """Return where Chromium and its driver are, None where there are none."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return None if browser is None or driver is None else (browser, driver)


def start_browser(paths: tuple[str, str], profile: Path) -> webdriver.Chrome:
    """Start Chromium with an empty profile, its console and its network recorded."""
    options = webdriver.ChromeOptions()
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.binary_location = paths[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(paths[1]))


class Page:
    """The playground in a tab, found by what people see: names of buttons, labels, text."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(
        self, view: str = "chat", *, width: int = 1280, height: int = 900, is_dark: bool = False
    ) -> None:
        """Load a view with nothing remembered."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/#{view}")
        self.driver.execute_script("localStorage.clear(); Storage.prototype.setItem = () => {}")
        self.driver.refresh()
        self.wait(lambda: self.all("main > *:not(h1)"), "the view")

    def reload(self) -> None:
        """Load the page anew, as it is remembered."""
        self.driver.execute_script("dispatchEvent(new Event('pagehide'))")
        self.driver.refresh()
        self.wait(lambda: self.all("main > *:not(h1)"), "the view")

    def resize(self, width: int, height: int) -> None:
        """Have a window of so many CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """Wait for an element and return it."""
        return self.wait(lambda: self.all(selector), selector)[0]

    def wait(self, condition: Callable[[], _T], what: str, *, seconds: float = 60.0) -> _T:
        """Return what `condition` returns once that is true."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if value := condition():
                    return value
            except StaleElementReferenceException:
                pass  # rendered anew meanwhile
            assert time.monotonic() < deadline, f"waited for {what}; the page says: {self.text()[-1500:]}"
            time.sleep(0.03)

    def nth(self, number: int, selector: str = "[role=option]") -> WebElement:
        """Wait for so many elements, tokens by default, and return the one of this number, from 0."""
        self.wait(lambda: len(self.all(selector)) > number, f"{number + 1} of {selector}")
        return self.all(selector)[number]

    def text(self) -> str:
        """Return what the page says."""
        return self.one("body").text

    def button(self, name: str, within: str = "") -> WebElement:
        """Wait for a button of this text or label, the last one where there are several."""

        def found() -> list[WebElement]:
            buttons = self.all(f"{within} button")
            return [
                one
                for one in buttons
                if name in (one.text.strip(), one.get_attribute("aria-label")) and one.is_enabled()
            ]

        return self.wait(found, f"the button {name!r}")[-1]

    def click(self, name: str, within: str = "") -> None:
        """Click a button."""

        def try_to_click() -> bool:
            self.button(name, within).click()
            return True

        self.wait(try_to_click, f"clicking {name!r}")

    def type(self, selector: str, text: str) -> None:
        """Replace what a field holds."""
        element = self.one(selector)
        element.clear()
        element.send_keys(text)

    def set(self, selector: str, value: object) -> None:
        """Give a field a value as an input event would."""
        script = (
            "const [field, value] = arguments;"
            "Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), 'value').set.call(field, value);"
            "field.dispatchEvent(new Event('input', { bubbles: true }));"
            "field.dispatchEvent(new Event('change', { bubbles: true }));"
        )
        self.driver.execute_script(script, self.one(selector), str(value))

    def say(self, text: str) -> None:
        """Send a chat message."""
        self.set(".composer textarea", text)
        self.click("Send", ".composer")

    def wait_for_answer(self, number: int = 1) -> None:
        """Wait until so many answers are complete."""
        done = ".answer:not([data-finish-reason='']) .figures"
        self.wait(
            lambda: len(self.all(done)) >= number and self.all(".composer button[type=submit]"), "an answer"
        )

    def stored(self) -> Any:
        """Return what the page remembers."""
        self.driver.execute_script("dispatchEvent(new Event('pagehide'))")
        return json.loads(self.driver.execute_script(f"return localStorage.getItem('{_STORE}')"))

    def answers(self, place: int = -1) -> list[Any]:
        """Return the variants of a message of the conversation that is shown."""
        stored = self.stored()
        [conversation] = [one for one in stored["conversations"] if one["id"] == stored["current"]] or [
            stored["conversations"][0]
        ]
        variants: list[Any] = conversation["messages"][place]["variants"]
        return variants

    def run(self, script: str, *arguments: object) -> Any:
        """Run the body of an async function and return its value; raises AssertionError with its error."""
        wrapped = (
            "const [args, done] = [Array.from(arguments).slice(0, -1), arguments[arguments.length - 1]];"
            f"(async () => {{ {script} }})()"
            ".then((value) => done({ value }), (error) => done({ error: error.stack }));"
        )
        result = self.driver.execute_async_script(wrapped, *arguments)
        assert "error" not in result, result["error"]
        return result.get("value")

    def check_nothing_went_wrong(self, allowed: tuple[str, ...] = ()) -> None:
        """Fail for an error of the console, a violation of the policy, or a request to another host."""
        entries = [entry["message"] for entry in self.log("browser") if entry["level"] == "SEVERE"]
        wrong = [message for message in entries if not any(part in message for part in allowed)]
        assert not wrong, wrong
        hosts = {urlsplit(url).netloc for url in self.requested() if not url.startswith(("data:", "about:"))}
        assert hosts <= {urlsplit(self.url).netloc}, hosts

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Return what the console (`browser`) or the network (`performance`) noted since it was asked."""
        entries: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return entries

    def requested(self) -> list[str]:
        """Return the addresses of all requests since it was asked last."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
