"""How translations of the made-up languages are decoded and scored."""

import re
import statistics
from pathlib import Path
from typing import Any

import sacrebleu

BUCKETS = ((1, 8), (9, 12), (13, 16), (17, 20), (21, 99))
BLEU = sacrebleu.BLEU(tokenize="none", force=True)  # the text is made of words already
CHRF = sacrebleu.CHRF()
GREEDY = ["--beam", "1", "--batch-size", "100", "--max-len-a", "1.2", "--max-len-b", "10"]
DECODING = ["--task", "translation", "--gen-subset", "test", *GREEDY]


def signatures() -> dict[str, str]:
    """Of the metrics, which have them once they have scored."""
    return {"bleu": str(BLEU.get_signature()), "chrf": str(CHRF.get_signature())}


def score(text: Path, generated: Path) -> dict[str, Any]:
    """The quality of a decoded test set.

    Args:
        text: the folder of the languages, where ``test.src`` and ``test.all`` are.
        generated: the output of ``fairseq-generate``.
    """
    sources = (text / "test.src").read_text(encoding="utf-8").splitlines()
    right = [line.split("\t") for line in (text / "test.all").read_text(encoding="utf-8").splitlines()]
    return quality(sources, right, read_hypotheses(generated))


def read_hypotheses(path: Path) -> list[str]:
    """The hypotheses in an output of ``fairseq-generate``, in the order of the test set."""
    found = re.findall(r"^H-(\d+)\t[^\t]*\t(.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [text for _, text in sorted((int(number), text) for number, text in found)]


def quality(sources: list[str], right: list[list[str]], hypotheses: list[str]) -> dict[str, Any]:
    """BLEU with its 95% bootstrap interval, chrF, the share of right sentences, BLEU by the source's length.

    ``right`` holds all right translations of each source: BLEU and chrF take each sentence against all of them.
    """
    most = max(map(len, right))
    references = [[every[min(i, len(every) - 1)] for every in right] for i in range(most)]
    bleu = BLEU.corpus_score(hypotheses, references, n_bootstrap=1000)
    by_length = {}
    for low, high in BUCKETS:
        rows = [i for i, source in enumerate(sources) if low <= len(source.split()) <= high]
        found = BLEU.corpus_score([hypotheses[i] for i in rows], [[column[i] for i in rows] for column in references])
        by_length[f"{low}-{high}" if high < 99 else f"{low}+"] = round(found.score, 2)
    return {
        "bleu": round(bleu.score, 2),
        "bleu_interval": round(bleu._ci, 2),
        "chrf": round(CHRF.corpus_score(hypotheses, references).score, 2),
        "right": round(100 * statistics.mean(h in every for h, every in zip(hypotheses, right, strict=True)), 1),
        "bleu_by_source_length": by_length,
    }
