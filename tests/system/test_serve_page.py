"""The page of ``imitkd-serve`` in a real browser."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browser import see
from tests.helpers.served_model import server


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with server() as (_, address):
        yield address


class Page:
    """What a person sees and does."""

    def __init__(self, browser: Any, address: str):
        self.browser = browser
        self.see()
        browser.get_log("browser")  # what was before
        browser.get(address)
        self.until(lambda: self.text("languages") != "Translate")

    def see(self, width: int = 1200, scheme: str = "light") -> None:
        see(self.browser, width, scheme)

    def at(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def text(self, name: str) -> str:
        return self.at(name).text

    def ask(self, text: str, press: str = "") -> None:
        """Type it in place of what was there, and press the button, or these keys."""
        self.at("source").clear()
        self.at("source").send_keys(text)
        if press:
            self.at("source").send_keys(press)
        else:
            self.at("translate").click()

    def until(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, self.browser.find_element("tag name", "body").text
            time.sleep(0.02)

    def complaints(self) -> list[str]:
        """Of the browser: errors in scripts, files that are not there, what the security policy forbids."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    made = Page(browser, address)
    yield made
    assert made.complaints() == []


def test_it_shows_the_model(page: Page) -> None:
    """Its languages, engine, quantisation, size, and what it can take."""
    assert page.text("languages") == page.browser.title == "German to English"
    assert (page.text("source-language"), page.text("target-language")) == ("German", "English")
    assert page.text("model").split("\n")[:3] == ["ctranslate2", "int8", "6.5M parameters"]
    assert page.text("limits") == "At most 1,000 lines at once, and 100 tokens a line."
    assert (page.at("source").get_attribute("lang"), page.at("result").get_attribute("lang")) == ("de", "en")


@pytest.mark.parametrize("press", ["", "\ue009\ue007"], ids=["button", "Ctrl+Enter"])
def test_it_translates_line_by_line(page: Page, press: str) -> None:
    """An empty line stays one; beside it is how long that took; the keyboard is enough."""
    page.ask("ein Hund\n\nzwei <b>Hunde</b>\n", press)
    page.until(lambda: page.text("status").startswith("3 lines, "))
    lines = [line.text for line in page.at("result").find_elements("tag name", "p")]
    assert lines == ["EIN HUND", "", "ZWEI <B>HUNDE</B>"]
    seconds = page.text("status").removeprefix("3 lines, 27 tokens in ").removesuffix(" s")
    assert float(seconds) >= 0
    assert not page.at("error").is_displayed()


def test_it_copies_the_translation(page: Page) -> None:
    """All lines of it; before there are any there is no button."""
    assert not page.at("copy").is_displayed()
    page.ask("a\nb")
    page.until(lambda: page.at("copy").is_displayed())
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.at("copy").click()
    page.until(lambda: page.text("copy") == "Copied")
    assert page.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])") == "A\nB"


def test_it_shows_errors_and_goes_on(page: Page) -> None:
    """In the server's words, in place of an old translation; the next one takes them away."""
    page.ask("a")
    page.until(lambda: page.text("result") == "A")
    for text, error in (
        ("a\n" + "b" * 100, "Sentence 2 has 101 tokens, but may have 100: split it"),
        ("", "There is nothing to translate: send a sentence that is not empty"),
        ("fail", "The model failed on this request; the server's log has the reason"),
    ):
        page.ask(text)
        page.until(lambda error=error: page.at("error").is_displayed() and page.text("error") == error)
        assert page.text("result") == page.text("status") == ""
        assert not page.at("copy").is_displayed()
        assert page.at("translate").is_enabled()
    assert len(page.complaints()) == 3  # a browser reports every answer that is an error
    page.ask("b")
    page.until(lambda: page.text("result") == "B")
    assert not page.at("error").is_displayed()


def test_it_says_that_the_server_is_gone(browser: Any) -> None:
    """Not "Failed to fetch"."""
    with server() as (process, address):
        page = Page(browser, address)
        process.kill()
        process.wait()
        page.ask("a")
        page.until(lambda: page.text("error") == "The server does not answer. Is it still running?")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1200, 2560])
def test_it_fits(page: Page, width: int, scheme: str, tmp_path: Path) -> None:
    """No part is wider than the screen, whatever is in it; and light is light and dark is dark."""
    page.see(width, scheme)
    page.ask("w" * 90)
    page.until(lambda: page.text("result") == "W" * 90)
    page.at("source").send_keys("\ue009a")
    page.browser.execute_script("document.querySelector('details').open = true")
    wide = """return [...document.querySelectorAll("body *:not(pre *)")].filter(
        (part) => part.getBoundingClientRect().right > innerWidth + 1).map((part) => part.outerHTML)"""
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert page.browser.execute_script(wide) == []
    colours = page.browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    )
    background, ink = (sum(map(int, colour.strip("rgb()").split(","))) for colour in colours)
    assert (background > ink) == (scheme == "light")


def test_contrast(page: Page) -> None:
    """Of text with what it is on: at least 4.5, as WCAG 2.2 asks for; light and dark."""
    script = """
        const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        const light = (colour) => {
          canvas.fillStyle = colour;
          canvas.fillRect(0, 0, 1, 1);
          const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255).map(
            (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const under = (part) => {
          const colour = getComputedStyle(part).backgroundColor;
          return colour === "rgba(0, 0, 0, 0)" ? under(part.parentElement) : colour;
        };
        const texts = [...document.querySelectorAll("body *")].filter((part) => part.getClientRects().length &&
          [...part.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
        return texts.map((part) => {
          const [a, b] = [light(getComputedStyle(part).color), light(under(part))];
          return [part.outerHTML, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
        });"""
    page.ask("fail")
    page.until(lambda: page.at("error").is_displayed())
    page.complaints()
    page.browser.execute_script("document.querySelector('details').open = true")
    for scheme in ("light", "dark"):
        page.see(1200, scheme)
        found = page.browser.execute_script(script)
        assert len(found) > 15
        assert [(part, contrast) for part, contrast in found if contrast < 4.5] == []


def test_every_control_has_a_name(page: Page) -> None:
    """For those who hear the page instead of seeing it."""
    page.ask("a")
    page.until(lambda: page.text("result") == "A")
    page.browser.execute_script("document.querySelector('details').open = true")
    controls = page.browser.find_elements("css selector", "textarea, button, a, summary, #result")
    names = [control.accessible_name for control in controls]
    assert names == [
        "German a sentence a line",
        "Translate",
        "English",
        "Copy",
        "From a program",
        "health",
        "metrics",
    ]
    assert page.at("error").get_attribute("role") == "alert"
    assert page.at("result").get_attribute("aria-live") == "polite"
