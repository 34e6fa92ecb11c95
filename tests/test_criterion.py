"""The criterion: each method's loss by its definition, its divisor, and its logs."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.logging import metrics
from torch import Tensor

from fairseq_imitkd.criterion import DISTILLATION, Distillation, DistillationCriterion
from fairseq_imitkd.errors import RefusedUpdate, UsageError
from fairseq_imitkd.losses.token_weights import DifficultyQueue
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.mixing.batch import with_rollouts
from fairseq_imitkd.models.logits import WholeLogits
from fairseq_imitkd.rollout import Rollout
from tests.helpers.fairseq_models import (
    TOKENWISE,
    AtUpdate,
    build_student,
    make_batch,
    reversed_pairs,
    tiny_criterion,
    tiny_task,
)

PAD = 1


def distillation_batch(seed: int = 1, rollout_rows: tuple[int, ...] = (1, 3)) -> dict[str, Any]:
    """Return five sentences of varied length, some of them rollouts, with random logits of a teacher."""
    generator = torch.Generator().manual_seed(seed)
    sample = make_batch(reversed_pairs(5, seed))
    rollout = Rollout(torch.tensor([[9, 8, 2, PAD], [7, 7, 7, 7]]), torch.tensor([False, True]))
    rows = torch.tensor(rollout_rows)
    if len(rows):
        sample = with_rollouts(sample, rows, rollout, pad=PAD)
    batch, width = sample["target"].shape
    is_rollout = torch.zeros(batch, dtype=torch.bool)
    is_rollout[rows.long()] = True
    teacher_logits = 2.0 * torch.randn(batch, width, 20, generator=generator)
    truncated = torch.zeros(batch, dtype=torch.bool)
    truncated[list(rollout_rows[1:])] = True
    return {
        **sample,
        DISTILLATION: Distillation(
            WholeLogits(teacher_logits.flatten(0, 1)),
            is_rollout,
            truncated,
            AtUpdate(),
            difficulties=DifficultyQueue(25),
        ),
    }


def teacher_logits(sample: dict[str, Any]) -> Tensor:
    """Return the teacher's logits, ``(B, T, V)``."""
    return sample[DISTILLATION].teacher.values.view(*sample["target"].shape, -1)


def student_lprobs(model, sample: dict[str, Any]) -> Tensor:
    """Return the student's log-probabilities in float64, ``(B, T, V)``."""
    with torch.no_grad():
        return model(**sample["net_input"])[0].double().log_softmax(-1)


def reference_losses(
    name: str, gold_weight: float, model, sample: dict[str, Any]
) -> list[tuple[bool, float, float]]:
    """Return (is rollout, loss, NLL of the target) for each token that is not padding."""
    lprobs, given = student_lprobs(model, sample), sample[DISTILLATION]
    losses = []
    for row, target in enumerate(sample["target"].tolist()):
        for position, token in enumerate(target):
            if token == PAD:
                continue
            q = lprobs[row, position]
            p = teacher_logits(sample)[row, position].double().softmax(-1)
            if name == "imitkd":
                divergence = -float(q[int(p.argmax())])
            else:
                divergence = float(sum(p[v] * (p[v].log() - q[v]) for v in range(20)))
            own = bool(given.is_rollout[row])
            weight = 0.0 if own else gold_weight
            losses.append((own, weight * -float(q[token]) + (1.0 - weight) * divergence, -float(q[token])))
    return losses


@pytest.fixture(scope="module")
def student():
    """An untrained transformer without dropout."""
    return build_student().eval()


@pytest.mark.parametrize(
    ("name", "settings", "gold_weight"),
    [
        ("imitkd", {}, 0.0),
        ("imitkd_full", {}, 0.0),
        ("word_kd", {}, 0.5),
        ("word_kd", {"gold_weight": "0.2"}, 0.2),
        ("word_kd", {"gold_weight": "1.0", "student_share": "0.5"}, 1.0),
        ("imitkd", {"gold_weight": "0.3"}, 0.3),
    ],
)
def test_loss_and_logs_follow_the_definition(student, name: str, settings: dict, gold_weight: float) -> None:
    """The gold weight applies to data rows alone, because rollouts have no reference."""
    sample = distillation_batch()
    loss, sample_size, logs = tiny_criterion(name, tiny_task(), **settings)(student, sample)
    expected = reference_losses(name, gold_weight, student, sample)
    data, own = ([entry for entry in expected if entry[0] is kind] for kind in (False, True))
    assert len(own) == 7
    assert len(data) > 5
    assert float(loss) == pytest.approx(sum(entry[1] for entry in expected), rel=1e-5)
    assert sample_size == len(expected)
    for key, value in {
        "loss": sum(entry[1] for entry in expected),
        "loss_data": sum(entry[1] for entry in data),
        "loss_rollout": sum(entry[1] for entry in own),
        "nll_loss": sum(entry[2] for entry in data),
    }.items():
        assert float(logs[key]) == pytest.approx(value, rel=1e-5), key
    lprobs = student_lprobs(student, sample)
    agree = (lprobs.argmax(-1) == teacher_logits(sample).argmax(-1)) & sample["target"].ne(PAD)
    asked = (
        own if gold_weight == 1.0 else expected
    )  # the teacher is not asked about rows whose loss is that of the references alone
    if gold_weight == 1.0:
        agree = agree & sample[DISTILLATION].is_rollout.unsqueeze(-1)
    for key, value in {
        "ntokens": len(expected),
        "sample_size": len(expected),
        "nsentences": 5,
        "tokens_data": len(data),
        "tokens_rollout": len(own),
        "teacher_tokens": len(asked),
        "teacher_agrees": int(agree.sum()),
        "rollouts": 2,
        "rollouts_truncated": 1,
        "rollouts_empty": 0,
        "positions": sample["target"].numel(),
    }.items():
        assert float(logs[key]) == value, key


