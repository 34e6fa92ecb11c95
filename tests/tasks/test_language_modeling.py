"""``language_modeling_with_teacher``: its losses by their definitions, and what it refuses."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.data.prompts import prompt_lengths
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.tasks.language_modeling import LanguageModelingWithTeacherConfig
from fairseq_imitkd.teacher.likelihood import LEAST, likelihoods
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training.prompts import check_prompts
from tests.distributed.two_ranks import Optimizer
from tests.helpers.fairseq_models import build_student, give_teacher, letters, tiny_criterion
from tests.helpers.language_models import (
    POSITIONS,
    Sentences,
    alone,
    batch,
    build,
    dataset,
    sentences,
    tiny_task,
)

EOS, PAD = letters().eos(), letters().pad()
LIMIT = 5  # tokens of a rollout
ROLLOUTS: dict[str, Any] = {"student_share": "1", "rollout_max_len_a": 0.0, "rollout_max_len_b": LIMIT}
SETTINGS: dict[str, dict[str, Any]] = {
    "word_kd": {},
    "imitkd": ROLLOUTS,
    "gkd": {**ROLLOUTS, "rollout_policy": "greedy", "loss_average": "token", "jsd_weight": 0.3},
}


def greedy(model: Any, before: Tensor) -> Tensor:
    """Return what a student writes after a prompt, by the language model's own forward pass."""
    tokens = before
    while len(tokens) - len(before) < LIMIT + 1:
        logits = model.decoder(tokens.unsqueeze(0))[0][0, -1].clone()
        logits[PAD] = -math.inf
        tokens = torch.cat([tokens, logits.argmax().view(1)])
        if int(tokens[-1]) == EOS:
            break
    written = tokens[len(before) :]
    return written if int(written[-1]) == EOS else written[:LIMIT]


def test_empty_prompts_are_continued() -> None:
    """A search of the task gives what the model writes by itself, with and without a prompt."""
    task, model = tiny_task(), build(seed=5, dropout=0.0).eval()
    sample = batch(count=6)
    lengths = sample["net_input"]["src_lengths"].tolist()
    assert min(lengths) == 1 < max(lengths)
    search = task.build_generator([model], Namespace(beam=1, max_len_a=0, max_len_b=LIMIT))
    found = task.inference_step(search, [model], sample)
    for [best], (before, _) in zip(found, alone(sample), strict=True):
        written = best["tokens"].tolist()
        assert len(written) > 1
        assert written[:LIMIT] == greedy(model, before).tolist()[:LIMIT]


def token_losses(method: str, log_q: Tensor, log_p: Tensor, target: Tensor) -> Tensor:
    """Return the loss at each token, by its definition; student ``q``, teacher ``p``."""
    if method == "imitkd":
        return -log_q.gather(-1, log_p.argmax(dim=-1, keepdim=True)).squeeze(-1)
    if method == "word_kd":
        nll = -log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        return 0.5 * nll + 0.5 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    m = 0.3 * log_p.exp() + 0.7 * log_q.exp()
    to_teacher, to_student = (each.exp() * (each - m.log()) for each in (log_p, log_q))
    return (0.3 * to_teacher + 0.7 * to_student).sum(dim=-1)


