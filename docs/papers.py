"""Make the index of papers from the docstrings of the package.

    python docs/papers.py            print it
    python docs/papers.py --write    write papers.md

A docstring cites a paper by its first author and year: "(Lin et al. 2020, section 3)". This file holds the
list of papers, and the flags of code that is neither a method nor a divergence.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fairseq_imitkd.losses.divergences import DIVERGENCES
from fairseq_imitkd.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fairseq_imitkd"
PAGE = Path(__file__).with_name("papers.md")

INTRODUCTION = """# Papers

This page shows where the code follows which paper. "Where" is the place in the paper.
[Methods and flags](methods.md) explains the flags. If you use a method in your work, please cite its paper.
`python docs/papers.py --write` makes this page from the docstrings, and a test compares it.

For ImitKD, and for distillation of words and sentences:

```bibtex
@inproceedings{lin-etal-2020-autoregressive,
  title = {Autoregressive Knowledge Distillation through Imitation Learning},
  author = {Lin, Alexander and Wohlwend, Jeremy and Chen, Howard and Lei, Tao},
  booktitle = {Proceedings of EMNLP 2020},
  year = {2020}
}
@inproceedings{kim-rush-2016-sequence,
  title = {Sequence-Level Knowledge Distillation},
  author = {Kim, Yoon and Rush, Alexander M.},
  booktitle = {Proceedings of EMNLP 2016},
  year = {2016}
}
```
"""


class Paper(NamedTuple):
    """A paper. Docstrings cite it by its first author and year."""

    authors: str  # with the place and the year of publication
    title: str
    link: str

    @property
    def key(self) -> tuple[str, int]:
        """The first author and the year."""
        return re.split("[, ]", self.authors)[0], int(self.authors[-4:])


PAPERS = (
    Paper(
        "Lin, Wohlwend, Chen & Lei, EMNLP 2020",
        "Autoregressive Knowledge Distillation through Imitation Learning",
        "https://arxiv.org/abs/2009.07253",
    ),
    Paper(
        "Eikema & Aziz, COLING 2020",
        "Is MAP Decoding All You Need? The Inadequacy of the Mode in Neural Machine Translation",
        "https://arxiv.org/abs/2005.10283",
    ),
    Paper(
        "Rei, Stewart, Farinha & Lavie, EMNLP 2020",
        "COMET: A Neural Framework for MT Evaluation",
        "https://aclanthology.org/2020.emnlp-main.213/",
    ),
    Paper(
        "Kim & Rush, EMNLP 2016",
        "Sequence-Level Knowledge Distillation",
        "https://aclanthology.org/D16-1139/",
    ),
    Paper(
        "Kim, Kim, Shin & Lee, ICASSP 2021",
        "Two-Stage Textual Knowledge Distillation for End-to-End Spoken Language Understanding",
        "https://arxiv.org/abs/2010.13105",
    ),
    Paper(
        "Zhao, Sun, Dong, Dong & Li, 2021",
        "Knowledge Distillation via Instance-level Sequence Learning",
        "https://arxiv.org/abs/2106.10885",
    ),
    Paper(
        "Gong, Zhou & Qian, Interspeech 2022",
        "Knowledge Transfer and Distillation from Autoregressive to Non-Autoregressive Speech Recognition",
        "https://arxiv.org/abs/2207.10600",
    ),
    Paper(
        "Graves, Fernández, Gomez & Schmidhuber, ICML 2006",
        "Connectionist Temporal Classification: Labelling Unsegmented Sequence Data with Recurrent "
        "Neural Networks",
        "https://doi.org/10.1145/1143844.1143891",
    ),
    Paper(
        "Agarwal et al., ICLR 2024",
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        "https://arxiv.org/abs/2306.13649",
    ),
    Paper(
        "Wen, Li, Du & Mou, ACL 2023",
        "f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        "https://arxiv.org/abs/2307.15190",
    ),
    Paper(
        "Jafari, Rezagholizadeh, Sharma & Ghodsi, EACL 2021",
        "Annealing Knowledge Distillation",
        "https://arxiv.org/abs/2104.07163",
    ),
    Paper(
        "Jafari et al., Findings of EMNLP 2022",
        "Continuation KD: Improved Knowledge Distillation through the Lens of Continuation Optimization",
        "https://arxiv.org/abs/2212.05998",
    ),
    Paper(
        "Ko, Kim, Chen & Yun, ICML 2024",
        "DistiLLM: Towards Streamlined Distillation for Large Language Models",
        "https://arxiv.org/abs/2402.03898",
    ),
    Paper(
        "Xu et al., ICLR 2025",
        "Speculative Knowledge Distillation: Bridging the Teacher-Student Gap Through Interleaved Sampling",
        "https://arxiv.org/abs/2410.11325",
    ),
    Paper(
        "Zhong et al., ACL 2024",
        "Revisiting Knowledge Distillation for Autoregressive Language Models",
        "https://arxiv.org/abs/2402.11890",
    ),
    Paper(
        "Zhang et al., ACL 2023",
        "Towards Understanding and Improving Knowledge Distillation for Neural Machine Translation",
        "https://arxiv.org/abs/2305.08096",
    ),
    Paper(
        "Wang, Yan, Meng & Zhou, ACL 2021",
        "Selective Knowledge Distillation for Neural Machine Translation",
        "https://arxiv.org/abs/2105.12967",
    ),
    Paper(
        "Jin et al., 2026",
        "Entropy-Aware On-Policy Distillation of Language Models",
        "https://arxiv.org/abs/2603.07079",
    ),
    Paper(
        "Leviathan, Kalman & Matias, ICML 2023",
        "Fast Inference from Transformers via Speculative Decoding",
        "https://arxiv.org/abs/2211.17192",
    ),
    Paper(
        "Zhou et al., ICLR 2024",
        "DistillSpec: Improving Speculative Decoding via Knowledge Distillation",
        "https://arxiv.org/abs/2310.08461",
    ),
    Paper(
        "Yuan et al., AAAI 2021",
        "Reinforced Multi-Teacher Selection for Knowledge Distillation",
        "https://arxiv.org/abs/2012.06048",
    ),
    Paper(
        "Kool, van Hoof & Welling, 2019",
        "Buy 4 REINFORCE Samples, Get a Baseline for Free!",
        "https://openreview.net/forum?id=r1lgTGL5DE",
    ),
    Paper(
        "Lei et al., EMNLP 2018",
        "Simple Recurrent Units for Highly Parallelizable Recurrence",
        "https://arxiv.org/abs/1709.02755",
    ),
    Paper(
        "Cho et al., EMNLP 2014",
        "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
        "https://arxiv.org/abs/1406.1078",
    ),
    Paper(
        "Kasai et al., ICLR 2021",
        "Deep Encoder, Shallow Decoder: Reevaluating Non-autoregressive Machine Translation",
        "https://arxiv.org/abs/2006.10369",
    ),
    Paper(
        "Shleifer & Rush, 2020", "Pre-trained Summarization Distillation", "https://arxiv.org/abs/2010.13002"
    ),
    Paper(
        "See et al., CoNLL 2016",
        "Compression of Neural Machine Translation Models via Pruning",
        "https://arxiv.org/abs/1606.09274",
    ),
    Paper(
        "Zhu & Gupta, 2017",
        "To prune, or not to prune: exploring the efficacy of pruning for model compression",
        "https://arxiv.org/abs/1710.01878",
    ),
)
# Author and year in a docstring, and the paper. One paper is also cited by the year of its preprint.
CITED = [
    *((*paper.key, paper.key) for paper in PAPERS),
    ("Agarwal", 2023, ("Agarwal", 2024)),
]

# The flag of code that is neither a method nor a divergence, by module or by the name in it.
FLAGS = {
    "criterion": "--gold-weight",
    "text.rewards": "--reward-baseline leave-one-out",
    "training.distiller": "--reward-weight",
    "losses.token_weights": "--token-selection",
    "losses.token_weights.DifficultyQueue": "--selection-queue",
    "mixing.replay": "--rollout-replay",
    "data.curriculum": "--curriculum-scores",
    "mixing.mixer": "--student-share",
    "method.method": "--annealing-temperature",
    "method.schedules": "--student-share",
    "method.schedules.AdaptiveShare": "--student-share adaptive:0",
    "rollout.policy": "--rollout-policy speculative",
    "engines.base": "--select",
    "evaluate.drafts": "imitkd-evaluate --teacher",
    "evaluate.schema": "imitkd-evaluate --teacher",
    "losses.hidden_match": "--hidden-match",
    "losses.ctc": "--criterion ctc_kd",
    "models.ctc": "--arch s2t_ctc",
    "training.ctc_criterion": "--criterion ctc_kd",
    "training.ctc_criterion.SpeechCTCCriterion": "--criterion speech_ctc",
    "models.recurrent": "--arch sru_2",
    "models.recurrent.GRUModel": "--arch gru_2",
    "models.sru": "--arch sru_2",
    "models.transformer_sizes": "--arch transformer_imitkd_6_1",
    "models.pruning": "--prune-sparsity",
    "teacher.selection": "--teacher-selection reinforced",
    "teacher.initialise": "--init-from-teacher",
    "seqkd.translator": "--select best",
    "text.expected_utility": "--select mbr",
    "checkpoints.comet": "--metric comet",
}
# "section 3 and algorithm 1", "sections 3.1 and 3.2", "equations 6 to 8"
NUMBERS = r"\d+(?:\.\d+)?(?: (?:to|and) \d+(?:\.\d+)?)?"
PLACE = re.compile(
    rf",? ((?:sections?|equations?|algorithms?|theorem) {NUMBERS}(?: and algorithm {NUMBERS})?)"
)
# "Lin et al.", "Kim & Rush", "Shleifer and Rush", and a year.
ANY = re.compile(r"\b[A-Z][a-z]+(?: et al\.| (?:&|and) [A-Z][a-z]+)(?:(?!20\d\d)[^().]){0,24}\(?20\d\d")


class Citation(NamedTuple):
    """A place in the code that cites a paper.

    Args:
        key: the paper's first author and year.
        place: where in the paper; may be empty.
        module: the module without the package, such as ``mixing.replay``.
        name: what in the module has the docstring; empty for the module itself.
        summary: the docstring's first sentence.
    """

    key: tuple[str, int]
    place: str
    module: str
    name: str
    summary: str


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of a module (with an empty name), its classes and its functions."""

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                yield prefix + child.name, ast.get_docstring(child) or ""
                yield from inside(child, f"{prefix}{child.name}.")

    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield "", ast.get_docstring(tree) or ""
    yield from inside(tree, "")