@pytest.mark.parametrize("name", ["imitkd", "imitkd_full", "word_kd"])
def test_unreduced_loss_is_of_each_token(student, name: str) -> None:
    """``reduce=False`` returns the losses of the counted tokens in the batch's order."""
    criterion, sample = tiny_criterion(name, tiny_task()), distillation_batch()
    losses, sample_size, _ = criterion(student, sample, reduce=False)
    gold_weight = {"word_kd": 0.5}.get(name, 0.0)
    expected = [loss for _, loss, _ in reference_losses(name, gold_weight, student, sample)]
    assert losses.shape == (sample_size,)
    torch.testing.assert_close(
        losses.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-5
    )


def single_row_batches(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each sentence of a batch as a batch without padding."""
    batches, given = [], sample[DISTILLATION]
    for row in range(sample["target"].size(0)):
        length = int(sample["target"][row].ne(PAD).sum())
        source = sample["net_input"]["src_tokens"][row]
        source = source[source.ne(PAD)].unsqueeze(0)
        one = slice(row, row + 1)
        batches.append(
            {
                "target": sample["target"][one, :length],
                "net_input": {
                    "src_tokens": source,
                    "src_lengths": torch.tensor([source.size(1)]),
                    "prev_output_tokens": sample["net_input"]["prev_output_tokens"][one, :length],
                },
                DISTILLATION: Distillation(
                    WholeLogits(teacher_logits(sample)[row, :length]),
                    given.is_rollout[one],
                    given.truncated[one],
                    given.now,
                ),
            }
        )
    return batches


@pytest.mark.parametrize("name", TOKENWISE)
def test_padding_changes_nothing(student, name: str) -> None:
    """Loss, count and gradients of a batch are the sums of those of its sentences."""
    criterion, sample = tiny_criterion(name, tiny_task()), distillation_batch()
    results = []
    for batches in ([sample], single_row_batches(sample)):
        student.zero_grad()
        losses = [criterion(student, batch) for batch in batches]
        sum(loss for loss, _, _ in losses).backward()
        gradients = {key: parameter.grad.clone() for key, parameter in student.named_parameters()}
        results.append(
            (float(sum(loss for loss, _, _ in losses)), sum(count for _, count, _ in losses), gradients)
        )
    (loss, count, gradients), (loss_alone, count_alone, gradients_alone) = results
    assert loss == pytest.approx(loss_alone, rel=1e-5)
    assert count == count_alone
    torch.testing.assert_close(gradients, gradients_alone, rtol=1e-4, atol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())


@pytest.mark.parametrize("name", TOKENWISE)
def test_first_token_counts(student, name: str) -> None:
    """The decoder reads EOS first, and the first token is a target like any other.

    Other teacher logits at the first token change the loss and its gradient.
    """
    criterion, sample = tiny_criterion(name, tiny_task()), distillation_batch()
    changed = teacher_logits(sample).clone()
    changed[:, 0] = changed[:, 0].roll(3, dims=-1)
    other = {
        **sample,
        DISTILLATION: replace(sample[DISTILLATION], teacher=WholeLogits(changed.flatten(0, 1))),
    }
    one, two = (criterion(student, batch, reduce=False)[0] for batch in (sample, other))
    starts = torch.zeros_like(sample["target"], dtype=torch.bool)
    starts[:, 0] = True
    starts = starts[sample["target"].ne(PAD)]
    assert (one - two)[starts].abs().min() > 1e-4
    assert (one - two)[~starts].abs().max() == 0.0


@pytest.mark.parametrize("name", METHODS)
def test_padding_columns_of_the_teacher_are_not_read(student, name: str) -> None:
    """The teacher's logits at padding, even NaN, do not reach the loss or the gradient."""
    criterion, sample = tiny_criterion(name, tiny_task()), distillation_batch()
    changed = teacher_logits(sample).clone()
    changed[sample["target"].eq(PAD)] = torch.nan
    other = {
        **sample,
        DISTILLATION: replace(
            sample[DISTILLATION],
            teacher=WholeLogits(changed.flatten(0, 1)),
            difficulties=DifficultyQueue(25),
        ),
    }
    losses, gradients = [], []
    for batch in (sample, other):
        student.zero_grad(set_to_none=True)
        loss = criterion(student, batch)[0]
        loss.backward()
        losses.append(float(loss))
        gradients.append(student.encoder.embed_tokens.weight.grad.clone())
    student.zero_grad(set_to_none=True)
    assert losses[0] == losses[1]
    assert gradients[0].equal(gradients[1])


@pytest.mark.parametrize("name", METHODS)
def test_logs_have_the_same_keys_and_types_in_every_batch(student, name: str) -> None:
    """Processes add them up by position: in training, with data alone, for dummy batches and in
    validation.
    """
    criterion = tiny_criterion(name, tiny_task())
    training, data_only = distillation_batch(), distillation_batch(rollout_rows=())
    without_teacher = make_batch(reversed_pairs(3, seed=2))
    logs = [criterion(student, batch)[2] for batch in (training, data_only, without_teacher)]
    shapes = [
        [(key, type(value), getattr(value, "dtype", None)) for key, value in log.items()] for log in logs
    ]
    assert shapes[1:] == shapes[:1] * 2
    assert all(
        not value.requires_grad and value.dim() == 0
        for log in logs
        for value in log.values()
        if isinstance(value, Tensor)
    )
    assert DistillationCriterion.logging_outputs_can_be_summed() is True


@pytest.mark.parametrize("name", METHODS)
def test_validation_is_the_references_likelihood_and_needs_no_teacher(student, name: str) -> None:
    """The loss is the summed NLL, and all tokens count as data. The task has no teacher."""
    task = tiny_task()
    sample = make_batch(reversed_pairs(4, seed=3))
    loss, sample_size, logs = task.valid_step(sample, student, tiny_criterion(name, task))
    lprobs, target = student_lprobs(student, sample), sample["target"]
    expected = -sum(
        float(lprobs[row, at, token])
        for row, line in enumerate(target.tolist())
        for at, token in enumerate(line)
        if token != PAD
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(logs["nll_loss"]) == pytest.approx(expected, rel=1e-5)
    assert sample_size == int(target.ne(PAD).sum()) == int(logs["tokens_data"])
    assert int(logs["tokens_rollout"]) == int(logs["teacher_tokens"]) == int(logs["rollouts"]) == 0


def test_half_precision_student_is_scored_in_float32() -> None:
    """bfloat16 logits have the same loss as the equal float32 logits."""
    sample = distillation_batch()
    logits = torch.randn(*sample["target"].shape, 20, generator=torch.Generator().manual_seed(5)).bfloat16()
    criterion = tiny_criterion("imitkd_full", tiny_task())
    losses = [
        criterion(lambda scores=scores, **_: (scores,), sample)[0] for scores in (logits, logits.float())
    ]
    assert losses[0].dtype == torch.float32
    assert losses[0].equal(losses[1])


@pytest.mark.parametrize("name", METHODS)
def test_criterion_owns_nothing_that_trains(name: str) -> None:
    """Its modules and parameters would enter the optimizer, DDP and the checkpoint."""
    criterion = tiny_criterion(name, tiny_task())
    assert list(criterion.parameters()) == []
    assert list(criterion.children()) == []
    assert criterion.state_dict() == {}


def reduced(logs: list[dict[str, Any]]) -> dict[str, float]:
    """Return what fairseq shows of these logs."""
    with metrics.aggregate(new_root=True) as aggregator:
        DistillationCriterion.reduce_metrics(logs)
    return aggregator.get_smoothed_values()


TRAINING_LOG = {
    "loss": 60.0, "nll_loss": 20.0, "loss_data": 24.0, "loss_rollout": 36.0, "ntokens": 30, "nsentences": 6,
    "sample_size": 30, "tokens_data": 10, "tokens_rollout": 20, "distilled_tokens": 30, "teacher_tokens": 30,
    "teacher_agrees": 12, "rollouts": 4, "rollouts_truncated": 1, "rollout_out_of_memory": 0,
    "rollouts_empty": 1, "tokens_repeated": 2,
    "rollout_seconds": 1.0, "teacher_seconds": 2.0, "step_seconds": 8.0, "positions": 33,
    "rollout_rows_computed": 22, "rollout_tokens_written": 20,
}  # fmt: skip


def test_metrics_are_ratios_of_sums() -> None:
    """Losses are in bits per token. Shares, lengths and times have their own denominators."""
    bits = 1.0 / math.log(2)
    shown = reduced([TRAINING_LOG])
    expected = {
        "loss": 2.0 * bits, "nll_loss": 2.0 * bits, "ppl": 2 ** (2.0 * bits), "loss_data": 2.4 * bits,
        "loss_rollout": 1.8 * bits, "student_share": 4 / 6, "rollout_len": 5.0, "truncated": 0.25,
        "empty": 0.25, "repetition": 0.1, "agreement": 0.4,
        "tokens_data": 10, "tokens_rollout": 20, "rollout_time": 0.125,
        "teacher_time": 0.25, "padding": 1.1, "rollout_work": 1.1,
    }  # fmt: skip
    assert set(shown) == set(expected)
    for key, value in expected.items():
        assert shown[key] == pytest.approx(value, rel=1e-2 if key == "ppl" else 1e-3, abs=1e-3), key


def test_metrics_of_several_logs_are_those_of_their_sum() -> None:
    """They are not means of ratios: a short batch has less weight."""
    short = {
        **TRAINING_LOG,
        "loss": 2.0,
        "sample_size": 2,
        "ntokens": 2,
        "tokens_data": 2,
        "tokens_rollout": 0,
        "rollouts": 0,
        "nsentences": 1,
    }
    short.update(rollouts_truncated=0, rollouts_empty=0, tokens_repeated=0)
    shown = reduced([TRAINING_LOG, short])
    assert shown["loss"] == pytest.approx(62.0 / 32 / math.log(2), abs=1e-3)
    assert shown["student_share"] == pytest.approx(4 / 7, abs=1e-3)
    assert shown["rollout_len"] == 5.0
    assert shown == reduced([{key: TRAINING_LOG[key] + short[key] for key in short}])


def test_metrics_of_tensors_equal_those_of_numbers() -> None:
    """The criterion logs tensors. A distributed sum gives doubles."""
    assert reduced([{key: torch.tensor(value) for key, value in TRAINING_LOG.items()}]) == reduced(
        [TRAINING_LOG]
    )


def test_validation_metrics_are_those_of_cross_entropy() -> None:
    """They are loss, NLL and perplexity."""
    log = {key: 0 for key in TRAINING_LOG if not key.endswith("seconds")}
    log.update(
        loss=20.0, nll_loss=20.0, loss_data=20.0, ntokens=10, sample_size=10, nsentences=2, tokens_data=10
    )
    assert set(reduced([log])) == {"loss", "nll_loss", "ppl"}


def test_metrics_of_rollouts_alone_show_no_reference_loss() -> None:
    """At share 1 no reference is scored. A ratio without a denominator is left out, not shown as 0."""
    log = {**TRAINING_LOG, "tokens_data": 0, "loss_data": 0.0, "nll_loss": 0.0}
    shown = reduced([log])
    assert "loss_data" not in shown
    assert "nll_loss" not in shown
    assert shown["loss_rollout"] == pytest.approx(1.8 / math.log(2), abs=1e-3)


def test_out_of_memory_rollouts_are_counted_when_there_are_any() -> None:
    """The count is summed over the interval, and left out if it is 0."""
    assert "rollout_out_of_memory" not in reduced([TRAINING_LOG])
    assert reduced([{**TRAINING_LOG, "rollout_out_of_memory": 2}])["rollout_out_of_memory"] == 2


@pytest.mark.parametrize("weight", [1.5, -0.1, math.nan])
def test_gold_weight_out_of_range_is_refused(weight: float) -> None:
    """The message names the flag and its value."""
    with pytest.raises(UsageError, match=r"--gold-weight.* a number in 0\.\.1"):
        tiny_criterion("word_kd", tiny_task(), gold_weight=str(weight))


def test_fully_sharded_is_refused() -> None:
    """With it no process holds a whole student that could decode. The message names the alternatives."""
    with pytest.raises(UsageError, match=r"--ddp-backend fully_sharded.*legacy_ddp"):
        tiny_criterion("imitkd", tiny_task(), ddp_backend="fully_sharded")


@pytest.mark.parametrize(
    "settings",
    [
        {"student_share": "foo"},
        {"rollout_topk": 5},
        {"rollout_temperature": -1.0, "rollout_policy": "sampling"},
    ],
)
def test_settings_are_checked_when_the_criterion_is_built(settings: dict) -> None:
    """They are checked before any data is read."""
    with pytest.raises(UsageError, match=r"--student-share|--rollout"):
        tiny_criterion("imitkd", tiny_task(), **settings)


@pytest.mark.parametrize("name", METHODS)
def test_task_without_a_teacher_is_refused(name: str) -> None:
    """The message names the criterion, the given task and the one that is needed."""
    task = SimpleNamespace(cfg=SimpleNamespace(_name="translation"), target_dictionary=None)
    with pytest.raises(UsageError) as refusal:
        tiny_criterion(name, task)
    for word in (
        f"--criterion {name} has no teacher in --task translation:",
        "use --task translation_with_teacher",
    ):
        assert word in str(refusal.value)


ROLLOUT_FLAGS: dict[str, dict[str, Any]] = {
    "--rollout-policy": {"rollout_policy": "sampling"},
    "--rollout-topk": {"rollout_topk": 5},
    "--rollout-topp": {"rollout_topp": 0.9},
    "--rollout-temperature": {"rollout_temperature": 0.7},
    "--rollout-max-len-a": {"rollout_max_len_a": 2.0},
    "--rollout-max-len-b": {"rollout_max_len_b": 20},
}


@pytest.mark.parametrize("flag", ROLLOUT_FLAGS)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("word_kd", {}),
        ("imitkd", {"student_share": "0"}),
        ("imitkd", {"student_share": "constant:0.0"}),
        ("imitkd_full", {"student_share": "linear:1"}),
        ("imitkd", {"student_share": "exponential:1"}),
        ("imitkd", {"student_share": "linear:0,warmup=1"}),
    ],
)
def test_rollout_flag_without_rollouts_is_refused(name: str, settings: dict[str, Any], flag: str) -> None:
    """It would have no effect. The message names the flag and the share, which is always 0."""
    with pytest.raises(UsageError) as refusal:
        tiny_criterion(name, tiny_task(), **settings, **ROLLOUT_FLAGS[flag])
    message = str(refusal.value)
    [value] = ROLLOUT_FLAGS[flag].values()
    assert message.startswith(f"{flag} {value} changes nothing at --student-share ")
    assert settings.get("student_share", "constant:0") in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "share",
    ["linear:0.99", "exponential:0.005,warmup=0.9", "0.01", "reverse-sigmoid", "constant:1,warmup=0.99"],
)
@pytest.mark.parametrize("flag", ROLLOUT_FLAGS)
def test_rollout_flag_is_accepted_where_the_share_can_rise(share: str, flag: str) -> None:
    """This holds if the share is 0 at first, and for methods whose own share is 0."""
    settings = {**ROLLOUT_FLAGS["--rollout-policy"], **ROLLOUT_FLAGS[flag]}
    criterion = tiny_criterion("word_kd", tiny_task(), student_share=share, **settings)
    for name, value in settings.items():
        assert (
            getattr(
                criterion.method.rollout_policy,
                {"rollout_policy": "name"}.get(name, name.removeprefix("rollout_")),
            )
            == value
        )


