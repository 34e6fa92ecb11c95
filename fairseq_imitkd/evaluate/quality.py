"""How good translations are: scores that sacreBLEU and rouge-score themselves compute, and what is visibly wrong with them."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import estimate_ci
from tqdm import tqdm

from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate.sentences import Sentences
from fairseq_imitkd.text.scores import rouge_scorer, rouge_signature

logger = logging.getLogger(__name__)
EXTRA = ("rouge", "comet")  # beside BLEU, chrF and TER
ROUGE = ("rouge1", "rouge2", "rougeL")
# Those that need no file from the network.
TOKENIZERS = ("13a", "intl", "char", "none", "zh", "ja-mecab", "ko-mecab")
LENGTHS = (10, 20, 30, 50)  # tokens of a source up to which each group but the last goes
REPEATS = 3  # times in a row
RESAMPLES, SEED = (
    1000,
    "12345",
)  # of the bootstrap: sacreBLEU's own defaults, the seed unless SACREBLEU_SEED is set
SLOW = 30  # words of a reference from which TER's time, which grows with the fourth power, is felt

Scores = dict[str, dict[str, float | None]]


class Metrics:
    """Scores of systems over the same references.

    Args:
        sentences: the test set.
        target_lang: whose text is scored.
        tokenize: sacreBLEU's name of how BLEU makes words of text; None is its choice for the language.
        extra: some of :data:`EXTRA`.
        comet_model: file of COMET's model.
        ter: whether TER is computed.

    Raises:
        UsageError: something is not installed, or is no such thing.
    """

    def __init__(
        self,
        sentences: Sentences,
        target_lang: str,
        tokenize: str | None = None,
        extra: Sequence[str] = (),
        comet_model: Path | None = None,
        ter: bool = True,
    ):
        self.sentences = sentences
        self.bleu_settings = {"tokenize": tokenize, "trg_lang": target_lang}
        references = [list(sentences.reference_texts)]
        try:
            bleu = BLEU(**self.bleu_settings, references=references)
        except (ImportError, RuntimeError) as error:
            raise UsageError(
                f"--bleu-tokenize {tokenize or target_lang} can't be used: {_in_one_line(error)}"
            ) from error
        self.metrics = {"bleu": bleu, "chrf": CHRF(references=references)}
        if ter:
            self.metrics["ter"] = TER(references=references)
            words = sum(len(text.split()) for text in sentences.reference_texts) / len(sentences)
            if words > SLOW:
                logger.warning(
                    "TER of references of %.0f words takes long, hours if they are thousands: --no-ter leaves it out",
                    words,
                )
        self.seed = os.environ.get("SACREBLEU_SEED", SEED).lower()
        self.failed: dict[str, str] = {}  # what of the scores gave up on the way, and why; all others stand
        self.signatures: dict[str, str] = {}
        for name, metric in self.metrics.items():
            signature = metric.get_signature()
            signature.update("seed", self.seed)
            signature.update("bs", RESAMPLES)
            self.signatures[name] = str(signature)
        self._rouge = rouge_scorer(ROUGE) if "rouge" in extra else None
        self._comet = _comet(comet_model) if "comet" in extra and comet_model else None
        if self._rouge:
            self.signatures["rouge"] = rouge_signature()
        if self._comet and comet_model:
            self.signatures["comet"] = (
                f"unbabel-comet|model:{sha256(comet_model)[:12]}|version:{version('unbabel-comet')}"
            )

    def compare(
        self, systems: Mapping[str, Sequence[str]], baseline: str | None, bar: tqdm | None = None
    ) -> dict[str, Scores]:
        """Every system's scores, with 95% confidence intervals, and p of its difference from the baseline.

        They are of sacreBLEU's paired bootstrap, which itself would resample the baseline anew for each system; ROUGE's are of
        the same resamples, and COMET has none. There is no p of what the baseline scores on every resample too.

        Args:
            systems: a line for each sentence, by name.
            baseline: one of them; where it is none, there is no p.
            bar: told of each system.
        """
        count = len(self.sentences)
        drawn = np.random.default_rng(None if self.seed == "none" else int(self.seed)).choice(
            count, (RESAMPLES, count)
        )
        times = np.stack([np.bincount(numbers, minlength=count) for numbers in drawn]).astype(
            float
        )  # each sentence is drawn
        found: dict[str, Scores] = {name: {} for name in systems}
        base: dict[str, tuple[float, np.ndarray]] = {}
        for name in sorted(systems, key=lambda name: name != baseline):  # the baseline first
            for key, score, resampled in self._resampled(systems[name], times):
                mean, half = map(float, estimate_ci(resampled))
                if name == baseline:
                    base[key] = score, resampled
                p = _chance(score, resampled, *base[key]) if key in base else None
                found[name][key] = {"score": score, "low": mean - half, "high": mean + half, "p": p}
            found[name].update(self._comet_score(systems[name]))
            if bar is not None:
                bar.update()
        return found

    def _resampled(self, texts: Sequence[str], times: np.ndarray) -> Iterator[tuple[str, float, np.ndarray]]:
        """Each score by name, and its value on every resample; ``times``: ``(resamples, N)``, how often each has each."""
        for key, metric in self.metrics.items():
            statistics = metric._extract_corpus_statistics(texts, None)
            # In single precision, as sacreBLEU has them: the sums themselves are whole numbers.
            sums = (times @ np.array(statistics, float)).astype("float32")
            resampled = np.array([metric._compute_score_from_stats(each).score for each in sums])
            yield key, float(metric._aggregate_and_compute(statistics).score), resampled
        if self._rouge:
            pairs = zip(self.sentences.reference_texts, texts, strict=True)
            every = [self._rouge.score(reference, text) for reference, text in pairs]
            for kind in ROUGE:
                each = [scored[kind].fmeasure for scored in every]
                yield kind, sum(each) / len(each), times @ np.array(each) / len(each)

    def _comet_score(self, texts: Sequence[str]) -> Scores:
        if self._comet is None:
            return {}
        sides = (self.sentences.source_texts, texts, self.sentences.reference_texts)
        data = [
            {"src": source, "mt": text, "ref": reference}
            for source, text, reference in zip(*sides, strict=True)
        ]
        try:
            found = self._comet.predict(data, batch_size=8, gpus=0, progress_bar=False)
            return {"comet": {"score": float(found.system_score)}}
        except Exception as error:  # whatever its many packages raise
            self._comet, self.failed["comet"] = None, f"scoring: {_in_one_line(error)}"
            logger.warning("comet failed %s", self.failed["comet"])
            return {}

    def bleu(self, texts: Sequence[str], numbers: Sequence[int]) -> float:
        """BLEU of the sentences of these numbers alone, of which ``texts`` are the translations."""
        references = [self.sentences.reference_texts[number] for number in numbers]
        return float(BLEU(**self.bleu_settings, force=True).corpus_score(list(texts), [references]).score)

    def by_length(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """BLEU of each group of sentences whose sources have about as many tokens, the EOS not counted."""
        bleu, groups = self.metrics["bleu"], []
        statistics = bleu._extract_corpus_statistics(texts, None)
        for first, last in zip((0, *(last + 1 for last in LENGTHS)), (*LENGTHS, None), strict=True):
            inside = [
                n
                for n in range(len(texts))
                if first <= self.sentences.length(n) <= (last or self.sentences.length(n))
            ]
            if inside:
                score = float(bleu._aggregate_and_compute([statistics[number] for number in inside]).score)
                groups.append({"from": first, "to": last, "sentences": len(inside), "bleu": score})
        return groups


def _chance(score: float, resampled: np.ndarray, base: float, base_resampled: np.ndarray) -> float | None:
    """How often a difference from the baseline this large comes by chance; None where there is none on any resample."""
    if np.array_equal(resampled, base_resampled):
        return None
    differences = np.abs(resampled - base_resampled)
    larger = int((differences - differences.mean() > abs(base - score)).sum())
    return (larger + 1) / (RESAMPLES + 1)


def repeats(text: str) -> bool:
    """Whether some words, one or several, stand :data:`REPEATS` times or more in a row: "a man a man a man"."""
    words = text.split()
    for size in range(1, len(words) // REPEATS + 1):
        run = 0  # words in a row that are the same as those ``size`` before them
        for place in range(size, len(words)):
            run = run + 1 if words[place] == words[place - size] else 0
            if run == (REPEATS - 1) * size:
                return True
    return False


def _comet(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(
            f"--comet-model '{path}' is no file: give the checkpoint of a COMET model, model.ckpt"
        )
    os.environ.update(
        HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1"
    )  # nothing is fetched behind the user's back
    try:
        comet = import_module("comet")
    except ImportError as error:
        raise UsageError(
            f"--metrics comet needs {error.name or 'comet'}: pip install unbabel-comet, or leave comet out"
        ) from error
    logging.getLogger("pytorch_lightning").setLevel(
        logging.WARNING
    )  # else it tells of its devices and products each time
    try:
        # Absolute, since what belongs to it is looked for in the folder above its own; a link is not followed.
        return comet.load_from_checkpoint(str(path.absolute()))
    except Exception as error:  # whatever its many packages raise on a file that is none of theirs
        raise UsageError(f"--comet-model '{path}' can't be used: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