def citations() -> Iterator[Citation]:
    """Yield all citations in the package, in the order of its files.

    Raises:
        SystemExit: a docstring cites a paper that is not in ``PAPERS``.
    """
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for name, text in docstrings(path):
            one_line = " ".join(text.split())
            known: set[int] = set()  # where the years of known papers end
            for author, year, cited in CITED:
                for match in re.finditer(rf"\b{author}\b(?:(?!20\d\d).){{0,60}}?\b{year}\b\)?", one_line):
                    known.add(match.end() - match[0].endswith(")"))
                    place = PLACE.match(one_line, match.end())
                    yield Citation(cited, place[1] if place else "", module, name, _summary(one_line))
            for match in ANY.finditer(one_line):
                if match.end() not in known:
                    raise SystemExit(f"{module} {name} cites '{match[0]}': add the paper to PAPERS")


def _summary(text: str) -> str:
    """Return a docstring's first sentence, without citations in brackets and without "Return"."""
    first = re.sub(r" \([^()]*20\d\d[^()]*\)", "", text)
    first = re.split(r"[.:](?: (?=[A-Z])|$)", first)[0].replace("``", "`")
    what = first.removeprefix("Return ")
    return first if what == first else what[:1].upper() + what[1:]


def flag(citation: Citation) -> str:
    """Return the flag that uses what a citation is about."""
    if citation.module == "methods":
        [name] = [name for name, defaults in METHODS.items() if defaults.__name__ == citation.name]
        return f"--criterion {name}"
    if citation.module == "losses.divergences":
        [name] = [name for name, function in DIVERGENCES.items() if function.__name__ == citation.name]
        return f"--divergence {name}"
    whole = f"{citation.module}.{citation.name}"
    return next(FLAGS[key] for key in (whole, whole.rpartition(".")[0], citation.module) if key in FLAGS)