def test_rollout_flags_at_their_defaults_are_accepted_without_rollouts() -> None:
    """fairseq passes every setting, given or not."""
    settings = {"rollout_policy": "greedy", "rollout_topk": 0, "rollout_topp": 1.0, "rollout_max_len_a": 1.2}
    assert tiny_criterion("word_kd", tiny_task(), **settings).method.at(50).student_share == 0.0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("chunk", [-1, 2])
def test_teacher_that_is_not_finite_is_named_with_its_sentences(student, name: str, chunk: int) -> None:
    """The update is refused before any gradient, and the message lists the sentences."""
    criterion, sample = tiny_criterion(name, tiny_task(), loss_chunk=chunk), distillation_batch()
    broken = teacher_logits(sample).clone()
    broken[[0, 2], 0, 5] = torch.nan
    other = {
        **sample,
        DISTILLATION: replace(
            sample[DISTILLATION], teacher=WholeLogits(broken.flatten(0, 1)), now=AtUpdate(7)
        ),
    }
    ids = ", ".join(map(str, sample["id"][[0, 2]].tolist()))
    with pytest.raises(RefusedUpdate) as refusal:
        criterion(student, other)
    message = str(refusal.value)
    assert message.startswith(
        f"update 8 is refused: the loss of sentence {ids} is not finite: the teacher's logits"
    )
    assert "--teacher-dtype fp32" in message
    assert "\n" not in message
    assert isinstance(refusal.value, SystemExit)


