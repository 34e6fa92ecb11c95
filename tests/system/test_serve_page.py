"""The page of ``imitkd-serve`` in a real browser."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browser import set_screen
from tests.helpers.served_model import server


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with server() as (_, address):
        yield address


class Page:
    """The page as a person sees and uses it."""

    def __init__(self, browser: Any, address: str):
        self.browser = browser
        self.set_screen()
        browser.get_log("browser")  # drop earlier messages
        browser.get(address)
        self.until(lambda: self.text("languages") != "Translate")

    def set_screen(self, width: int = 1200, scheme: str = "light") -> None:
        set_screen(self.browser, width, scheme)

    def at(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def text(self, name: str) -> str:
        return self.at(name).text

    def ask(self, text: str, press: str = "") -> None:
        """Replace the text, then press the button or these keys."""
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
        """Return the browser's errors: in scripts, missing files, violations of the security policy."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    made = Page(browser, address)
    yield made
    assert made.complaints() == []


def test_it_shows_the_model(page: Page) -> None:
    """Its languages, engine, quantisation, size and limits."""
    assert page.text("languages") == page.browser.title == "German to English"
    assert (page.text("source-language"), page.text("target-language")) == ("German", "English")
    assert page.text("model").split("\n")[:3] == ["ctranslate2", "int8", "6.5M parameters"]
    assert page.text("limits") == "At most 1,000 lines at once and 100 tokens per line."
    assert (page.at("source").get_attribute("lang"), page.at("result").get_attribute("lang")) == ("de", "en")


@pytest.mark.parametrize("press", ["", "\ue009\ue007"], ids=["button", "Ctrl+Enter"])
def test_it_translates_line_by_line(page: Page, press: str) -> None:
    """Empty lines stay empty, the time is shown, and the keyboard is enough."""
    page.ask("ein Hund\n\nzwei <b>Hunde</b>\n", press)
    page.until(lambda: page.text("status").startswith("3 lines, "))
    lines = [line.text for line in page.at("result").find_elements("tag name", "p")]
    assert lines == ["EIN HUND", "", "ZWEI <B>HUNDE</B>"]
    seconds = page.text("status").removeprefix("3 lines, 27 tokens in ").removesuffix(" s")
    assert float(seconds) >= 0
    assert not page.at("error").is_displayed()


def test_it_copies_the_translation(page: Page) -> None:
    """It copies all lines. Without a translation the button is hidden."""
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
    """The server's message replaces an old translation; the next translation removes it."""
    page.ask("a")
    page.until(lambda: page.text("result") == "A")
    for text, error in (
        ("a\n" + "b" * 100, "Sentence 2 has 101 tokens, but may have 100; split it"),
        ("", "There is nothing to translate; send a sentence that is not empty"),
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


def test_it_reports_that_the_server_is_gone(browser: Any) -> None:
    """The message is not "Failed to fetch"."""
    with server() as (process, address):
        page = Page(browser, address)
        process.kill()
        process.communicate()  # returns when the pipes are closed: then the server has ended
        page.ask("a")
        page.until(lambda: page.text("error") == "The server does not answer. Is it still running?")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1200, 2560])
def test_it_fits(page: Page, width: int, scheme: str, tmp_path: Path) -> None:
    """Nothing is wider than the screen, and the colour scheme is followed."""
    page.set_screen(width, scheme)
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
    """Text has a contrast of at least 4.5, as WCAG 2.2 requires, light and dark."""
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
        const texts = [...document.querySelectorAll("body *")].filter((part) => part.getClientRects().length
        &&
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
        page.set_screen(1200, scheme)
        found = page.browser.execute_script(script)
        assert len(found) > 15
        assert [(part, contrast) for part, contrast in found if contrast < 4.5] == []


def test_every_control_has_a_name(page: Page) -> None:
    """Screen readers need one."""
    page.ask("a")
    page.until(lambda: page.text("result") == "A")
    page.browser.execute_script("document.querySelector('details').open = true")
    controls = page.browser.find_elements("css selector", "textarea, button, a, summary, #result")
    names = [control.accessible_name for control in controls]
    assert names == [
        "German one sentence per line",
        "Translate",
        "English",
        "Copy",
        "Use from a program",
        "health",
        "metrics",
    ]
    assert page.at("error").get_attribute("role") == "alert"
    assert page.at("result").get_attribute("aria-live") == "polite"
