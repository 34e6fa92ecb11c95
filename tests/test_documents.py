"""The project's Markdown: targets of links exist, and documents agree with the code."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest

from tests.helpers.digit_corpus import ENVIRONMENT, REPO

LISTED = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=REPO, capture_output=True, text=True, check=False
).stdout.split()
DOCUMENTS = LISTED or [str(path.relative_to(REPO)) for path in REPO.glob("*.md")]


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = REPO / document
    text = re.sub(
        r"^```.*?^```|^    .*?$|`[^`\n]*`",
        "",
        path.read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", name):
            continue
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def script(name: str) -> ModuleType:
    """Import a script of ``docs/`` as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", REPO / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wrong_commands_end_as_the_page_says() -> None:
    """``python docs/mistakes.py --write`` updates it. One process types them all."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", REPO / "docs" / "mistakes.py"],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    page = (REPO / "docs" / "mistakes.md").read_text(encoding="utf-8")
    assert page.count("\n| `imitkd") > 120
    assert done.stdout == page


class TestOneUpdate:
    """``docs/one-update.md`` agrees with the code."""

    PAGE = REPO / "docs" / "one-update.md"
    TEXT = PAGE.read_text(encoding="utf-8")

    def test_output_is_what_the_script_prints(self) -> None:
        """``python docs/one_update.py --write`` updates the page."""
        shown = re.findall(r"^```text\n(.*?)^```$", self.TEXT, re.MULTILINE | re.DOTALL)
        assert [block.rstrip("\n") for block in shown] == script("one_update").blocks()

    def test_quoted_lines_are_lines_of_the_package(self) -> None:
        """Each quoted line of Python is in a file that the page links to."""
        linked = {self.PAGE.parent / link for link in re.findall(r"\]\((\.\./[^)]+\.py)\)", self.TEXT)}
        lines = {line.strip() for path in linked for line in path.read_text(encoding="utf-8").splitlines()}
        quoted = re.findall(r"^```python\n(.*?)^```$", self.TEXT, re.MULTILINE | re.DOTALL)
        assert quoted
        assert [line for block in quoted for line in block.splitlines() if line.strip() not in lines] == []

    def test_linked_names_are_defined_in_the_linked_files(self) -> None:
        """The text of a link to a file is a name that the file defines."""
        links = re.findall(r"\[`([\w.]+)`\]\((\.\./fairseq_imitkd/[^)]+\.py)\)", self.TEXT)
        assert len(links) > 20
        missing = []
        for name, link in links:
            source = (self.PAGE.parent / link).read_text(encoding="utf-8")
            if not all(re.search(rf"^ *(def|class) {part}\b", source, re.M) for part in name.split(".")):
                missing.append((name, link))
        assert missing == []


def test_picture_of_the_rooms_is_drawn_from_the_code() -> None:
    """``python docs/rooms.py`` updates the picture."""
    rooms = script("rooms")
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.picture()


def test_index_of_papers_is_made_from_the_code() -> None:
    """``python docs/papers.py --write`` updates the page."""
    papers = script("papers")
    assert papers.PAGE.read_text(encoding="utf-8") == papers.page()


class TestTroubleshooting:
    """``docs/troubleshooting.md`` has the messages of the package."""

    PAGE = (REPO / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    MESSAGES = tuple(
        message
        for cell in re.findall(r"^\| (.*?) \| .* \| .* \|$", PAGE, re.MULTILINE)
        for message in re.findall(r"`(.*?)`", cell)
    )

    @staticmethod
    def texts(path: Path) -> list[str]:
        """Return the texts of a file, with a gap for each value that is filled in."""
        found = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "%s" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
        return found

    def test_its_messages_are_in_the_code(self) -> None:
        texts = [text for path in (REPO / "fairseq_imitkd").rglob("*.py") for text in self.texts(path)]
        assert len(self.MESSAGES) > 40
        assert [message for message in self.MESSAGES if not any(message in text for text in texts)] == []

    def test_it_has_every_warning_of_the_code(self) -> None:
        missing = []
        for path in (REPO / "fairseq_imitkd").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "logger.warning"):
                    continue
                text = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
                if text.replace("%s", "").strip() and not any(part in text for part in self.MESSAGES):
                    missing.append(text)
        assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_to_other_sites_are_addresses(document: str) -> None:
    """They are not followed. The form alone is checked."""
    text = (REPO / document).read_text(encoding="utf-8")
    for address in re.findall(r"\]\((\w+:[^)\s]*)\)|<(https?://[^>\s]+)>", text):
        parts = urlsplit("".join(address))
        assert parts.scheme in ("https", "http", "mailto"), address
        assert parts.scheme == "mailto" or re.fullmatch(
            r"([\w-]+\.)+[a-z]{2,}(:\d+)?|[\d.]+:\d+", parts.netloc
        ), address


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]\b(?!-\w)")
# Pages for users. The others also name flags of the scripts of benchmarks/ and docs/.
PAGES = (
    "before-training", "evaluate", "export", "summaries", "training", "troubleshooting", "tutorial",
    "which-method", "your-own-method",
)  # fmt: skip
# curl's and pip's, and those of an example's own method and of another task.
OTHERS = {
    "--json",
    "--silent",
    "--output",
    "--no-build-isolation",
    "--brier-power",
    "--lang-pairs",
    "--print-completion",
    "--version",
}


@functools.cache
def flags() -> set[str]:
    """Return the flags of all commands: the plugin's, and fairseq's that come with them."""
    from fairseq import options

    from fairseq_imitkd.cli.fairseq_help import all_flags

    helps = (REPO / "fairseq_imitkd" / "cli" / "help").glob("*.txt")
    chosen = ("--arch", "transformer", "--optimizer", "adam", "--lr-scheduler", "inverse_sqrt")
    parsers = (
        all_flags("train", chosen), options.get_preprocessing_parser(), options.get_generation_parser()
    )  # fmt: skip
    found = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    return (
        found | OTHERS | {flag for path in helps for flag in FLAG.findall(path.read_text(encoding="utf-8"))}
    )


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_flags_that_exist(page: str) -> None:
    text = (REPO / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert sorted(set(FLAG.findall(text)) - flags()) == []