def test_message_tells_the_student_from_the_teacher_and_the_divergence() -> None:
    """A divergence that is infinite for finite logits is named too."""
    model, sample = build_student().eval(), distillation_batch()
    with torch.no_grad():
        model.decoder.output_projection.weight[5] = torch.inf
    with pytest.raises(RefusedUpdate, match=r"the student's logits are not finite; a smaller --lr"):
        tiny_criterion("imitkd_full", tiny_task())(model, sample)
    impossible = teacher_logits(sample).clone()
    impossible[1, 0, 6] = -torch.inf
    impossible[2, 0, 6] = torch.nan  # the message gives the cause of the first sentence
    other = {
        **sample,
        DISTILLATION: replace(sample[DISTILLATION], teacher=WholeLogits(impossible.flatten(0, 1))),
    }
    ids = ", ".join(map(str, sample["id"][[1, 2]].tolist()))
    with pytest.raises(RefusedUpdate) as refusal:
        tiny_criterion("f_distill_rkl", tiny_task())(build_student().eval(), other)
    assert str(refusal.value) == (
        f"update 1 is refused: the loss of sentence {ids} is not finite: --divergence reverse-kl is not "
        "finite there, though the logits are; choose another"
    )


def test_sum_that_overflows_names_no_sentence(student) -> None:
    """Each token's loss is finite. The batch has no teacher, as in validation."""
    task, sample = tiny_task(), make_batch(reversed_pairs(4, seed=3))
    logits = torch.zeros(sample["target"].numel(), 20)
    logits[:, 0] = 2e38  # no target is symbol 0, so each token costs 2e38
    task.run_student = lambda model, sample: logits
    with pytest.raises(RefusedUpdate) as refusal:
        tiny_criterion("word_kd", task)(student, sample)
    assert str(refusal.value) == (
        "this batch is refused: the loss of sentence ? is not finite: the loss is too large for its number "
        "format"
    )


