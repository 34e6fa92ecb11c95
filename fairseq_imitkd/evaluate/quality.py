"""Scores of translations, computed by sacreBLEU, rouge-score and COMET themselves."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER

from fairseq_imitkd.checkpoints.comet import comet_signature, load_comet
from fairseq_imitkd.data.bars import Bar
from fairseq_imitkd.errors import UsageError, in_one_line
from fairseq_imitkd.evaluate.schema import ROUGE, LengthGroup, QualityScore
from fairseq_imitkd.evaluate.sentences import Sentences
from fairseq_imitkd.text import bootstrap
from fairseq_imitkd.text.bootstrap import Bootstrap
from fairseq_imitkd.text.scores import rouge_scorer, rouge_signature

logger = logging.getLogger(__name__)
EXTRA = ("rouge", "comet")  # beside BLEU, chrF and TER
# sacreBLEU's tokenizers that need no file from the network.
TOKENIZERS = ("13a", "intl", "char", "none", "zh", "ja-mecab", "ko-mecab")
LENGTHS = (10, 20, 30, 50)  # each but the last group of sources ends at so many tokens
SLOW = 30  # words of a reference; the time of TER grows with their fourth power

SystemScores = dict[str, QualityScore]


class Metrics:
    """Scores systems against the same references.

    Args:
        sentences: the test set.
        target_lang: code of the target language.
        tokenize: sacreBLEU's tokenizer for BLEU; None is its choice for the language.
        extra: some of :data:`EXTRA`.
        comet_model: file of COMET's model.
        ter: whether TER is computed.

    Raises:
        UsageError: a package is not installed, or a value is not supported.
    """

    def __init__(
        self,
        sentences: Sentences,
        target_lang: str,
        tokenize: str | None = None,
        *,
        extra: Sequence[str] = (),
        comet_model: Path | None = None,
        ter: bool = True,
    ):
        self.sentences = sentences
        self.bleu_settings = {"tokenize": tokenize, "trg_lang": target_lang}
        self.metrics = self._sacrebleu(tokenize or target_lang, ter)
        self.failed: dict[str, str] = {}  # why scores failed, by metric; all others stand
        self.signatures: dict[str, str] = {}
        for name, metric in self.metrics.items():
            signature = metric.get_signature()
            signature.update("seed", bootstrap.seed())
            signature.update("bs", bootstrap.RESAMPLES)
            self.signatures[name] = str(signature)
        self._rouge = rouge_scorer(ROUGE) if "rouge" in extra else None
        self._comet = load_comet(comet_model, "--metrics comet") if "comet" in extra and comet_model else None
        if self._rouge:
            self.signatures["rouge"] = rouge_signature()
        if self._comet and comet_model:
            self.signatures["comet"] = comet_signature(comet_model)

    def _sacrebleu(self, tokenizer: str, ter: bool) -> dict[str, Any]:
        references = self.sentences.reference_columns()
        try:
            bleu = BLEU(**self.bleu_settings, references=references)
        except (ImportError, RuntimeError) as error:
            raise UsageError(f"--bleu-tokenize {tokenizer} can't be used: {in_one_line(error)}") from error
        metrics = {"bleu": bleu, "chrf": CHRF(references=references)}
        if ter:
            metrics["ter"] = TER(references=references)
            words = sum(map(len, map(str.split, self.sentences.reference_texts))) / len(self.sentences)
            if words > SLOW:
                logger.warning(
                    "TER of references of %.0f words is slow: thousands take hours; --no-ter leaves it out",
                    words,
                )
        return metrics

    def compare(
        self, systems: Mapping[str, Sequence[str]], baseline: str | None, bar: Bar | None = None
    ) -> dict[str, SystemScores]:
        """Return each system's scores, with 95% confidence intervals and p of its difference from the
        baseline.

        They are those of sacreBLEU's paired bootstrap, which would resample the baseline again for each
        system. ROUGE's are from the same resamples, and COMET has none. A system that scores the same as the
        baseline on every resample has no p.

        Args:
            systems: a line for each sentence, by name.
            baseline: name of one of the systems; None for no p.
            bar: progress bar, advanced by each system.
        """
        times = bootstrap.resamples(len(self.sentences))
        found: dict[str, SystemScores] = {name: {} for name in systems}
        base: dict[str, Bootstrap] = {}
        for name in sorted(systems, key=lambda name: name != baseline):  # the baseline first
            for key, own in self._bootstrapped(systems[name], times):
                if name == baseline:
                    base[key] = own
                found[name][key] = QualityScore(own.score, *own.interval())
                if key in base and name != baseline:
                    gain = own.minus(base[key])
                    found[name][key] = replace(
                        found[name][key],
                        p=own.p(base[key]),
                        difference_low=gain.low,
                        difference_high=gain.high,
                    )
            found[name].update(self._comet_score(systems[name]))
            if bar is not None:
                bar.update()
        return found

    def _bootstrapped(self, texts: Sequence[str], times: np.ndarray) -> Iterator[tuple[str, Bootstrap]]:
        """Yield each metric's name and values; ``times`` is ``(RESAMPLES, N)``."""
        for key, metric in self.metrics.items():
            yield key, bootstrap.of_metric(metric, texts, times)
        if self._rouge:
            pairs = zip(self.sentences.reference_texts, texts, strict=True)
            every = [self._rouge.score(reference, text) for reference, text in pairs]
            for kind in ROUGE:
                yield kind, bootstrap.of_means([scored[kind].fmeasure for scored in every], times)

    def _comet_score(self, texts: Sequence[str]) -> SystemScores:
        if self._comet is None:
            return {}
        sides = (self.sentences.source_texts, texts, self.sentences.reference_texts)
        data = [
            {"src": source, "mt": text, "ref": reference}
            for source, text, reference in zip(*sides, strict=True)
        ]
        try:
            found = self._comet.predict(data, batch_size=8, gpus=0, progress_bar=False)
            return {"comet": QualityScore(float(found.system_score))}
        except Exception as error:  # its many packages raise all kinds of errors
            self._comet, self.failed["comet"] = None, f"scoring: {in_one_line(error)}"
            logger.warning("comet failed %s", self.failed["comet"])
            return {}

    def bleu(self, texts: Sequence[str], numbers: Sequence[int]) -> float:
        """Return BLEU of some sentences alone.

        Args:
            texts: a translation for each of them.
            numbers: their numbers in the test set.
        """
        references = self.sentences.reference_columns(numbers)
        return float(BLEU(**self.bleu_settings, force=True).corpus_score(list(texts), references).score)

    def by_length(self, texts: Sequence[str]) -> list[LengthGroup]:
        """Return BLEU of groups of sentences by the number of their source's tokens, without the EOS."""
        bleu, groups = self.metrics["bleu"], []
        statistics = bleu._extract_corpus_statistics(texts, None)
        lengths = [self.sentences.length(number) for number in range(len(texts))]
        for first, last in zip((0, *(last + 1 for last in LENGTHS)), (*LENGTHS, None), strict=True):
            inside = [n for n, length in enumerate(lengths) if first <= length <= (last or length)]
            if inside:
                score = float(bleu._aggregate_and_compute([statistics[number] for number in inside]).score)
                groups.append(LengthGroup(first, last, len(inside), score))
        return groups
