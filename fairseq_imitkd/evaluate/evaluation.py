"""Runs an evaluation: checks everything, decodes once, scores, probes, and writes all results or none."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from fairseq_imitkd.data.bars import Bar
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import Engine, Hypothesis, SearchSettings
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate import drafts, folder, models, provenance, sentences
from fairseq_imitkd.evaluate.memory import MemoryMeasurement
from fairseq_imitkd.evaluate.models import FAIRSEQ, EvaluatedModel
from fairseq_imitkd.evaluate.probes import Accepted, Prober
from fairseq_imitkd.evaluate.quality import Metrics, SystemScores
from fairseq_imitkd.evaluate.schema import (
    GREEDY,
    EvaluatedData,
    EvaluationResults,
    ModelResults,
    ProbeResults,
    SearchResults,
    Seconds,
    SpeedResult,
    to_json,
)
from fairseq_imitkd.evaluate.sentences import Detokenizer, spread
from fairseq_imitkd.evaluate.speed import Failures, Run, Timings, empty_hypothesis, interleave, speed_result
from fairseq_imitkd.export.text_check import check_dictionaries, warn_if_encoded_otherwise
from fairseq_imitkd.text.marks import subword_mark
from fairseq_imitkd.text.repetition import repeats
from fairseq_imitkd.text.subwords import TextSettings

_CHECKED = 500  # most sentences that show whether the text is the data's


@dataclass(frozen=True)
class EvaluationJob:
    """The flags of ``imitkd-evaluate``.

    Args:
        command: command line as it was typed.
        paths: paths of the models by name.
        data: fairseq's data directory that the models were trained on.
        out: folder to write.
        decoding: settings of the search beside greedy decoding, none if its beam is 1; and subword marks to
            undo.
        text: subwords and tokenisation to undo in outputs.
        teacher: name of the model that the others are students of.
        baseline: name of the model that the others are compared with; None takes the student that was trained
            without a teacher.
        split: split to translate.
        sentences: number of its sentences, evenly spread; 0 is all.
        batch_sizes: batch sizes to time; the largest one decodes the test set.
        timed: number of sentences at each smaller batch size.
        probed: number of sentences of the teacher's probes; 0 is all.
        metrics: some of :data:`~fairseq_imitkd.evaluate.quality.EXTRA`, beside BLEU, chrF and TER.
        bleu_tokenize: sacreBLEU's tokenizer for BLEU; None is its choice for the language.
        comet_model: file of COMET's model.
        ter: whether TER is computed.
        references: file with all right translations of each sentence; None takes the data's references.
        threads: number of threads; None is torch's choice.
        source_lang, target_lang: languages; None reads them from the names in the data directory.
        allow_globals: types that checkpoints may hold beside fairseq's own.

    Raises:
        UsageError: a value is out of range, names nothing, or changes nothing.
    """

    command: str
    paths: Mapping[str, Path]
    data: Path
    out: Path
    decoding: SearchSettings
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
    references: Path | None = None
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
                raise UsageError(f"{flag} takes a name of --model ({', '.join(self.paths)}), but is '{name}'")
        if self.teacher is not None and os.path.isdir(self.paths[self.teacher]):
            raise UsageError(
                f"--teacher {self.teacher} is an exported model, which gives no probabilities; use its "
                "checkpoint"
            )
        self.text.check_mark(self.decoding.remove_bpe)
        if ("comet" in self.metrics) != (self.comet_model is not None):
            raise UsageError("--metrics comet and --comet-model FILE need each other; use both or neither")
        folder.check(self.out)

    @property
    def searches(self) -> dict[str, SearchSettings]:
        """The searches of each model by name."""
        beam = {} if self.decoding.beam == 1 else {f"beam {self.decoding.beam}": self.decoding}
        return {GREEDY: replace(self.decoding, beam=1), **beam}

    @property
    def largest_batch(self) -> int:
        """The batch size that decodes the test set."""
        return max(self.batch_sizes)


def evaluate(
    job: EvaluationJob, show: Callable[[EvaluationResults], object] = lambda _: None
) -> EvaluationResults:
    """Evaluate the models and write the folder.

    Args:
        job: what to do.
        show: called with the results, also if they can't be written: they may have taken hours.

    Returns:
        the results; ``failed`` names the models and metrics that failed.

    Raises:
        UsageError: a flag or a file is wrong, or all models failed.
    """
    begun = time.perf_counter()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    with folder.held(job.out):  # fails before hours are spent if the folder can't be written
        evaluation = _Evaluation(job)
        evaluation.translate()
        results = evaluation.results(begun)
        try:
            folder.write(job.out, evaluation.sentences, evaluation.texts, results=to_json(results))
        finally:
            show(results)
    return results


class _Evaluation:
    """The models, the test set, and its translations."""

    def __init__(self, job: EvaluationJob):
        self.job = job
        self.languages = Languages.of(job.data, job.source_lang, job.target_lang)
        check_dictionaries(job.text, self.languages)
        self.failures = Failures()
        self.models = self._load()
        self.compared_with = job.baseline or models.without_teacher(self.models, job.teacher)
        mark = None
        if job.text.bpe is None:
            mark = subword_mark(self.languages.target_dictionary, job.decoding.remove_bpe, "--remove-bpe")
        self.text = Detokenizer(self.languages, job.text, mark)
        self.sentences = sentences.read(
            self.languages,
            job.split,
            count=job.sentences,
            models=self.models,
            detokenizer=self.text,
            right=job.references,
        )
        some = spread(len(self.sentences), min(_CHECKED, len(self.sentences)))
        warn_if_encoded_otherwise(
            job.text, self.languages, [self.sentences.sources[number] for number in some], split=job.split
        )
        self.metrics = Metrics(
            self.sentences,
            self.languages.target,
            job.bleu_tokenize,
            extra=job.metrics,
            comet_model=job.comet_model,
            ter=job.ter,
        )
        self.translations: dict[Run, list[Hypothesis]] = {}
        self.texts: dict[Run, list[str]] = {}
        self.timings: dict[int, Timings] = {}
        self.accepted: dict[str, dict[str, Accepted]] = {}  # by student and decoding

    def _load(self) -> dict[str, EvaluatedModel]:
        """Load the models. One that fails is left out, unless all others are compared with it."""
        job, found = self.job, {}
        for name, path in job.paths.items():
            try:
                found[name] = models.load(
                    path, self.languages, job.searches[GREEDY], allow_globals=job.allow_globals
                )
            except UsageError as error:
                if name in (job.teacher, job.baseline) or len(job.paths) == 1:
                    raise UsageError(f"--model {name}: {error}") from error
                self.failures.note(name, "loading", error)
        return self._without_failures(found)

    def _without_failures(self, found: Mapping[str, EvaluatedModel]) -> dict[str, EvaluatedModel]:
        left = {name: model for name, model in found.items() if name not in self.failures}
        if not left:
            reasons = "; ".join(f"{name} failed {why}" for name, why in self.failures.reasons.items())
            raise UsageError(f"no model is left: {reasons}")
        return left

    def translate(self) -> None:
        """Decode the test set at the largest batch size, and greedily a part of it at each smaller one."""
        job, engines = self.job, self._engines()
        greedy = {run: engine for run, engine in engines.items() if run[1] == GREEDY}
        every = self.sentences.translatable()
        some = [every[place] for place in spread(len(every), min(job.timed, len(every)))]
        largest, *smaller = sorted(set(job.batch_sizes), reverse=True)
        total = len(every) * len(engines) + len(some) * len(greedy) * len(smaller)
        with Bar(total=total, desc="translate", unit=" sentences", leave=False) as bar:
            batches = self.sentences.batches(every, largest)
            self.timings[largest], found = interleave(
                engines, self.sentences, batches, failures=self.failures, bar=bar
            )
            for size in smaller:
                batches = self.sentences.batches(some, size)
                self.timings[size], _ = interleave(
                    greedy, self.sentences, batches, failures=self.failures, bar=bar
                )
        self.models = self._without_failures(self.models)
        empty = empty_hypothesis(self.languages.target_dictionary.eos())
        for run, by_number in found.items():
            if run[0] in self.models:
                hypotheses = [by_number.get(number, empty) for number in range(len(self.sentences))]
                self.translations[run] = hypotheses
                self.texts[run] = self.text.target.hypotheses(hypothesis.tokens for hypothesis in hypotheses)

    def _engines(self) -> dict[Run, Engine]:
        return {
            (name, search): model.translating(decoding)
            for name, model in self.models.items()
            for search, decoding in self.job.searches.items()
        }

    def results(self, begun: float) -> EvaluationResults:
        """Score and probe the translations, while another process measures memory.

        Args:
            begun: the time at which the evaluation began, by ``time.perf_counter``.
        """
        with closing(self._memory()) as memory:
            probes_begun = time.perf_counter()
            probes = self._probes()
            probing = time.perf_counter() - probes_begun
            searches = self._searches()
            found = {name: self._described(model) for name, model in self.models.items()}
            for name, model in found.items():
                model.searches, model.probes = searches[name], probes.get(name)
                model.speeds = {size: self._speed(size, name, GREEDY) for size in sorted(self.timings)}
            self._add_drafts(found)
            for name, peak in memory.peaks().items():
                found[name].peak_memory_bytes = peak
        kinds = {model.kind for model in self.models.values()}
        timings = chain.from_iterable(by_run.values() for by_run in self.timings.values())
        decoding = sum(timing.seconds for run in timings for timing in run)
        return EvaluationResults(
            command=self.job.command,
            commit=provenance.commit(),
            versions=provenance.versions({*kinds, *self.job.metrics}),
            machine=provenance.machine(),
            data=self._data(),
            baseline=self.baseline,
            teacher=self.teacher,
            signatures=self.metrics.signatures,
            files=folder.named(self.sentences),
            models=found,
            failed={**self.failures.reasons, **self.metrics.failed},
            seconds=Seconds(decoding, probing, time.perf_counter() - begun),
        )

    @property
    def baseline(self) -> str | None:
        """The name of the model that the others are compared with, unless it failed."""
        return self.compared_with if self.compared_with in self.models else None

    @property
    def teacher(self) -> str | None:
        """The name of the model that the probes ask, unless it failed."""
        return self.job.teacher if self.job.teacher in self.models else None

    def _data(self) -> EvaluatedData:
        return EvaluatedData(
            split=self.job.split,
            source_lang=self.languages.source,
            target_lang=self.languages.target,
            sentences=len(self.sentences),
            unknown_words=self.sentences.unknown,
            probe_sentences=len(self._probed()) if self.teacher else None,
        )

    def _described(self, model: EvaluatedModel) -> ModelResults:
        """Return what a model is, and its size."""
        is_checkpoint = model.kind == FAIRSEQ
        return ModelResults(
            kind=model.kind,
            quantization=model.quantization,
            path=model.path.absolute().name,
            arch=model.arch,
            parameters=model.parameters,
            bytes=model.bytes_on_disk,
            weight_bytes=models.weight_bytes(model.path, self.job.allow_globals) if is_checkpoint else None,
        )

    def _memory(self) -> MemoryMeasurement:
        """Begin to measure memory, on the longest batch."""
        [batch, *_] = self.sentences.batches(self.sentences.translatable(), self.job.largest_batch)
        return MemoryMeasurement(
            self.models,
            self.languages,
            decoding=self.job.searches[GREEDY],
            batch=[self.sentences.sources[number] for number in batch],
            threads=torch.get_num_threads(),
            allow_globals=self.job.allow_globals,
        )

    def _searches(self) -> dict[str, dict[str, SearchResults]]:
        """Score the translations; return the results by model and search."""
        found: dict[str, dict[str, SearchResults]] = {name: {} for name in self.models}
        with Bar(total=len(self.texts), desc="score", unit=" outputs", leave=False) as bar:
            for search in self.job.searches:
                systems = {name: self.texts[name, search] for name in self.models}
                scores = self.metrics.compare(systems, self.baseline, bar)
                for name in systems:
                    found[name][search] = self._search((name, search), scores[name])
        return found

    def _search(self, run: Run, scores: SystemScores) -> SearchResults:
        texts, largest = self.texts[run], self.job.largest_batch
        speed = None if run[1] == GREEDY else replace(self._speed(largest, *run), batch_size=largest)
        return SearchResults(
            scores=scores,
            empty=sum(not text for text in texts),
            truncated=sum(hypothesis.cut for hypothesis in self.translations[run]),
            repeating=sum(map(repeats, texts)),
            by_length=self.metrics.by_length(texts),
            outputs=folder.outputs(run),
            speed=speed,
        )

    def _add_drafts(self, found: dict[str, ModelResults]) -> None:
        """Add how the teacher accepts the students' drafts, with the cost of a token at the smallest batch
        size.
        """
        for name, by_decoding in self.accepted.items():
            assert self.teacher is not None
            own, theirs = (
                next(iter(found[each].speeds.values())).tokens_per_second for each in (name, self.teacher)
            )
            if own and theirs:
                found[name].drafts = {
                    decoding: drafts.results(*accepted, cost=theirs / own)
                    for decoding, accepted in by_decoding.items()
                }

    def _speed(self, size: int, name: str, search: str) -> SpeedResult:
        base = None if self.baseline is None else self.timings[size][self.baseline, search]
        return speed_result(self.timings[size][name, search], base, search)

    def _probed(self) -> list[int]:
        """Return the numbers of the probes' sentences, the longest first; no model cuts their references."""
        longest = min(model.longest[1] for model in self.models.values())
        fits = [n for n in self.sentences.translatable() if self.sentences.references[n].numel() <= longest]
        chosen = [fits[place] for place in spread(len(fits), min(self.job.probed or len(fits), len(fits)))]
        return [number for batch in self.sentences.batches(chosen, max(len(chosen), 1)) for number in batch]

    def _probes(self) -> dict[str, ProbeResults]:
        """Ask the teacher about each student that is a checkpoint."""
        students = {
            name: model.fairseq
            for name, model in self.models.items()
            if model.fairseq and name != self.teacher
        }
        numbers = self._probed() if self.teacher else []
        if self.teacher is None or not numbers or not students:
            return {}
        teacher = self.models[self.teacher].fairseq
        assert teacher is not None
        prober = Prober(
            teacher,
            self.languages,
            decoding=self.job.searches[GREEDY],
            sources=[self.sentences.sources[number] for number in numbers],
            references=[self.sentences.references[number] for number in numbers],
            size=self.job.largest_batch,
        )

        def greedy(name: str) -> list[Tensor]:
            return [self.translations[name, GREEDY][number].tokens for number in numbers]

        def bleu(tokens: Sequence[Tensor]) -> float:
            return self.metrics.bleu(self.text.target.hypotheses(tokens), numbers)

        found, teachers = {}, greedy(self.teacher)
        for name, student in Bar(students.items(), desc="probe", unit=" student", leave=False):
            try:
                found[name] = prober.probe(student, own=greedy(name), teachers=teachers, bleu=bleu)
                self.accepted[name] = prober.accepted(student, teachers)
            except Exception as error:  # the model's other results stand
                self.failures.note(name, "being probed", error)
        return found
