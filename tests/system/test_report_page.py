"""The page of ``imitkd-report`` in a real browser."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairseq_imitkd.cli import report
from tests.helpers import report_files
from tests.helpers.browser import set_screen

RUNS = 10
LONG = "a_name_that_is_very_long_and_has_nowhere_to_break_because_somebody_put_all_settings_in_it"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of ten runs and a note. One run has a very long name."""
    folder = tmp_path_factory.mktemp("report")
    runs = [
        report_files.run(
            folder / (f"m{seed}" if seed else LONG),
            updates=range(20, 20_001, 20),
            seed=seed,
            rollouts=seed > 1,
            from_log=seed == 3,
        )
        for seed in range(RUNS)
    ]
    evaluation = report_files.evaluation(folder / "evaluation", RUNS, sentences=200)
    texts = (evaluation / "m9.greedy.txt").read_text().splitlines()
    (evaluation / "m9.greedy.txt").write_text(
        "".join(f"{text}\n" for text in ["w" * 3000, "<b>bold</b> " * 300, *texts[2:]])
    )
    arguments = [*runs, folder / "gone", "--evaluation", evaluation, "--out", folder / "report.html"]
    with pytest.raises(SystemExit, match="1"):  # a folder is missing; the page is written all the same
        report.main(list(map(str, arguments)))
    return folder / "report.html"


class Page:
    """The page as a person sees it."""

    def __init__(self, browser: Any, path: Path):
        self.browser = browser
        self.set_screen()
        browser.get_log("browser")  # drop earlier messages
        browser.get(path.as_uri())

    def set_screen(self, width: int = 1200, scheme: str = "light") -> None:
        set_screen(self.browser, width, scheme)

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def open_all(self) -> None:
        self.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def page(browser: Any, written: Path) -> Iterator[Page]:
    made = Page(browser, written)
    yield made
    assert made.complaints() == []


def test_it_is_small_and_opens_at_once(page: Page, written: Path) -> None:
    """With ten runs it has less than 3 MB, opens in less than 2 seconds, and loads no other file."""
    assert written.stat().st_size < 3e6
    page.run("return document.body.offsetHeight")  # laid out
    timing = page.run("return performance.getEntriesByType('navigation')[0].toJSON()")
    assert 0 < timing["loadEventEnd"] < 2000
    assert page.run("return performance.getEntriesByType('resource').map((each) => each.name)") == []


def test_figures_are_drawn(page: Page) -> None:
    """Each figure has visible lines, and its text is within it."""
    script = """
        return [...document.querySelectorAll("figure svg")].map((svg) => {
          const frame = svg.getBoundingClientRect();
          const seen = [...svg.querySelectorAll("path")].filter((path) => !path.closest("defs") &&
            getComputedStyle(path).stroke !== "none" && path.getTotalLength() > 10);
          const out = [...svg.querySelectorAll("text")].filter((text) => {
            const box = text.getBoundingClientRect();
            return box.left < frame.left - 1 || box.right > frame.right + 1 ||
              box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
          });
          const outside = out.map((text) => text.textContent);
          return [svg.getAttribute("aria-label"), frame.width, frame.height, seen.length, outside];
        });"""
    found = page.run(script)
    assert len(found) == 5 + 3 + 10
    for label, width, height, lines, out in found:
        assert label
        assert width > 250, label
        assert height > 150, label
        assert lines >= 8, label
        assert out == [], label


def test_labels_do_not_overlap(page: Page) -> None:
    """This holds in every figure with the browser's fonts."""
    script = """
        return [...document.querySelectorAll("figure svg")].flatMap((svg) => {
          const boxes = [...svg.querySelectorAll("text")].map(
            (text) => [text.textContent, text.getBoundingClientRect()]);
          return boxes.flatMap(([name, a], i) => boxes.slice(i + 1).filter(([other, b]) =>
            Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
            Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4).map(([other]) => [name, other]));
        });"""
    assert page.run(script) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1200, 2560])
def test_it_fits(page: Page, width: int, scheme: str) -> None:
    """Only boxes with their own scroll bar are wider than the screen. The colour scheme is followed."""
    page.set_screen(width, scheme)
    page.open_all()
    wide = """return [...document.querySelectorAll("body *")].filter((part) =>
        !part.parentElement.closest(".scroll, pre") &&
        part.getBoundingClientRect().right > innerWidth + 1).map((part) => part.outerHTML.slice(0, 300))"""
    assert page.run("return document.documentElement.scrollWidth") <= width
    assert page.run(wide) == []
    colours = page.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
    background, ink = (sum(map(int, colour.strip("rgb()").split(","))) for colour in colours)
    assert (background > ink) == (scheme == "light")