def test_reward_is_of_the_whole_sentence(student) -> None:
    """The log-probability of a sentence is a sum. Only the divergence is a mean over the sentence (Agarwal et
    al. 2023, equation 4).
    """
    sample = distillation_batch()
    advantages = torch.tensor([0.0, 0.7, 0.0, -0.4, 0.0])
    given = {**sample, DISTILLATION: replace(sample[DISTILLATION], advantages=advantages)}
    criterion = tiny_criterion("gkd", tiny_task(), reward="chrf", reward_weight=0.3)
    loss, count, _ = criterion(student, given)
    q, p = student_lprobs(student, sample), teacher_logits(sample).double().log_softmax(-1)
    m = (0.1 * p.exp() + 0.9 * q.exp()).log()
    jsd = 0.1 * (p.exp() * (p - m)).sum(-1) + 0.9 * (q.exp() * (q - m)).sum(-1)
    nll = -q.gather(-1, sample["target"].unsqueeze(-1)).squeeze(-1)
    expected = 0.0
    for row, target in enumerate(sample["target"]):
        counted = target.ne(PAD)
        weight = 0.7 if sample[DISTILLATION].is_rollout[row] else 1.0
        expected += weight * float(jsd[row][counted].mean()) + 0.3 * float(advantages[row]) * float(
            nll[row][counted].sum()
        )
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert count == 5


