"""Flags of fairseq's search that need others, or exclude them."""

from collections.abc import Iterator, Mapping
from typing import Any

from fairseq.dataclass.configs import GenerationConfig

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout.policy import length_limit
from fairseq_imitkd.training.configuration.data import TASKS
from fairseq_imitkd.training.configuration.ranges import flag

POST_PROCESSES = (
    "auto", "none", "sentencepiece", "wordpiece", "letter", "silence", "_EOW", "subword_nmt", "@@ ", "@@",
)  # fmt: skip
# Flags of other tasks than translation: of models that write in several passes, and of speech.
_OF_OTHERS = (
    "print_step", "retain_iter_history", "decoding_format", "iter_decode_eos_penalty", "iter_decode_max_iter",
    "iter_decode_force_max_iter", "iter_decode_with_beam", "iter_decode_with_external_reranker", "eos_token",
    "beam_mt", "max_len_a_mt", "max_len_b_mt", "lenpen_mt",
)  # fmt: skip
# fairseq looks the groups of a sentence up by its number in the data set instead of the batch.
DIVERSE = "mixes up sentences of a data set: use --diversity-rate or --sampling, or imitkd-interactive"
# Flags that change nothing without another one.
_NEEDS = {"lm_weight": "lm_path", "retain_dropout_modules": "retain_dropout"}


def check(settings: Mapping[str, Any], command: str) -> None:
    """Refuse a translation whose flags miss each other.

    Args:
        settings: the settings.
        command: the command, as in :func:`~fairseq_imitkd.training.configuration.check_configuration`.

    Raises:
        UsageError: naming the flag, its value and the remedy.
    """
    for problem in (*search_problems(settings), *_output_problems(settings, command)):
        raise UsageError(problem)


def search_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the settings of a search."""
    beam, nbest = settings.get("beam", 5), settings.get("nbest", 1)
    groups, rate = settings.get("diverse_beam_groups", -1), settings.get("diversity_rate", -1)
    chosen = {
        "--sampling": settings.get("sampling"),
        "--diverse-beam-groups": groups > 0,
        "--match-source-len": settings.get("match_source_len"),
        "--diversity-rate": rate > 0,
    }
    names = [name for name, given in chosen.items() if given]
    if len(names) > 1:
        yield f"{names[0]} can't be used with {names[1]}: leave one of them out"
    for name in ("sampling_topk", "sampling_topp"):
        if settings.get(name, -1) >= 0 and not settings.get("sampling"):
            yield f"--{name.replace('_', '-')} {settings[name]} changes nothing without --sampling: add it"
    if nbest > beam:
        yield f"--nbest {nbest} must be at most --beam, which is {beam}: lower it"
    if groups > 0 and beam % groups:
        yield f"--beam {beam} must be a multiple of --diverse-beam-groups {groups}: change one of them"
    if settings.get("sampling") and beam != nbest:
        yield f"--sampling needs --nbest {beam}, like --beam, but it is {nbest}: change one of them"
    least = settings.get("min_len", 1)
    growth, most = length_limit(settings.get("max_len_a"), settings.get("max_len_b"))
    if least > int(growth + most):  # the limit of the shortest source
        yield f"--min-len {least} must be at most --max-len-b {most}: lower it"


def _output_problems(settings: Mapping[str, Any], command: str) -> Iterator[str]:
    mark = settings.get("post_process")
    if mark is not None and mark not in POST_PROCESSES:
        names = ", ".join(map(repr, POST_PROCESSES))
        yield f"--remove-bpe must be one of {names}, but is '{str(mark)[:60]}'"
    generates, interactive = command == "generate", command == "interactive"
    if settings.get("constraints") and generates:
        yield "--constraints is for imitkd-interactive, whose lines hold them: leave it out"
    if interactive and settings.get("score_reference"):
        yield "--score-reference needs references: use imitkd-generate, or leave it out"
    if interactive and settings.get("print_alignment") == "soft":
        yield "--print-alignment soft is for imitkd-generate: use hard, or leave it out"
    if generates and settings.get("diverse_beam_groups", -1) > 0:
        yield f"--diverse-beam-groups {DIVERSE}"
    for name in _OF_OTHERS:
        if settings.get("task") in TASKS and _is_given(settings, name):
            yield f"{flag(name)} is not for --task {settings['task']}: leave it out"
    for name, other in _NEEDS.items():
        if _is_given(settings, name) and not settings.get(other):
            yield f"{flag(name)} changes nothing without {flag(other)}: add that, or leave it out"
    if settings.get("scoring") == "meteor":
        yield "--scoring meteor can't be used, because nltk takes no texts as fairseq gives them: use another"
    if settings.get("lr_scheduler") not in (None, "fixed"):
        yield f"--lr-scheduler {settings['lr_scheduler']} is for imitkd-train: leave it out"
    if settings.get("replace_unk") is not None and generates and settings.get("dataset_impl") != "raw":
        yield "--replace-unk needs text that is not binarised: add --dataset-impl raw, or leave it out"
    size, buffer = settings.get("batch_size"), max(1, settings.get("buffer_size") or 0)
    if interactive and size is not None and size > buffer:
        yield f"--batch-size {size} must be at most --buffer-size, which is {buffer}: raise that"


def _is_given(settings: Mapping[str, Any], name: str) -> bool:
    """Whether a flag of the search has another value than its default."""
    default = GenerationConfig.__dataclass_fields__[name].default
    return settings.get(name, default) != default
