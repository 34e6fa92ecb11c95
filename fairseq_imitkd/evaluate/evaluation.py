"""The whole of an evaluation: everything is checked, decoded once, scored, probed, and written whole or not at all."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import Decoding, Hypothesis
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate import folder, models, provenance, quality
from fairseq_imitkd.evaluate.memory import Measurement
from fairseq_imitkd.evaluate.models import FAIRSEQ, Model
from fairseq_imitkd.evaluate.probes import Prober
from fairseq_imitkd.evaluate.quality import Metrics
from fairseq_imitkd.evaluate.sentences import Detokenizer, read, spread
from fairseq_imitkd.evaluate.speed import GREEDY, Failures, Run, Timings, figures, interleave, nothing
from fairseq_imitkd.text.subwords import TextSettings

FORMAT = 1


@dataclass(frozen=True)
class Job:
    """Everything ``imitkd-evaluate`` is told.

    Args:
        command: as it was typed.
        paths: of the models, by name.
        data: fairseq's data directory that they were trained on.
        out: the folder to write.
        decoding: the search beside greedy decoding, none if its beam is 1, and the subword marks to undo in outputs.
        text: whose subwords and tokenisation are undone in outputs.
        teacher: the model whose students the others are.
        baseline: the model that the others are compared with.
        split: whose sentences are translated.
        sentences: how many, evenly spread; 0 is all.
        batch_sizes: whose speed is measured; the largest one decodes the test set.
        timed: sentences of the smaller ones.
        probed: sentences of the teacher's probes; 0 is all.
        metrics: beside BLEU, chrF and TER, some of :data:`~fairseq_imitkd.evaluate.quality.EXTRA`.
        bleu_tokenize: how BLEU makes words of text; None is sacreBLEU's choice for the language.
        comet_model: file of COMET's model.
        ter: whether TER is computed.
        threads: to compute with; None is torch's choice.
        source_lang, target_lang: None reads them off the data directory.
        allow_globals: types that checkpoints may hold beside fairseq's own.

    Raises:
        UsageError: a value is out of range, names nothing, or changes nothing.
    """

    command: str
    paths: Mapping[str, Path]
    data: Path
    out: Path
    decoding: Decoding
    text: TextSettings
    teacher: str | None = None
    baseline: str | None = None
    split: str = "test"
    sentences: int = 0
    batch_sizes: Sequence[int] = (1, 32)
    timed: int = 100
    probed: int = 250
    metrics: Sequence[str] = ()
    bleu_tokenize: str | None = None
    comet_model: Path | None = None
    ter: bool = True
    threads: int | None = None
    source_lang: str | None = None
    target_lang: str | None = None
    allow_globals: str | None = None

    def __post_init__(self) -> None:
        for flag, number in (("--sentences", self.sentences), ("--probe-sentences", self.probed)):
            if number < 0:
                raise UsageError(f"{flag} must be 0 (all) or more, but is {number}")
        for flag, name in (("--teacher", self.teacher), ("--baseline", self.baseline)):
            if name is not None and name not in self.paths:
                raise UsageError(f"{flag} must be one of the models {', '.join(self.paths)}, but is '{name}'")
        if self.teacher is not None and os.path.isdir(self.paths[self.teacher]):
            raise UsageError(
                f"--teacher {self.teacher} is an exported model, whose probabilities can't be asked for: give its checkpoint"
            )
        if self.decoding.remove_bpe is not None and self.text.bpe is not None:
            raise UsageError("--remove-bpe and --bpe both undo subwords: give one of them")
        if ("comet" in self.metrics) != (self.comet_model is not None):
            raise UsageError("--metrics comet and --comet-model FILE need each other: give both, or none")
        folder.check(self.out)

    @property
    def compared_with(self) -> str | None:
        """Whom the others are compared with: the teacher where no baseline is named."""
        return self.baseline or self.teacher

    @property
    def searches(self) -> dict[str, Decoding]:
        """How each model decodes, by name."""
        beam = {} if self.decoding.beam == 1 else {f"beam {self.decoding.beam}": self.decoding}
        return {GREEDY: replace(self.decoding, beam=1), **beam}


def evaluate(job: Job, show: Callable[[dict[str, Any]], object] = lambda _: None) -> dict[str, Any]:
    """Evaluate the models and write the folder.

    Args:
        job: what to do.
        show: is given what is returned, also where it can't be written: hours are in it.

    Returns:
        what ``evaluation.json`` holds; ``failed`` names what gave up on the way, a model or COMET, and why.

    Raises:
        UsageError: something is wrong with what was given, or no model is left.
    """
    begun = time.perf_counter()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    with folder.held(job.out):  # before hours are spent on what can't be written
        evaluation = _Evaluation(job)
        evaluation.translate()
        with closing(evaluation.memory()) as memory:
            probes_begun = time.perf_counter()
            probes = evaluation.probes()
            probing = time.perf_counter() - probes_begun
            decodings = evaluation.decodings()
            found = {
                name: {
                    **_described(model, job.allow_globals),
                    "decoding": decodings[name],
                    "speed": evaluation.speed(name),
                    "probes": probes.get(name),
                }
                for name, model in evaluation.models.items()
            }
            for name, peak in memory.peaks().items():
                found[name]["peak_memory_bytes"] = peak
        results = {
            "format": FORMAT,
            "command": job.command,
            "commit": provenance.commit(),
            "versions": provenance.versions(
                {*(model.kind for model in evaluation.models.values()), *job.metrics}
            ),
            "machine": provenance.machine(),
            "data": evaluation.data,
            "baseline": evaluation.baseline,
            "teacher": evaluation.teacher,
            "signatures": evaluation.metrics.signatures,
            "files": {"sources": folder.SOURCES, "references": folder.REFERENCES},
            "models": found,
            "failed": {**evaluation.failures.reasons, **evaluation.metrics.failed},
            "seconds": {
                "decoding": evaluation.seconds,
                "probes": probing,
                "total": time.perf_counter() - begun,
            },
        }
        try:
            folder.write(job.out, evaluation.sentences, evaluation.texts, results)
        finally:
            show(results)
    return results


class _Evaluation:
    """The models, the test set, and what they make of it."""

    def __init__(self, job: Job):
        self.job = job
        self.languages = Languages.of(job.data, job.source_lang, job.target_lang)
        self.failures = Failures()
        self.models = self._load()
        self.text = Detokenizer(self.languages, job.text, job.decoding.remove_bpe)
        self.sentences = read(self.languages, job.split, job.sentences, self.models, self.text)
        self.metrics = Metrics(
            self.sentences, self.languages.target, job.bleu_tokenize, job.metrics, job.comet_model, job.ter
        )
        self.translations: dict[Run, list[Hypothesis]] = {}
        self.texts: dict[Run, list[str]] = {}
        self.timings: dict[int, Timings] = {}

    def _load(self) -> dict[str, Model]:
        """All models that can be loaded: the others, unless everything is compared with them, are failures at once."""
        job, found = self.job, {}
        for name, path in job.paths.items():
            try:
                found[name] = models.load(path, self.languages, job.searches[GREEDY], job.allow_globals)
            except UsageError as error:
                if name in (job.teacher, job.compared_with) or len(job.paths) == 1:
                    raise UsageError(f"--model {name}: {error}") from error
                self.failures.note(name, "loading", error)
        return self._left(found)

    def _left(self, found: Mapping[str, Model]) -> dict[str, Model]:
        left = {name: model for name, model in found.items() if name not in self.failures}
        if not left:
            raise UsageError(
                "no model is left: "
                + "; ".join(f"{name} failed {why}" for name, why in self.failures.reasons.items())
            )
        return left

    def translate(self) -> None:
        """Decode the test set once, at the largest batch size; at each other one, some of it, greedily."""
        job, sentences = self.job, self.sentences
        engines = {
            (name, search): model.translating(self.languages, decoding)
            for name, model in self.models.items()
            for search, decoding in job.searches.items()
        }
        greedy = {run: engine for run, engine in engines.items() if run[1] == GREEDY}
        every = sentences.translatable()
        some = [every[place] for place in spread(len(every), min(job.timed, len(every)))]
        largest, *smaller = sorted(set(job.batch_sizes), reverse=True)
        total = len(every) * len(engines) + len(some) * len(greedy) * len(smaller)
        with tqdm(total=total, desc="translate", unit=" sentences", mininterval=1.0, leave=False) as bar:
            self.timings[largest], found = interleave(
                engines, sentences, sentences.batches(every, largest), self.failures, bar
            )
            for size in smaller:
                self.timings[size], _ = interleave(
                    greedy, sentences, sentences.batches(some, size), self.failures, bar
                )
        self.models = self._left(self.models)
        empty = nothing(self.languages.target_dictionary.eos())
        for run, by_number in found.items():
            if run[0] in self.models:
                self.translations[run] = [by_number.get(number, empty) for number in range(len(sentences))]
                self.texts[run] = self.text.targets(
                    hypothesis.tokens for hypothesis in self.translations[run]
                )

    @property
    def baseline(self) -> str | None:
        """Whom the others are compared with, if it is left."""
        return self.job.compared_with if self.job.compared_with in self.models else None

    @property
    def teacher(self) -> str | None:
        """Whom the probes ask, if it is left."""
        return self.job.teacher if self.job.teacher in self.models else None

    @property
    def data(self) -> dict[str, Any]:
        """What was translated."""
        return {
            "split": self.job.split,
            "source_lang": self.languages.source,
            "target_lang": self.languages.target,
            "sentences": len(self.sentences),
            "probe_sentences": len(self._probed()) if self.teacher else None,
        }

    @property
    def seconds(self) -> float:
        """That were spent in decoding what is measured."""
        runs = chain.from_iterable(timings.values() for timings in self.timings.values())
        return sum(timing.seconds for run in runs for timing in run)

    def memory(self) -> Measurement:
        """Begin to measure it, on the longest batch."""
        size = max(self.job.batch_sizes)
        [batch, *_] = self.sentences.batches(self.sentences.translatable(), size)
        sources = [self.sentences.sources[number] for number in batch]
        greedy = self.job.searches[GREEDY]
        return Measurement(
            self.models, self.languages, greedy, sources, torch.get_num_threads(), self.job.allow_globals
        )

    def decodings(self) -> dict[str, dict[str, Any]]:
        """How good each model's translations are, by model and search."""
        found: dict[str, dict[str, Any]] = {name: {} for name in self.models}
        largest = max(self.job.batch_sizes)
        with tqdm(total=len(self.texts), desc="score", unit=" outputs", leave=False) as bar:
            for search in self.job.searches:
                systems = {name: self.texts[name, search] for name in self.models}
                scores = self.metrics.compare(systems, self.baseline, bar)
                for name, texts in systems.items():
                    found[name][search] = {
                        **scores[name],
                        "empty": sum(not text for text in texts),
                        "truncated": sum(hypothesis.cut for hypothesis in self.translations[name, search]),
                        "repeating": sum(map(quality.repeats, texts)),
                        "by_length": self.metrics.by_length(texts),
                        "outputs": folder.outputs((name, search)),
                    }
                    if search != GREEDY:
                        found[name][search]["speed"] = {
                            "batch_size": largest,
                            **self._figures(largest, name, search),
                        }
        return found

    def speed(self, name: str) -> dict[str, Any]:
        """How fast a model decodes greedily, by batch size."""
        return {str(size): self._figures(size, name, GREEDY) for size in sorted(self.timings)}

    def _figures(self, size: int, name: str, search: str) -> dict[str, Any]:
        base = None if self.baseline is None else self.timings[size][self.baseline, search]
        return figures(self.timings[size][name, search], base, search)

    def _probed(self) -> list[int]:
        """Numbers of the sentences of the probes, by falling length: those whose references both sides can represent."""
        longest = min(model.longest[1] for model in self.models.values())
        fits = [n for n in self.sentences.translatable() if self.sentences.references[n].numel() <= longest]
        chosen = [fits[place] for place in spread(len(fits), min(self.job.probed or len(fits), len(fits)))]
        return [number for batch in self.sentences.batches(chosen, max(len(chosen), 1)) for number in batch]

    def probes(self) -> dict[str, dict[str, Any]]:
        """What the teacher finds about each of its students that is a checkpoint."""
        students = {
            name: model.fairseq
            for name, model in self.models.items()
            if model.fairseq and name != self.teacher
        }
        numbers = self._probed() if self.teacher else []
        if self.teacher is None or not numbers or not students:
            return {}
        sentences, teacher = self.sentences, self.models[self.teacher].fairseq
        sources, references = (
            [side[number] for number in numbers] for side in (sentences.sources, sentences.references)
        )
        assert teacher is not None
        prober = Prober(
            teacher, self.languages, self.job.searches[GREEDY], sources, references, max(self.job.batch_sizes)
        )

        def greedy(name: str) -> list[Tensor]:
            return [self.translations[name, GREEDY][number].tokens for number in numbers]

        def bleu(tokens: Sequence[Tensor]) -> float:
            return self.metrics.bleu(self.text.targets(tokens), numbers)

        found = {}
        for name, student in tqdm(students.items(), desc="probe", unit=" student", leave=False):
            try:
                found[name] = prober.probe(student, greedy(name), greedy(self.teacher), bleu)
            except Exception as error:  # its other figures stand
                self.failures.note(name, "being probed", error)
        return found


def _described(model: Model, allow_globals: str | None) -> dict[str, Any]:
    """What a model is, and its size."""
    return {
        "kind": model.kind,
        "quantization": model.quantization,
        "path": model.path.absolute().name,
        "arch": model.arch,
        "parameters": model.parameters,
        "bytes": model.bytes_on_disk,
        "weight_bytes": models.weight_bytes(model.path, allow_globals) if model.kind == FAIRSEQ else None,
        "peak_memory_bytes": None,
    }