@pytest.mark.parametrize("chunk", [-1, 2])
def test_teacher_is_not_read_where_references_are_the_whole_loss(student, chunk: int) -> None:
    """At ``--gold-weight 1``, NaN of the teacher on a reference reaches neither loss nor gradient. On a
    rollout it is refused.
    """
    criterion = tiny_criterion("imitkd", tiny_task(), gold_weight="1", loss_chunk=chunk)
    sample = distillation_batch()
    gradients = []
    for value in (0.0, torch.nan):
        changed = teacher_logits(sample).clone()
        changed[[0, 2, 4]] = value
        given = {
            **sample,
            DISTILLATION: replace(sample[DISTILLATION], teacher=WholeLogits(changed.flatten(0, 1))),
        }
        student.zero_grad(set_to_none=True)
        criterion(student, given)[0].backward()
        gradients.append(student.decoder.output_projection.weight.grad.clone())
    student.zero_grad(set_to_none=True)
    assert gradients[0].equal(gradients[1])
    assert gradients[0].isfinite().all()
    changed[1, 0] = torch.nan
    with pytest.raises(RefusedUpdate, match=f"sentence {int(sample['id'][1])} is"):
        criterion(
            student,
            {
                **sample,
                DISTILLATION: replace(sample[DISTILLATION], teacher=WholeLogits(changed.flatten(0, 1))),
            },
        )


def test_sentences_mean_is_of_each_sentences_tokens(student) -> None:
    """With ``--loss-average sentence``, sentences of all lengths have the same weight (Agarwal et al. 2023,
    equation 2).
    """
    sample = distillation_batch()
    loss, count, logs = tiny_criterion("imitkd_full", tiny_task(), loss_average="sentence")(student, sample)
    expected = reference_losses("imitkd_full", 0.0, student, sample)
    lengths = sample["target"].ne(PAD).sum(dim=-1).tolist()
    sums, at = 0.0, 0
    for length in lengths:
        sums += sum(entry[1] for entry in expected[at : at + length]) / length
        at += length
    assert float(loss) == pytest.approx(sums, rel=1e-5)
    assert count == logs["sample_size"] == len(lengths)
    assert float(logs["loss"]) == pytest.approx(sum(entry[1] for entry in expected), rel=1e-5), (
        "the log is of tokens"
    )


