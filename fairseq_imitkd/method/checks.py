"""Checks of a method's settings, before any data is read.

A flag that would change nothing is refused, because a user would think that it had an effect.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, fields

from fairseq_imitkd.errors import UsageError, percent
from fairseq_imitkd.losses.divergences import DIVERGENCES, needs
from fairseq_imitkd.method.config import DistillationConfig, DivergenceConfig, Range, training_length
from fairseq_imitkd.method.schedules import AdaptiveShare, Schedule, moves, parse_schedule, parse_share

SUBWORD_MARKS = ("auto", "none", "@@ ", "subword_nmt", "sentencepiece", "wordpiece", "letter")


def check(cfg: DistillationConfig, method: str, defaults: DistillationConfig) -> None:
    """Refuse values out of range and flags that can't be used together.

    Args:
        cfg: the method's settings.
        method: the method's name.
        defaults: the method's default settings; they tell which flags a user has changed.

    Raises:
        UsageError: one line with the flag, its value and the remedy.
    """
    _check_ranges(cfg)
    context = _Context.from_settings(cfg)
    _check_schedules(cfg, context)
    _check_matching(cfg, context)
    _check_useless(cfg, defaults, context)
    _check_divergence(cfg, context)
    _check_rollouts(cfg, context)
    _check_trainer(cfg, method)


@dataclass(frozen=True)
class _Context:
    """The parsed schedules of a method.

    Args:
        end, end_flag: the length of the training, in updates or epochs, and the flag that sets it.
        last: the number of the last update or epoch (0 = first); 0 if the length is unlimited.
        share, gold: the schedules of ``--student-share`` and ``--gold-weight``.
        replay: the schedule of ``--rollout-replay-share``; None without ``--rollout-replay``.
        never, always: whether the student writes no sentence, or every sentence, during the whole training.
    """

    end: int
    end_flag: str
    last: int
    share: Schedule
    gold: Schedule
    replay: Schedule | None
    never: bool
    always: bool

    @classmethod
    def from_settings(cls, cfg: DistillationConfig) -> "_Context":
        end, end_flag = training_length(cfg)
        share = parse_share(cfg.student_share, end, end_flag=end_flag)
        gold = parse_schedule(cfg.gold_weight, end, flag="--gold-weight", end_flag=end_flag)
        replay = None
        if cfg.rollout_replay:
            flag = "--rollout-replay-share"
            replay = parse_schedule(cfg.rollout_replay_share, end, flag=flag, end_flag=end_flag)
        fixed = not isinstance(share, AdaptiveShare)
        last = max(end - 1, 0)
        never, always = fixed and share(last) == 0.0, fixed and share(0) == 1.0  # no schedule falls
        return cls(end, end_flag, last, share, gold, replay, never, always)

    @property
    def some_schedule_moves(self) -> bool:
        schedules = (self.share, self.gold, self.replay)
        return any(moves(schedule, self.last) for schedule in schedules if schedule)


def _check_ranges(cfg: DistillationConfig) -> None:
    if cfg.divergence not in DIVERGENCES:
        near = difflib.get_close_matches(cfg.divergence.replace("_", "-"), DIVERGENCES, 4, cutoff=0.3)
        raise UsageError(
            "--divergence must be one of those that --help lists, such as "
            f"{', '.join(near or list(DIVERGENCES)[:4])}, but is {cfg.divergence}"
        )
    if cfg.divergence == "jsd" and not 0.0 < cfg.jsd_weight < 1.0:
        raise UsageError(
            "--jsd-weight must be above 0 and below 1 (at 0 and 1 jsd is 0 whatever the student does: use "
            f"jsd-normalised), but is {cfg.jsd_weight}"
        )
    for item in fields(DistillationConfig):
        accepted: Range | None = item.metadata.get("range")
        value = getattr(cfg, item.name)
        if accepted is not None and value not in accepted:
            meant = percent(value) if accepted.high == 1.0 else ""
            raise UsageError(f"{_flag(item.name)} must be {accepted.words}, but is {value}{meant}")
    if cfg.reward_remove_bpe not in SUBWORD_MARKS:
        marks = ", ".join(map(repr, SUBWORD_MARKS))
        raise UsageError(f"--reward-remove-bpe must be one of {marks}, but is '{cfg.reward_remove_bpe}'")


def _check_schedules(cfg: DistillationConfig, context: _Context) -> None:
    """Refuse schedules of epochs in a training of one epoch, which would never leave their first value."""
    if str(cfg.schedule_by) == "epoch" and context.end == 1:
        raise UsageError(
            "--schedule-by epoch needs --max-epoch of at least 2, but it is 1, where every schedule keeps "
            "its first value: leave --schedule-by out, so that schedules follow --max-update"
        )


def _check_matching(cfg: DistillationConfig, context: _Context) -> None:
    """Refuse ``--hidden-match-only`` without a weight, and with targets that are written for nothing."""
    if not cfg.hidden_match_only:
        return
    if cfg.hidden_match == 0.0:
        raise UsageError("--hidden-match-only needs --hidden-match, which is 0: add it with a weight, as 1")
    if not context.never or cfg.teacher_samples:
        written = f"--student-share {cfg.student_share} lets the student write"
        remedy = "add --student-share 0"
        if context.never:
            written, remedy = "--teacher-samples lets the teacher write", "leave it out"
        raise UsageError(
            f"{written} targets, which --hidden-match-only does not read: {remedy}, or use --criterion "
            "word_kd"
        )


def _check_useless(cfg: DistillationConfig, defaults: DistillationConfig, context: _Context) -> None:
    """Refuse flags that a user has changed and that change nothing."""
    if context.never and context.gold(0) == 1.0 and not cfg.teacher_samples and not cfg.hidden_match:
        raise UsageError(
            f"--gold-weight {cfg.gold_weight} leaves no term for the teacher at --student-share "
            f"{cfg.student_share}: lower the weight, raise the share, or use --criterion "
            "label_smoothed_cross_entropy"
        )
    changed = [
        item.name
        for item in fields(defaults)
        if str(getattr(cfg, item.name)) != str(getattr(defaults, item.name))
    ]
    rules = (*_rules_of_rollouts(cfg, context), *_rules_of_losses(cfg, context))
    for names, useless, why in rules:
        for name in changed:
            if useless and name in names:
                value = getattr(cfg, name)
                raise UsageError(f"{_flag(name)}{'' if value is True else f' {value}'} changes nothing {why}")


# (names of flags, whether they change nothing, why they change nothing and what to do instead)
_Rule = tuple[set[str], bool, str]


def _rules_of_rollouts(cfg: DistillationConfig, context: _Context) -> Iterator[_Rule]:
    never = context.never
    rollouts = {item.name for item in fields(DistillationConfig) if item.name.startswith("rollout_")}
    of_decoding = {"rollout_max_len_a", "rollout_max_len_b", "rollout_cuda_graphs"}
    raise_it = f"at --student-share {cfg.student_share}: raise the share or leave it out"
    yield (rollouts - of_decoding) | {"share_by", "reward", "log_rollouts"}, never, raise_it
    yield (
        {"log_rollouts_interval"},
        cfg.log_rollouts == 0,
        "without --log-rollouts: add it with the number of rollouts to show",
    )
    yield of_decoding, never and not cfg.teacher_samples, raise_it
    yield (
        {"gold_weight", "label_smoothing", "teacher_samples", "share_by"},
        context.always,
        f"at --student-share {cfg.student_share}, where the student writes every target: leave it out",
    )
    yield (
        {"rollout_replay_share"},
        cfg.rollout_replay == 0,
        "without --rollout-replay: add it with the number of rollouts to keep",
    )
    yield (
        {"rollout_replay", "rollout_replay_share"},
        context.replay is not None and context.replay(context.last) == 0.0,
        f"at --rollout-replay-share {cfg.rollout_replay_share}: raise it",
    )
    yield (
        {"rollout_pool"},
        cfg.rollout_pool_updates > 1,
        f"with --rollout-pool-updates {cfg.rollout_pool_updates}, which pools already: leave it out",
    )
    yield (
        {"rollout_teacher_topk"},
        str(cfg.rollout_policy) != "speculative",
        "without --rollout-policy speculative: add it",
    )
    yield (
        {"reward_weight", "reward_baseline", "reward_remove_bpe"},
        str(cfg.reward) == "none",
        "without --reward: add it",
    )


def _rules_of_losses(cfg: DistillationConfig, context: _Context) -> Iterator[_Rule]:
    divergence = cfg.divergence
    under = f"under --divergence {divergence}"
    yield {"hidden_match_distance"}, cfg.hidden_match == 0.0, "without --hidden-match: add it with a weight"
    of_tokens = {item.name for item in fields(DivergenceConfig)} - {"loss_average", "_name"}
    yield (
        of_tokens | {"gold_weight", "label_smoothing"},
        cfg.hidden_match_only,
        "with --hidden-match-only, which has no loss of tokens: leave one of them out",
    )
    yield (
        {"label_smoothing"},
        context.gold(context.last) == 0.0,
        "at --gold-weight 0: raise the weight or leave it out",
    )
    for name in ("jsd_weight", "skew", "logit_margin", "rank_topk", "entropy_threshold"):
        yield {name}, not _uses(cfg, name), f"{under}: choose {_users(name)}"
    anneals = _uses(cfg, "annealing")
    yield {"annealing_temperature", "annealing_end"}, not anneals, f"{under}: choose logit-mse"
    yield {"annealing_end"}, cfg.annealing_temperature == 1, "at --annealing-temperature 1: raise it"
    yield {"easy_weight"}, divergence != "target-decoupled-kl", f"{under}: choose target-decoupled-kl"
    selection = str(cfg.token_selection)
    without = "without --token-selection"
    yield {"selected_share"}, selection == "all", f"{without}: add it with batch or queue"
    yield {"selection_queue"}, selection != "queue", f"{without} queue: add it"
    yield {"js_weights"}, divergence != "sequence-js", f"{under}: choose sequence-js"
    choose = f"{under}: choose one that compares distributions, such as forward-kl"
    no_distribution = divergence in ("logit-mse", "teacher-argmax")
    yield {"teacher_temperature", "teacher_topk", "teacher_tail"}, no_distribution, choose
    yield {"student_temperature"}, divergence == "logit-mse", choose
    yield (
        {"teacher_tail"},
        cfg.teacher_topk == 0,
        "without --teacher-topk: add it with the number of tokens to keep",
    )
    yield (
        {"teacher_topk"},
        "target" in needs(DIVERGENCES[divergence])[0],
        f"{under}, which needs the target's probability: leave it out",
    )
    moving = context.some_schedule_moves or (cfg.annealing_temperature > 1 and anneals)
    yield {"schedule_by"}, not moving, "where no schedule moves: leave it out"


def _check_divergence(cfg: DistillationConfig, context: _Context) -> None:
    infinite = {
        "reverse-kl": True,
        "jsd-normalised": cfg.jsd_weight == 1.0,
        "skew-reverse-kl": cfg.skew == 0.0,
        "entropy-aware-kl": True,
    }
    if cfg.teacher_topk and str(cfg.teacher_tail) == "dropped" and infinite.get(cfg.divergence, False):
        raise UsageError(
            f"--teacher-topk {cfg.teacher_topk} makes --divergence {cfg.divergence} infinite, because the "
            "student gives the dropped tokens probability: add --teacher-tail bucket"
        )
    if cfg.annealing_temperature > 1 and context.end <= 0 and _uses(cfg, "annealing"):
        raise UsageError(
            f"--annealing-temperature {cfg.annealing_temperature} needs {context.end_flag}, which sets the "
            "end of the training"
        )


def _check_rollouts(cfg: DistillationConfig, context: _Context) -> None:
    adaptive = isinstance(context.share, AdaptiveShare)
    if str(cfg.reward) != "none":
        _check_on_policy_samples(cfg, f"--reward {cfg.reward}")
    if str(cfg.js_weights) == "exact" and (adaptive or context.share(context.last) > 0.0):
        _check_on_policy_samples(cfg, "--js-weights exact")
    if cfg.rollout_pool or cfg.rollout_pool_updates > 1:
        pool = "--rollout-pool" if cfg.rollout_pool else f"--rollout-pool-updates {cfg.rollout_pool_updates}"
        if str(cfg.rollout_policy) == "speculative":
            raise UsageError(f"{pool} can't be used with --rollout-policy speculative: leave it out")
        if cfg.rollout_replay:
            raise UsageError(
                f"{pool} can't be used with --rollout-replay {cfg.rollout_replay}: leave it out or add "
                "--rollout-replay 0"
            )
    if adaptive and cfg.disable_validation:
        raise UsageError(
            f"--student-share {cfg.student_share} follows the validation loss, but --disable-validation is "
            "given: leave that out or use another schedule"
        )


def _check_on_policy_samples(cfg: DistillationConfig, flag: str) -> None:
    """Refuse rollouts that are not samples from the student's own distribution at the current update."""
    why = f"{flag} needs samples of the student as it is"
    policy = (str(cfg.rollout_policy), cfg.rollout_topk, cfg.rollout_topp, cfg.rollout_temperature)
    if policy != ("sampling", 0, 1.0, 1.0):
        raise UsageError(
            f"{why}: use --rollout-policy sampling without --rollout-topk, --rollout-topp and "
            "--rollout-temperature"
        )
    if cfg.rollout_pool_updates > 1:
        raise UsageError(
            f"{why}, but --rollout-pool-updates {cfg.rollout_pool_updates} gives older ones: use "
            "--rollout-pool"
        )
    if cfg.rollout_replay:
        raise UsageError(
            f"{why}, but --rollout-replay {cfg.rollout_replay} gives older ones: use --rollout-replay 0"
        )


def _check_trainer(cfg: DistillationConfig, method: str) -> None:
    """Refuse fairseq's own flags where they break a method."""
    if cfg.sentence_avg:
        raise UsageError(
            f"--sentence-avg is not for --criterion {method}, whose loss is an average over tokens: leave it "
            "out, or use --loss-average sentence to average per sentence first"
        )
    if cfg.loss_chunk > 0 and cfg.find_unused_parameters:
        raise UsageError(
            f"--loss-chunk {cfg.loss_chunk} uses the output matrix outside the model's forward pass, where "
            "--find-unused-parameters does not find it: leave one of them out"
        )
    if cfg.ddp_backend == "fully_sharded":
        raise UsageError(
            "--ddp-backend fully_sharded shards the student, so no process can write rollouts with it, and "
            f"--criterion {method} can't use it: use --ddp-backend legacy_ddp or pytorch_ddp"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _uses(cfg: DistillationConfig, setting: str) -> bool:
    return setting in needs(DIVERGENCES[cfg.divergence])[1]


def _users(setting: str) -> str:
    return " or ".join(name for name, divergence in DIVERGENCES.items() if setting in needs(divergence)[1])