def test(citation: Citation) -> str:
    """Return the test of what a citation is about: a file of ``tests/``, and the case of a method.

    Raises:
        SystemExit: there is no such file.
    """
    if citation.module == "methods":
        return f"tests/integration/test_methods.py[{flag(citation).split()[1]}]"
    room, _, module = f"tests.{citation.module}".rpartition(".")
    for path in (ROOT / room.replace(".", "/")).glob("test_*.py"):
        if path.stem == f"test_{module}":
            return str(path.relative_to(ROOT))
    users = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(rf"\bfairseq_imitkd\.{re.escape(citation.module)}\b", path.read_text(encoding="utf-8"))
    )
    if not users:
        raise SystemExit(f"no test imports {citation.module}")
    return users[0]


def page() -> str:
    """Return the page: one table for each paper."""
    found = list(citations())
    parts = [INTRODUCTION]
    for paper in PAPERS:
        own = [citation for citation in found if citation.key == paper.key]
        if not own:
            raise SystemExit(f"no docstring cites {paper.authors}: remove it from PAPERS")
        rows = dict.fromkeys(row(citation) for citation in own)
        table = ["| where | what | flag | code | test |", "|---|---|---|---|---|", *rows]
        parts.append("\n".join([f"## {paper.authors}", "", f"[{paper.title}]({paper.link})", "", *table, ""]))
    return "\n".join(parts)


def row(citation: Citation) -> str:
    """Return a citation's row of the table."""
    file = f"fairseq_imitkd/{citation.module.replace('.', '/')}.py"
    code = f"[`{citation.name or citation.module}`](../{file})"
    path, _, case = test(citation).partition("[")
    tested = f"[`{Path(path).name}{'[' + case if case else ''}`](../{path})"
    summary = citation.summary.replace("|", r"\|")
    return f"| {citation.place} | {summary} | `{flag(citation)}` | {code} | {tested} |"


def main() -> None:
    """Print or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
