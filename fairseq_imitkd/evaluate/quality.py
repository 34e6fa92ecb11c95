"""How good translations are: scores that sacreBLEU and rouge-score themselves compute, and what is visibly wrong with them."""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate.sentences import Sentences

EXTRA = ("rouge", "comet")  # beside BLEU, chrF and TER
ROUGE = ("rouge1", "rouge2", "rougeL")
# Those that need no file from the network.
TOKENIZERS = ("13a", "intl", "char", "none", "zh", "ja-mecab", "ko-mecab")
LENGTHS = (10, 20, 30, 50)  # tokens of a source up to which each group but the last goes
REPEATS = 3  # times in a row

Scores = dict[str, dict[str, float | None]]


class Metrics:
    """Scores of systems over the same references.

    Args:
        sentences: the test set.
        target_lang: whose text is scored.
        tokenize: sacreBLEU's name of how BLEU makes words of text; None is its choice for the language.
        extra: some of :data:`EXTRA`.
        comet_model: file of COMET's model.

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
    ):
        self.sentences, self.extra = sentences, extra
        self.bleu_settings = {"tokenize": tokenize, "trg_lang": target_lang}
        references = [list(sentences.reference_texts)]
        try:
            bleu = BLEU(**self.bleu_settings, references=references)
        except (ImportError, RuntimeError) as error:
            raise UsageError(f"--bleu-tokenize {tokenize or target_lang} can't be used: {_in_one_line(error)}") from error
        self.metrics = {"BLEU": bleu, "CHRF": CHRF(references=references), "TER": TER(references=references)}
        self.signatures: dict[str, str] = {}
        self._rouge = _rouge_scorer() if "rouge" in extra else None
        self._comet = _comet(comet_model) if "comet" in extra and comet_model else None
        if self._rouge:
            self.signatures["rouge"] = f"rouge-score|F1|stemmed|version:{version('rouge-score')}"
        if self._comet and comet_model:
            self.signatures["comet"] = f"unbabel-comet|model:{comet_model.name}|version:{version('unbabel-comet')}"

    def compare(self, systems: Mapping[str, Sequence[str]], baseline: str | None) -> dict[str, Scores]:
        """Every system's scores, with 95% confidence intervals, and p of its difference from the baseline.

        Both are of sacreBLEU's own paired bootstrap. There is no p of what the baseline scores on every resample too.

        Args:
            systems: a line for each sentence, by name.
            baseline: one of them; where it is none, there is no p.
        """
        others = [name for name in systems if name != baseline]
        groups = [[baseline, *others]] if baseline in systems else [[name] for name in others]
        found: dict[str, Scores] = {name: {} for name in systems}
        for group in groups:
            named = [(str(name), list(systems[str(name)])) for name in group]
            signatures, results = PairedTest(named, self.metrics, references=None, test_type="bs")()
            for metric, title in (("bleu", "BLEU"), ("chrf", "chrF2"), ("ter", "TER")):
                self.signatures[metric] = str(signatures[title])
                first, *_ = results[title]
                for (name, _), result in zip(named, results[title], strict=True):
                    same = (result.score, result.mean, result.ci) == (first.score, first.mean, first.ci)
                    found[name][metric] = {
                        "score": float(result.score),
                        "low": float(result.mean) - float(result.ci),
                        "high": float(result.mean) + float(result.ci),
                        "p": None if same else float(result.p_value),
                    }
        for name, texts in systems.items():
            found[name].update(self._extra_scores(texts))
        return found

    def _extra_scores(self, texts: Sequence[str]) -> Scores:
        scores: Scores = {}
        if self._rouge:
            pairs = list(zip(self.sentences.reference_texts, texts, strict=True))
            every = [self._rouge.score(reference, text) for reference, text in pairs]
            scores.update({kind: {"score": sum(each[kind].fmeasure for each in every) / len(every)} for kind in ROUGE})
        if self._comet:
            sides = (self.sentences.source_texts, texts, self.sentences.reference_texts)
            data = [{"src": source, "mt": text, "ref": reference} for source, text, reference in zip(*sides, strict=True)]
            scores["comet"] = {"score": float(self._comet.predict(data, batch_size=8, gpus=0, progress_bar=False).system_score)}
        return scores

    def bleu(self, texts: Sequence[str], numbers: Sequence[int]) -> float:
        """BLEU of the sentences of these numbers alone, of which ``texts`` are the translations."""
        references = [self.sentences.reference_texts[number] for number in numbers]
        return float(BLEU(**self.bleu_settings, force=True).corpus_score(list(texts), [references]).score)

    def by_length(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """BLEU of each group of sentences whose sources have about as many tokens, the EOS not counted."""
        groups = []
        for first, last in zip((0, *(last + 1 for last in LENGTHS)), (*LENGTHS, None), strict=True):
            inside = [n for n in range(len(texts)) if first <= self.sentences.length(n) <= (last or self.sentences.length(n))]
            if inside:
                score = self.bleu([texts[number] for number in inside], inside)
                groups.append({"from": first, "to": last, "sentences": len(inside), "bleu": score})
        return groups


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


def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=True)


def _comet(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"--comet-model '{path}' is no file: give the checkpoint of a COMET model, model.ckpt")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")  # nothing is fetched behind the user's back
    try:
        comet = import_module("comet")
    except ImportError as error:
        raise UsageError(
            f"--metrics comet needs {error.name or 'comet'}: pip install unbabel-comet, or leave comet out"
        ) from error
    try:
        return comet.load_from_checkpoint(str(path))
    except Exception as error:  # whatever its many packages raise on a file that is none of theirs
        raise UsageError(f"--comet-model '{path}' can't be used: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