def test_a_phone_shows_the_models_to_serve_first(page: Page) -> None:
    """Other parts are closed, so the page has a third of its height at most; a wide screen shows all."""
    shown = """return [...document.querySelectorAll(".part")].map(
        (part) => part.getBoundingClientRect().height > 150)"""
    height = "return document.documentElement.scrollHeight"
    assert all(page.run(shown)[:-1])
    page.set_screen(390)
    short = page.run(height)
    assert not any(page.run(shown))
    first = page.run("return document.querySelector('.card').classList.contains('served')")
    assert first
    page.run("document.querySelectorAll('.part').forEach((part) => { part.open = true; })")
    assert short < page.run(height) / 3


def test_contrast(page: Page) -> None:
    """Text has a contrast of at least 4.5, as WCAG 2.2 requires, in figures too, light and dark."""
    script = """
        const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        const known = {};
        const light = (colour) => known[colour] ??= (() => {
          canvas.fillStyle = colour;
          canvas.fillRect(0, 0, 1, 1);
          const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255).map(
            (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        })();
        const under = (part) => {
          const colour = getComputedStyle(part).backgroundColor;
          return colour === "rgba(0, 0, 0, 0)" ? under(part.parentElement) : colour;
        };
        const texts = [...document.querySelectorAll("body *")].filter((part) =>
          part.getClientRects().length &&
          [...part.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
        return texts.map((part) => {
          const style = getComputedStyle(part);
          const [a, b] = [light(part instanceof SVGElement ? style.fill : style.color), light(under(part))];
          return [part.outerHTML.slice(0, 200), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
        });"""
    page.open_all()
    for scheme in ("light", "dark"):
        page.set_screen(1200, scheme)
        found = page.run(script)
        assert len(found) > 1000
        assert sum(html.startswith("<text") for html, _ in found) > 150
        assert [(part, contrast) for part, contrast in found if contrast < 4.5] == []


def test_differences_are_seen_without_colours(page: Page) -> None:
    """Extra words are underlined. Missing words are struck through and can be hidden. Markup in translations
    is escaped.
    """
    page.open_all()  # Selenium takes the content of closed parts for hidden, although a wide screen shows it
    decorations = """return ["ins", "del"].map((name) =>
        getComputedStyle(document.querySelector(`article ${name}`)).textDecorationLine)"""
    assert page.run(decorations) == ["underline", "line-through"]
    assert page.run("return document.querySelectorAll('#examples article b').length") == 0
    assert len(page.browser.find_elements("css selector", "#examples article")) == 12
    assert page.browser.find_element("css selector", "article del").is_displayed()
    page.browser.find_element("id", "missing").click()
    assert not page.browser.find_element("css selector", "article del").is_displayed()


def test_everything_has_a_name(page: Page) -> None:
    """Screen readers need names for figures, tables and scrolling boxes. Levels of headings fall in steps of
    one.
    """
    page.open_all()
    for part in page.browser.find_elements("css selector", "figure svg, .scroll, nav, section, input"):
        assert part.accessible_name, part.get_attribute("outerHTML")[:200]
    levels = page.run(
        "return [...document.querySelectorAll('h1, h2, h3')].map((each) => Number(each.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    best = page.browser.find_elements("css selector", "#models td.best")
    assert best
    assert all(cell.text.startswith("●") for cell in best)


def test_it_prints(page: Page) -> None:
    """The print is black on white for every colour scheme, and complete."""
    page.set_screen(1200, "dark")
    features = [{"name": "prefers-color-scheme", "value": "light"}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert page.run("return getComputedStyle(document.querySelector('nav')).display") == "none"
    printed = page.browser.execute_cdp_cmd("Page.printToPDF", {})
    assert len(printed["data"]) > 50_000


def test_it_works_without_scripts(browser: Any, written: Path) -> None:
    """The page has no scripts."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        made = Page(browser, written)
        assert len(browser.find_elements("css selector", "figure svg path")) > 100
        assert made.complaints() == []
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "<script" not in written.read_text()
