"""Make the screenshots of ``docs/`` with headless Chromium.

    examples/quickstart/run.sh --validate-interval-updates 100 --eval-bleu \\
      --eval-bleu-args '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}' \\
      --best-checkpoint-metric bleu --maximize-best-checkpoint-metric
    examples/quickstart/report.sh
    examples/multi30k/export.sh scratch    # after its prepare.sh and student.sh
    imitkd-serve examples/multi30k/run/scratch/exported &
    python docs/screenshots.py --evaluation examples/multi30k/results.json \\
      --runs examples/quickstart/run/{teacher,scratch,continued,on_corpus,imitkd} \\
      --runs-evaluation examples/quickstart/run/evaluation --url http://127.0.0.1:8080

``report-quality.png``, ``report-speed.png`` and ``report-phone.png`` show ``--evaluation``,
``report-training.png`` shows ``--runs``, and ``serve-page.png`` shows ``--url``. A picture whose argument
is missing is not made.
The script needs chromium, chromedriver, and the packages of ``pip install .[dev]``.
"""

import argparse
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from fairseq_imitkd.cli import report
from fairseq_imitkd.evaluate.schema import FILE

HERE = Path(__file__).parent
GERMAN = "Ein Hund läuft am Strand.\nZwei Männer spielen Fußball im Park."
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--lang=en")
MARGIN = 12  # pixels
PATIENCE = 60  # seconds for the server's answers


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Start Chromium, and end it."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def open_page(browser: webdriver.Chrome, url: str, *, width: int, height: int, scheme: str = "light") -> None:
    """Open a page on a screen of this size.

    Args:
        browser: the browser.
        url: address of the page.
        width, height: size of the screen in pixels, which is the picture's.
        scheme: ``light`` or ``dark``.
    """
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    preferred = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": preferred})
    browser.get(url)


def picture(browser: webdriver.Chrome, path: Path) -> None:
    """Write what is on the screen."""
    browser.save_screenshot(str(path))
    print(path)


def make_report(folder: Path, runs: list[Path], evaluation: Path | None) -> str:
    """Make a report in a folder; return its address.

    Args:
        folder: empty folder.
        runs: folders of trainings.
        evaluation: folder of ``imitkd-evaluate``, or a JSON file: ``evaluation.json`` without the
            translations beside it, or a recipe's ``results.json``.
    """
    if evaluation and evaluation.is_file():
        content = json.loads(evaluation.read_text(encoding="utf-8"))
        content = content.get("evaluation", content)
        content.pop("files", None)  # the report would note that they are missing
        evaluation = folder
        (folder / FILE).write_text(json.dumps(content), encoding="utf-8")
    out = folder / "report.html"
    chosen = ["--evaluation", str(evaluation)] if evaluation else []
    report.main([*map(str, runs), *chosen, "--out", str(out)])
    return out.as_uri()


def quality(browser: webdriver.Chrome, url: str, out: Path) -> None:
    """Show the beginning of a report, on a wide screen and on a dark phone, and its figure of the speed."""
    open_page(browser, url, width=1280, height=1257)
    picture(browser, out / "report-quality.png")
    open_page(browser, url, width=390, height=1060, scheme="dark")
    picture(browser, out / "report-phone.png")
    open_page(browser, url, width=1280, height=712)
    scroll_to(browser, "#models figure")
    picture(browser, out / "report-speed.png")


def training(browser: webdriver.Chrome, url: str, out: Path) -> None:
    """Show a report's section about the trainings."""
    open_page(browser, url, width=1280, height=1274)
    scroll_to(browser, "#training")
    picture(browser, out / "report-training.png")


def scroll_to(browser: webdriver.Chrome, selector: str) -> None:
    """Scroll until an element is at the upper edge, with a margin."""
    browser.execute_script(
        "const top = document.querySelector(arguments[0]).getBoundingClientRect().top;"
        "scrollTo(0, scrollY + top - arguments[1]);",
        selector,
        MARGIN,
    )


def serving(browser: webdriver.Chrome, url: str, text: str, out: Path) -> None:
    """Show the server's page with a translation."""
    open_page(browser, url, width=1200, height=657)
    source = browser.find_element(By.ID, "source")
    source.send_keys(text)
    browser.find_element(By.ID, "translate").click()
    copy = browser.find_element(By.ID, "copy")
    WebDriverWait(browser, PATIENCE).until(lambda _: copy.is_displayed())
    source.click()
    picture(browser, out / "serve-page.png")


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    made = argparse.ArgumentParser(description=__doc__.split(".")[0])
    made.add_argument(
        "--evaluation",
        type=Path,
        help="folder of imitkd-evaluate, its JSON file, or results.json of a recipe",
    )
    made.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of trainings")
    made.add_argument("--runs-evaluation", type=Path, help="the same as --evaluation, of the runs' models")
    made.add_argument("--url", help="address of imitkd-serve")
    made.add_argument("--text", default=GERMAN, help="text to translate (default: two German sentences)")
    made.add_argument("--out", type=Path, default=HERE, help="folder for the pictures (default: docs/)")
    return made


def main() -> None:
    """Make the pictures that the arguments are enough for."""
    args = parser().parse_args()
    logging.basicConfig(level=logging.WARNING, force=True)
    with chromium() as browser, tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        if args.evaluation:
            quality(browser, make_report(Path(one), [], args.evaluation), args.out)
        if args.runs:
            training(browser, make_report(Path(other), args.runs, args.runs_evaluation), args.out)
        if args.url:
            serving(browser, args.url, args.text, args.out)


if __name__ == "__main__":
    main()