@pytest.mark.parametrize("chunk", [-1, 3])
@pytest.mark.parametrize("method", SETTINGS)
def test_losses_and_gradients_by_their_definitions_in_float64(method: str, chunk: int) -> None:
    """Of each sentence alone, without padding. Prompts carry no loss, neither in data nor in rollouts."""
    student, teacher = (build(seed, dropout=0.0).double() for seed in (1, 2))
    task, sample = tiny_task(), batch()
    give_teacher(task, Teacher([teacher]))
    criterion = tiny_criterion(method, task, loss_chunk=chunk, **SETTINGS[method])
    loss, count, _ = task.train_step(sample, student, criterion, Optimizer(), 0)
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()

    expected, tokens = torch.zeros((), dtype=torch.float64), 0
    for before, reference in alone(sample):
        with torch.no_grad():
            target = reference if method == "word_kd" else greedy(student.eval(), before)
        read = torch.cat([before, target[:-1]]).unsqueeze(0)
        log_q, log_p = (
            model.decoder(read)[0][0, len(before) - 1 :].log_softmax(dim=-1) for model in (student, teacher)
        )
        expected = expected + token_losses(method, log_q, log_p.detach(), target).sum()
        tokens += len(target)
    expected.backward()
    assert count == tokens
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_prompts_and_continuations() -> None:
    """The symbol belongs to the prompt. A short sentence is a whole prompt. Sizes are of the sequence."""
    rows = [torch.tensor([*tokens, EOS]) for tokens in ([4, 9, 5, 9, 6], [9], [7, 9])]
    cuts = prompt_lengths(Sentences(rows), symbol=9, length=0, split="train", name="=")
    assert cuts.tolist() == [2, 1, 2]
    assert prompt_lengths(Sentences(rows), symbol=None, length=3, split="", name="").tolist() == [3, 1, 2]
    made = dataset(rows, cuts)
    assert [made[0]["source"].tolist(), made[0]["target"].tolist()] == [[4, 9, EOS], [5, 9, 6, EOS]]
    assert made[1]["target"].tolist() == [EOS]
    assert [made.num_tokens(number) for number in range(3)] == [6, 2, 3]
    # Six positions hold the first sequence. The last prompt needs four: one token must follow it.
    assert made.filter_indices_by_size(torch.arange(3).numpy(), (3, 3))[1] == [0, 2]
    with pytest.raises(UsageError, match="--prompt-symbol = is not in sentence 0 of 'valid'"):
        prompt_lengths(Sentences(sentences(1, 1)), symbol=0, length=0, split="valid", name="=")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--prompt-symbol or --prompt-length must be given, and not both"),
        ({"prompt_symbol": "=", "prompt_length": 1}, "--prompt-symbol or --prompt-length must be given"),
        ({"prompt_length": -1}, "--prompt-length must be 0 or more, but is -1"),
        ({"prompt_length": 0, "add_bos_token": True}, "--add-bos-token can't be used here"),
        ({"prompt_length": 0, "sample_break_mode": "complete"}, "--sample-break-mode complete can't be used"),
    ],
)
def test_flags_without_prompts_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_prompts(LanguageModelingWithTeacherConfig(**settings))


def test_a_student_with_an_encoder_is_refused(tmp_path: Path) -> None:
    """Before the teacher is loaded."""
    (tmp_path / "teacher.pt").touch()
    task = tiny_task(teacher_path=str(tmp_path / "teacher.pt"))
    task.student = build_student()
    criterion = tiny_criterion("gkd", task)
    with pytest.raises(UsageError, match="TransformerModel, which is not a language model"):
        task.check_training(criterion.method)


def test_likelihood_of_sentences_that_fill_the_positions() -> None:
    """Longer ones are left out, as in training, and no continuation is scored after another prompt."""
    teacher, many = Teacher([build(2, decoder_learned_pos=True)]), LEAST
    rows = [torch.cat([torch.arange(4, 4 + POSITIONS - 1) % 10 + 4, torch.tensor([EOS])])] * many
    rows.append(torch.cat([rows[0][:-1], rows[0]]))
    cuts = [(2, POSITIONS - 4)[number % 2] for number in range(len(rows))]
    made = dataset(rows, cuts)
    [found] = likelihoods(teacher, made, pad=PAD, symbols=len(letters()))
    nll, tokens = 0.0, 0
    for number in range(many):
        sentence, cut = rows[number], cuts[number]
        logits = teacher.models[0].decoder(sentence.roll(1).unsqueeze(0))[0][0]
        lprobs = logits.log_softmax(-1).gather(-1, sentence.unsqueeze(-1)).squeeze(-1)[cut:]
        nll, tokens = nll - float(lprobs.sum()), tokens + len(lprobs)
    assert found.sentences == many
    assert found.own == pytest.approx(nll / tokens, rel=1e-5)
    assert math.isnan(found.other)


def test_a_model_that_is_not_a_language_model_is_refused() -> None:
    with pytest.raises(UsageError, match="--arch builds a TransformerModel, which is not a language model"):
        build(arch="transformer")