def test_label_smoothing_is_fairseqs_own(student) -> None:
    """It applies to references alone. At ``--gold-weight 1`` without rollouts the loss is that of
    ``label_smoothed_cross_entropy``.
    """
    from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

    sample = distillation_batch(rollout_rows=())
    loss, _, _ = tiny_criterion(
        "word_kd", tiny_task(), gold_weight="1", student_share="0.5", label_smoothing=0.1
    )(student, sample)
    lprobs = student_lprobs(student, sample)
    expected, _ = label_smoothed_nll_loss(
        lprobs.flatten(0, 1), sample["target"].flatten(), 0.1, ignore_index=PAD
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    with_rollouts = distillation_batch()
    losses = [
        float(
            tiny_criterion("word_kd", tiny_task(), student_share="0.5", gold_weight="1", label_smoothing=eps)(
                student, with_rollouts
            )[2]["loss_rollout"]
        )
        for eps in (0.0, 0.1)
    ]
    assert losses[0] == losses[1]


def test_temperatures_by_definition(student) -> None:
    """The loss is ``T^2 KL(softmax(z_p / T_p) || softmax(z_q / T))`` with the student's ``T`` (Hinton et al.
    2015, section 2).
    """
    sample = distillation_batch()
    settings = {"student_temperature": 2.0, "teacher_temperature": 3.0}
    loss, _, _ = tiny_criterion("imitkd_full", tiny_task(), **settings)(student, sample)
    with torch.no_grad():
        q = (student(**sample["net_input"])[0].double() / 2.0).log_softmax(-1)
    p = (teacher_logits(sample).double() / 3.0).log_softmax(-1)
    expected = 4.0 * (p.exp() * (p - q)).sum(-1)[sample["target"].ne(PAD)].sum()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("tail", ["dropped", "bucket"])
def test_teachers_best_few_by_definition(student, tail: str) -> None:
    """Both distributions keep the teacher's best three symbols. They are renormalised, or one more symbol
    stands for all others.
    """
    sample = distillation_batch()
    loss, _, _ = tiny_criterion("imitkd_full", tiny_task(), teacher_topk=3, teacher_tail=tail)(
        student, sample
    )
    q, expected = student_lprobs(student, sample), 0.0
    for row, position in sample["target"].ne(PAD).nonzero().tolist():
        p = teacher_logits(sample)[row, position].double().softmax(-1).tolist()
        best = sorted(range(20), key=lambda v: -p[v])[:3]
        q_here = q[row, position].exp().tolist()
        if tail == "dropped":
            whole = sum(p[v] for v in best)
            expected += sum(p[v] / whole * math.log(p[v] / whole / q_here[v]) for v in best)
        else:
            outcomes = [(p[v], q_here[v]) for v in best]
            outcomes.append((1 - sum(p[v] for v in best), 1 - sum(q_here[v] for v in best)))
            expected += sum(a * math.log(a / b) for a, b in outcomes)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("easy_weight", [0.2, 0.7])
def test_hard_tokens_are_those_of_which_the_teacher_is_less_sure(student, easy_weight: float) -> None:
    """For easy tokens ``1 - p(target)`` is below its median without padding (Zhong et al. 2024, section 3.2,
    and their code).

    The loss is 0.2 times the mean over the easy tokens plus 0.8 times the mean over the hard ones.
    """
    sample = distillation_batch(rollout_rows=())
    criterion = tiny_criterion("atkd", tiny_task(), easy_weight=easy_weight)
    losses, _, _ = criterion(student, sample, reduce=False)
    counted = sample["target"].ne(PAD)
    p, q = (
        teacher_logits(sample).double().softmax(-1)[counted],
        student_lprobs(student, sample).exp()[counted],
    )
    gold = sample["target"][counted]
    sure = p[torch.arange(len(gold)), gold]
    unsure = (1.0 - sure).tolist()
    median = sorted(unsure)[(len(gold) - 1) // 2]
    easy, hard = [], []
    for n, y in enumerate(gold.tolist()):
        others = [v for v in range(20) if v != y]
        rest_p, rest_q = sum(float(p[n, v]) for v in others), sum(float(q[n, v]) for v in others)
        expected = sum(
            float(p[n, v]) / rest_p * math.log(float(p[n, v]) / rest_p / (float(q[n, v]) / rest_q))
            for v in others
        )
        if unsure[n] >= median:
            expected += float(p[n, y]) * math.log(float(p[n, y] / q[n, y])) + rest_p * math.log(
                rest_p / rest_q
            )
        (hard if unsure[n] >= median else easy).append((float(losses[n]), expected))
    assert easy
    assert hard
    for group, weight in ((easy, easy_weight), (hard, 1.0 - easy_weight)):
        for loss, expected in group:
            assert loss == pytest.approx(weight * len(gold) / len(group) * expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("gold_weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("selection", "share"), [("batch", 0.5), ("batch", 0.13), ("queue", 0.4)])
def test_only_the_hardest_tokens_learn_from_the_teacher(
    student, selection: str, share: float, gold_weight: float
) -> None:
    """They have the largest cross-entropies of the batch, or of the last 25 tokens (Wang et al. 2021).

    Only tokens that are compared with the teacher count: with ``gold_weight`` 1 those of rollouts.
    """
    settings = {"token_selection": selection, "selected_share": share, "gold_weight": str(gold_weight)}
    if selection == "queue":
        settings["selection_queue"] = 25
    criterion = tiny_criterion("imitkd_full", tiny_task(), **settings)
    every = tiny_criterion("imitkd_full", tiny_task(), gold_weight=str(gold_weight))
    queue, recent, chosen = DifficultyQueue(25), [], 0
    for seed in (1, 2, 3):
        sample = distillation_batch(seed)
        sample[DISTILLATION] = replace(sample[DISTILLATION], difficulties=queue)
        losses = criterion(student, sample, reduce=False)[0].tolist()
        expected = reference_losses("imitkd_full", gold_weight, student, sample)
        compared = [nll for is_rollout, _, nll in expected if is_rollout or gold_weight < 1.0]
        recent = [*recent, *compared][-25:] if selection == "queue" else compared
        threshold = sorted(recent, reverse=True)[math.ceil(share * len(recent)) - 1]
        for loss, (is_rollout, whole, nll) in zip(losses, expected, strict=True):
            selected = nll >= threshold - 1e-6 and (is_rollout or gold_weight < 1.0)
            reference = 0.0 if is_rollout else gold_weight * nll
            assert loss == pytest.approx(whole if selected else reference, rel=1e-4, abs=1e-5)
            chosen += selected
        assert losses != pytest.approx(every(student, sample, reduce=False)[0].tolist())
    assert chosen > 0
    assert len(recent) == 25 or selection == "batch" or gold_weight == 1.0


@pytest.mark.parametrize("kind", ["entropy", "probability"])
def test_rollouts_are_weighted_by_the_teachers_confidence(student, kind: str) -> None:
    """``1 - H(p) / log V`` or ``max p``, at rollouts alone."""
    sample = distillation_batch()
    plain, weighted = (
        tiny_criterion("imitkd_full", tiny_task(), **settings)(student, sample, reduce=False)[0].tolist()
        for settings in ({}, {"rollout_confidence": kind})
    )
    counted = sample["target"].ne(PAD)
    p = teacher_logits(sample).double().softmax(-1)[counted].tolist()
    rows = sample[DISTILLATION].is_rollout.unsqueeze(-1).expand_as(counted)[counted].tolist()
    for one, other, distribution, is_rollout in zip(plain, weighted, p, rows, strict=True):
        entropy = -sum(share * math.log(share) for share in distribution)
        confidence = 1.0 - entropy / math.log(20) if kind == "entropy" else max(distribution)
        assert other == pytest.approx(confidence * one if is_rollout else one, rel=1e-4)
    assert any(rows)
    assert not all(rows)


def test_exact_mixture_weights_are_the_prefixes_probabilities(student) -> None:
    """``w_t = p(y<t) / (p(y<t) + q(y<t))`` is 1/2 at the first token. It approaches the model that finds the
    prefix more probable.
    """
    sample = distillation_batch()
    half = tiny_criterion("f_distill", tiny_task())(student, sample, reduce=False)[0]
    exact = tiny_criterion("f_distill", tiny_task(), js_weights="exact")(student, sample, reduce=False)[0]
    q, p = student_lprobs(student, sample), teacher_logits(sample).double().log_softmax(-1)
    given, at = sample[DISTILLATION], 0
    for row, target in enumerate(sample["target"].tolist()):
        prefix = [0.0, 0.0]
        for position, token in enumerate(target):
            if token == PAD:
                continue
            weight = math.exp(prefix[0]) / (math.exp(prefix[0]) + math.exp(prefix[1]))
            for losses, w in ((half, 0.5), (exact, weight)):
                m = (w * p[row, position].exp() + (1 - w) * q[row, position].exp()).log()
                own = q[row, position] if given.is_rollout[row] else p[row, position]
                expected = float((own.exp() * (own - m)).sum())
                assert float(losses[at]) == pytest.approx(expected, rel=1e-3, abs=1e-5)
            prefix = [prefix[0] + float(p[row, position, token]), prefix[1] + float(q[row, position, token])]
            at += 1
    assert not torch.allclose(half, exact, rtol=1e-2)


def test_a_stage_without_teacher_needs_no_scores(student) -> None:
    """The second stage of Annealing-KD uses the references' likelihood alone."""
    criterion = tiny_criterion("annealing_kd", tiny_task(), max_update=30)
    assert [criterion.method.at(n).needs_teacher for n in (0, 19, 21, 29)] == [True, True, False, False]
    sample = distillation_batch(rollout_rows=())
    second = {**sample, DISTILLATION: replace(sample[DISTILLATION], teacher=None, now=AtUpdate(25))}
    loss, _, logs = criterion(student, second)
    assert float(loss) == pytest.approx(float(logs["nll_loss"]), rel=1e-6)
    assert int(logs["teacher_tokens"]) == 0


def test_a_schedule_that_another_flag_may_cut_short_causes_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A constant share, and a training with one limit, cause none."""
    by_epoch = {"schedule_by": "epoch", "max_update": 0}
    for method, settings in (("gkd", {}), ("imitkd", by_epoch), ("imitkd", {"max_epoch": 0})):
        tiny_criterion(method, tiny_task(), **{"max_epoch": 3, **settings})
    assert not caplog.records
    tiny_criterion("imitkd", tiny_task(), max_epoch=3)
    [record] = caplog.records
    assert record.getMessage().startswith(
        "--student-share exponential:0.005: this follows --max-update 100 and stops short of its last value"
    )


def test_criterion_built_by_hand_is_called_distillation() -> None:
    """Its settings have no name, because no command line was parsed."""
    cfg = METHODS["imitkd"]()
    cfg._name = None
    message = r"^--criterion distillation has no teacher in --task Simple"
    with pytest.raises(UsageError, match=message):
        DistillationCriterion(cfg, SimpleNamespace(target_dictionary=None))


def references_with_teacher(count: int, longest: int = 6) -> dict[str, Any]:
    """Return sentences without rollouts, with random logits of a teacher."""
    sample = make_batch(reversed_pairs(count, seed=5, longest=longest), ids=range(10, 10 + count))
    logits = torch.randn(sample["target"].numel(), 20, generator=torch.Generator().manual_seed(5))
    nothing = torch.zeros(count, dtype=torch.bool)
    return {**sample, DISTILLATION: Distillation(WholeLogits(logits), nothing, nothing, AtUpdate())}


def test_batch_of_padding_has_no_loss(student) -> None:
    """This also holds for a loss that depends on the median of the batch's tokens."""
    sample = references_with_teacher(3)
    sample["target"].fill_(PAD)
    loss, _, logs = tiny_criterion("atkd", tiny_task())(student, sample)
    assert float(loss) == 0.0
    assert logs["ntokens"] == 0


@pytest.mark.parametrize("count", [8, 9, 12])
def test_refused_update_names_at_most_eight_sentences(count: int) -> None:
    """The message gives the ids of eight sentences and the number of the others."""
    model, sample = build_student().eval(), references_with_teacher(count)
    model.decoder.output_projection.weight.data.fill_(torch.nan)
    ids = sample["id"].tolist()[:8]
    more = f" and {count - 8} more" if count > 8 else ""
    with pytest.raises(RefusedUpdate) as refusal:
        tiny_criterion("word_kd", tiny_task())(model, sample)
    assert str(refusal.value) == (
        f"update 1 is refused: the loss of sentence {', '.join(map(str, ids))}{more} is not finite: "
        "the student's logits are not finite; a smaller --lr or --clip-norm may help"
    )


def test_teacher_topk_counts_symbols_and_not_positions(student) -> None:
    """The batch has fewer positions than ``--teacher-topk``, and the vocabulary has more symbols."""
    sample, topk = references_with_teacher(1, longest=2), 5
    given = sample[DISTILLATION]
    positions, symbols = given.teacher.values.shape
    assert positions < topk < symbols
    best = given.teacher.values.topk(topk, dim=-1)
    best_only = torch.full_like(given.teacher.values, -torch.inf).scatter(-1, best.indices, best.values)
    reduced = {**sample, DISTILLATION: replace(given, teacher=WholeLogits(best_only))}
    settings = {"teacher_topk": topk, "teacher_tail": "dropped"}
    loss = tiny_criterion("word_kd", tiny_task(), **settings)(student, sample)[0]
    whole = tiny_criterion("word_kd", tiny_task())
    torch.testing.assert_close(loss, whole(student, reduced)[0])
    assert float(loss) != pytest.approx(float(whole(student, sample)[0]))
