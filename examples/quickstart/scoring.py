"""Decoding, scores and result files for the made-up languages.

``scoring.py RUN NAME [--cpu]`` prints the scores of a model as soon as it is trained.
"""

import argparse
import logging
import re
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sacrebleu
from fairseq import options
from fairseq_cli import generate
from trainings import origin

from fairseq_imitkd.data.files import write_json

BUCKETS = ((1, 8), (9, 12), (13, 16), (17, 20), (21, 99))
BLEU = sacrebleu.BLEU(tokenize="none", force=True)  # the text is already tokenised
CHRF = sacrebleu.CHRF()
GREEDY = ["--beam", "1", "--batch-size", "100", "--max-len-a", "1.2", "--max-len-b", "10"]
DECODING = ["--task", "translation", "--gen-subset", "test", *GREEDY]


def asked(description: str | None) -> tuple[Path, int, list[str]]:
    """Return an evaluation's arguments: the run, its seed, and fairseq's flags of the device."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    return arguments.run, arguments.seed, ["--cpu"] if arguments.cpu else []


def write(
    run: Path, results: dict[str, Any], device: list[str], table: Callable[[dict[str, Any]], str]
) -> None:
    """Write a run's results.json and table.md. Score first, because only then the metrics have signatures.

    Args:
        run: the run's folder.
        results: recipe, seed, trainings and models.
        device: fairseq's flags of the device.
        table: function from the results to their table.
    """
    signatures = {"bleu": str(BLEU.get_signature()), "chrf": str(CHRF.get_signature())}
    whole = {**origin(), "signatures": signatures, "decoding": " ".join([*DECODING, *device]), **results}
    write_json(run / "results.json", whole)
    (run / "table.md").write_text(table(whole) + "\n", encoding="utf-8")


def decode(data: Path, checkpoint: Path, out: Path, device: list[str]) -> Path:
    """Translate the test set and return fairseq's output file.

    Args:
        data: fairseq's data directory.
        checkpoint: the model.
        out: folder for the output.
        device: fairseq's flags of the device.
    """
    flags = [str(data), "--path", str(checkpoint), "--results-path", str(out), *DECODING, *device]
    generate.main(options.parse_args_and_arch(options.get_generation_parser(), flags))
    return out / "generate-test.txt"


def score(text: Path, generated: Path) -> dict[str, Any]:
    """Return the scores of a decoded test set.

    Args:
        text: folder with ``test.src`` and ``test.all``.
        generated: output file of ``fairseq-generate``.
    """
    sources = (text / "test.src").read_text(encoding="utf-8").splitlines()
    right = [line.split("\t") for line in (text / "test.all").read_text(encoding="utf-8").splitlines()]
    return quality(sources, right, read_hypotheses(generated))


def read_hypotheses(path: Path) -> list[str]:
    """Return the hypotheses in an output of ``fairseq-generate``, in the order of the test set."""
    found = re.findall(r"^H-(\d+)\t[^\t]*\t(.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [text for _, text in sorted((int(number), text) for number, text in found)]


def quality(sources: list[str], right: list[list[str]], hypotheses: list[str]) -> dict[str, Any]:
    """Return BLEU with its 95% bootstrap interval, chrF, the share of right sentences, and BLEU by length.

    Args:
        sources: source sentences.
        right: all right translations of each source, which are the references of BLEU and chrF.
        hypotheses: translations to score.
    """
    most = max(map(len, right))
    references = [[every[min(i, len(every) - 1)] for every in right] for i in range(most)]
    bleu = BLEU.corpus_score(hypotheses, references, n_bootstrap=1000)
    by_length = {}
    for low, high in BUCKETS:
        rows = [i for i, source in enumerate(sources) if low <= len(source.split()) <= high]
        found = BLEU.corpus_score(
            [hypotheses[i] for i in rows], [[column[i] for i in rows] for column in references]
        )
        by_length[f"{low}-{high}" if high < 99 else f"{low}+"] = round(found.score, 2)
    return {
        "bleu": round(bleu.score, 2),
        "bleu_interval": round(bleu._ci, 2),
        "chrf": round(CHRF.corpus_score(hypotheses, references).score, 2),
        "right": round(
            100 * statistics.mean(h in every for h, every in zip(hypotheses, right, strict=True)), 1
        ),
        "bleu_by_source_length": by_length,
    }


def main() -> None:
    """Print a model's scores."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")  # hydra and torch warn of how fairseq calls them
    folder = arguments.run / arguments.name
    device = ["--cpu"] if arguments.cpu else []
    output = decode(arguments.run / "data-bin", folder / "checkpoint_last.pt", folder, device)
    scores = score(arguments.run / "text", output)
    print(
        f"{arguments.name:>12} test BLEU {scores['bleu']:.1f} ± {scores['bleu_interval']:.1f}, "
        f"{scores['right']:.1f}% of the translations are right"
    )


if __name__ == "__main__":
    main()
