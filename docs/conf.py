"""Sphinx's settings. ``make docs`` builds the site.

The source folder is the repository's root, so a relative link means the same on the site and on a code host.
"""

import logging
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fairseq_imitkd import __version__  # noqa: E402

# fairseq lowers the level of the root logger, and then the parser logs every line that it reads.
logging.getLogger("markdown_it").setLevel(logging.WARNING)

project = "fairseq-imitkd"
version = release = __version__
copyright = "the authors of fairseq-imitkd, MIT licence"
root_doc = "docs/index"
include_patterns = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/reference/*",
    "examples/*.md", "examples/*/*.md", "benchmarks/*.md",
]  # fmt: skip
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
templates_path = ["templates"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_heading_anchors = 4
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = project
html_copy_source = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "to-docs.html"}


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Make Sphinx's tables of contents from the lists of links under the headings of ``docs/index.md``.

    The complete evaluations are only linked by their recipes, so they are in no table.
    """
    if page.rpartition("/")[2].startswith("evaluation"):
        source[0] = f"---\norphan: true\n---\n\n{source[0]}"
    if page != root_doc:
        return
    for part in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        links = [f"{title} <{to}>" for title, to in re.findall(r"\[([^]]+)\]\(([^):]+)\.md\)", text)]
        tree = "\n".join(["```{toctree}", ":hidden:", f":caption: {heading}", "", *links, "```"])
        source[0] += f"\n\n{tree}\n"


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("source-read", add_contents)
