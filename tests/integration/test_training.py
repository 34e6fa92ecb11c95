"""Training by fairseq's own trainer: its logs, its results, and what it must not change."""

import argparse
import copy
import math
import re
from pathlib import Path

import pytest
import torch
from fairseq import tasks

import fairseq_imitkd.mixing.mixer
from fairseq_imitkd.tasks.translation import TranslationWithTeacherTask
from tests.helpers import digit_corpus, in_process
from tests.helpers.fairseq_models import teacher_logits

PLUGIN = digit_corpus.REPO / "fairseq_imitkd"
QUICK = ("--disable-validation", "--no-save")


def distil(digits, save_dir, teacher, criterion, *flags, **kwargs):
    return in_process.train(
        digits.data, save_dir, "--task", "translation_with_teacher", "--teacher-path", teacher,
        "--criterion", criterion, *flags, **kwargs,
    )  # fmt: skip


def check_metrics(metrics: dict[str, float]) -> None:
    """Check that the metrics of an interval with references and rollouts agree with each other."""
    tokens = metrics["tokens_data"] + metrics["tokens_rollout"]
    assert metrics["tokens_data"] > 0
    assert metrics["tokens_rollout"] > 0
    assert tokens == pytest.approx(metrics["wpb"], abs=0.3)
    parts = (
        metrics["loss_data"] * metrics["tokens_data"] + metrics["loss_rollout"] * metrics["tokens_rollout"]
    )
    assert metrics["loss"] == pytest.approx(parts / tokens, abs=0.01)
    rollouts = metrics["student_share"] * metrics["bsz"]
    assert metrics["rollout_len"] == pytest.approx(metrics["tokens_rollout"] / rollouts, rel=0.05, abs=0.1)
    assert 1 <= metrics["rollout_len"] <= 1.2 * 7 + 10 + 1
    assert 0 <= metrics["truncated"] <= 1
    assert 0 < metrics["agreement"] <= 1
    assert 0 < metrics["rollout_time"] < 1
    assert 0 < metrics["teacher_time"] < 1
    assert metrics["rollout_time"] + metrics["teacher_time"] < 1


def test_imitkd_train_logs_what_it_did(student):
    """``imitkd-train`` needs neither --user-dir nor --task. The metrics of each interval agree with each
    other.
    """
    intervals = student.metrics()["train_inner"]
    assert len(intervals) == student.updates // 5
    for metrics in intervals[1:]:
        check_metrics(metrics)
    assert intervals[-1]["agreement"] > intervals[0]["agreement"]


def test_imitkd_train_ends_with_the_next_command(digits, student):
    """The whole log is in ``train.log``, also what came before the first update."""
    assert student.output.splitlines()[-1] == (
        f"Next: imitkd-evaluate --model=teacher={student.teacher} "
        f"--model=student={student.folder / 'checkpoint_best.pt'} --teacher=teacher --data {digits.data} "
        f"--out {student.folder / 'evaluation'}"
    )
    log = (student.folder / "train.log").read_text()
    for text in ("the best checkpoint is", "Start iterating", "done training", "signature of bleu"):
        assert text in log


def test_share_of_rollouts_follows_the_schedule(student):
    """By the method's default, a sentence is a rollout at update i of I with probability 1 - 0.005^(i/I)."""
    intervals = student.metrics()["train_inner"]
    for number, metrics in enumerate(intervals):
        updates = range(5 * number, 5 * number + 5)
        expected = sum(1 - 0.005 ** (update / student.updates) for update in updates) / 5
        # 5 updates of about 80 sentences: four standard deviations of the draw are below 0.1.
        assert metrics["student_share"] == pytest.approx(expected, abs=0.1)


def test_best_checkpoint_is_the_one_of_best_bleu(student):
    """With ``--eval-bleu``, checkpoint_best.pt is that of the best validation BLEU. The log says so."""
    assert "the best checkpoint is the one of the highest bleu" in student.output
    scores = [metrics["bleu"] for metrics in student.metrics()["valid"]]
    best = torch.load(student.folder / "checkpoint_best.pt", weights_only=True)["extra_state"]
    assert len(scores) >= 3
    assert best["best"] == pytest.approx(max(scores), abs=0.01)
    assert best["val_loss"] == pytest.approx(max(scores), abs=0.01)


def stock_validation_loss(data: Path, checkpoint: Path) -> float:
    """Return the loss of fairseq's cross_entropy and translation task, in bits per reference token."""
    cfg = in_process.config(data, checkpoint.parent, "--task", "translation", "--criterion", "cross_entropy")
    task = tasks.setup_task(cfg.task)
    task.load_dataset("valid")
    criterion = task.build_criterion(cfg.criterion).eval()
    (model,) = in_process.load_models(checkpoint)
    loss = tokens = 0.0
    with torch.no_grad():
        batches = task.get_batch_iterator(
            task.dataset("valid"), max_tokens=400, required_batch_size_multiple=8
        )
        for sample in batches.next_epoch_itr(shuffle=False):
            batch_loss, batch_tokens, _ = criterion(model, sample)
            loss, tokens = loss + float(batch_loss), tokens + batch_tokens
    return loss / tokens / math.log(2)


def test_validation_loss_is_the_references_nll(digits, student):
    """Validation does not ask the teacher. Stock cross_entropy gives the same loss for the same
    checkpoint.
    """
    logged = student.metrics()["valid"][-1]
    expected = stock_validation_loss(digits.data, student.checkpoint)
    assert logged["num_updates"] == student.updates
    assert logged["loss"] == pytest.approx(expected, abs=0.001)
    assert logged["nll_loss"] == pytest.approx(expected, abs=0.001)


def test_fairseq_train_with_user_dir(digits, teacher, tmp_path):
    """Stock ``fairseq-train --user-dir`` trains imitkd_full and logs the same metrics."""
    done = digit_corpus.train(
        digits.data, tmp_path, "--user-dir", PLUGIN, "--task", "translation_with_teacher",
        "--teacher-path", teacher, "--criterion", "imitkd_full", "--max-update", 15,
        "--student-share", "constant:0.5", "--disable-validation", *digit_corpus.TINY,
        command="fairseq-train", real=True,
    )  # fmt: skip
    intervals = in_process.read_metrics(done.stdout)["train_inner"]
    assert len(intervals) == 3
    for metrics in intervals:
        check_metrics(metrics)
        assert metrics["student_share"] == pytest.approx(0.5, abs=0.12)
    assert intervals[-1]["loss"] < intervals[0]["loss"]
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_fairseq_hydra_train(digits, teacher, tmp_path):
    """``fairseq-hydra-train`` reads task, criterion, --user-dir and bf16 from YAML.

    The task sees by which metric the best checkpoint is chosen.
    """
    (tmp_path / "distil.yaml").write_text(f"""# @package _group_
common: {{user_dir: {PLUGIN}, cpu: true, bf16: true, log_format: json, log_interval: 1, seed: 3}}
checkpoint:
  save_dir: {tmp_path / "saved"}
  no_epoch_checkpoints: true
  best_checkpoint_metric: chrf
  maximize_best_checkpoint_metric: true
task:
  _name: translation_with_teacher
  data: {digits.data}
  source_lang: src
  target_lang: tgt
  teacher_path: {teacher}
  eval_metrics: chrf
  eval_bleu_args: '{{"beam": 1, "max_len_b": 8}}'
criterion: {{_name: imitkd, student_share: "constant:0.5"}}
model:
  _name: transformer
  encoder: {{embed_dim: 32, ffn_embed_dim: 64, layers: 1, attention_heads: 2}}
  decoder: {{embed_dim: 32, ffn_embed_dim: 64, layers: 1, attention_heads: 2}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: inverse_sqrt, warmup_updates: 20}}
optimization: {{max_update: 4, lr: [0.005]}}
dataset: {{max_tokens: 400, num_workers: 0}}
""")
    done = digit_corpus.run(
        "fairseq-hydra-train", "--config-dir", tmp_path, "--config-name", "distil",
        f"hydra.run.dir={tmp_path}", cwd=tmp_path, real=True,
    )  # fmt: skip
    log = done.stdout + done.stderr + "".join(file.read_text() for file in tmp_path.glob("*.log"))
    losses = [float(loss) for loss in re.findall(r'"loss": "([^"]+)"', log)]
    state = torch.load(tmp_path / "saved" / "checkpoint_last.pt", weights_only=True)
    assert state["cfg"]["criterion"]["_name"] == "imitkd"
    assert state["optimizer_history"][-1]["num_updates"] == 4
    assert state["extra_state"]["best"] == float(re.findall(r'"valid_chrf": "([^"]+)"', log)[0]) > 0
    seen = state["cfg"]["task"]
    assert (seen["best_checkpoint_metric"], seen["maximize_best_checkpoint_metric"]) == ("chrf", True)
    assert len(set(re.findall("signature of chrf: nrefs:1.*", log))) == 1
    # fairseq always saves float32. Weights that were bf16 do not change when they are rounded to bf16.
    assert all(torch.equal(value, value.bfloat16().float()) for value in state["model"].values())
    assert len(losses) >= 4
    assert all(map(math.isfinite, losses))


def test_word_kd_trains_on_references_only(digits, teacher, tmp_path, monkeypatch):
    """No rollout is decoded or logged. The loss is half the references' and half the teacher's."""
    monkeypatch.setattr(fairseq_imitkd.mixing.mixer, "decode", refuse_to_decode)
    intervals = distil(digits, tmp_path, teacher, "word_kd", "--max-update", 10, *QUICK).metrics[
        "train_inner"
    ]
    assert len(intervals) == 10
    for metrics in intervals:
        assert metrics["student_share"] == 0
        assert metrics["tokens_rollout"] == 0
        assert metrics["tokens_data"] == pytest.approx(metrics["wpb"], abs=0.3)
        assert metrics["loss"] == pytest.approx(metrics["loss_data"], abs=0.002)
        assert "loss_rollout" not in metrics
        assert "rollout_len" not in metrics
        assert metrics["loss"] < metrics["nll_loss"]
    assert intervals[-1]["loss"] < intervals[0]["loss"]


def refuse_to_decode(*arguments, **kwargs):
    raise AssertionError("decoded")


@pytest.mark.parametrize(("share", "decodes"), [("constant:0", False), ("linear:0.5", True)])
def test_share_zero_decodes_nothing(share, decodes, digits, teacher, tmp_path, monkeypatch):
    """At share 0 nothing is decoded. The linear share starts at 0, so it decodes from the second
    update on.
    """
    monkeypatch.setattr(fairseq_imitkd.mixing.mixer, "decode", refuse_to_decode)
    updates = []

    def watch(trainer, update, samples):
        result = update()
        updates.append(trainer.get_num_updates())
        return result

    def run():
        distil(
            digits,
            tmp_path,
            teacher,
            "imitkd",
            "--student-share",
            share,
            "--max-update",
            3,
            *QUICK,
            around_step=watch,
        )

    if decodes:
        with pytest.raises(AssertionError, match="decoded"):
            run()
        assert updates == [1]
    else:
        run()
        assert updates == [1, 2, 3]


def test_patience_stops_training(digits, teacher, tmp_path):
    """With a learning rate near 0, BLEU never rises, and ``--patience 2`` ends the run two validations after
    the first.

    The BLEU is that of an untrained student. The teacher's would be far higher, so the student decoded.
    """
    training = distil(
        digits, tmp_path, teacher, "imitkd", "--student-share", "constant:0.5", "--max-update", 50,
        "--lr", "1e-12", "--validate-interval-updates", 2, "--patience", 2, "--no-save", "--eval-bleu",
        "--eval-bleu-args", '{"beam": 1, "max_len_a": 0, "max_len_b": 8}', "--best-checkpoint-metric", "bleu",
        "--maximize-best-checkpoint-metric",
    )  # fmt: skip
    assert training.trainer.get_num_updates() == 6
    assert max(metrics["bleu"] for metrics in training.metrics["valid"]) < 15


def test_update_freq_equals_the_double_batch(digits, teacher, tmp_path, monkeypatch):
    """The sum of two micro-batches is divided once, by all their target tokens including those of
    rollouts.
    """
    counts = []
    train_step = TranslationWithTeacherTask.train_step

    def counting(self, *args, **kwargs):
        loss, sample_size, metrics = train_step(self, *args, **kwargs)
        counts.append(sample_size)
        return loss, sample_size, metrics

    monkeypatch.setattr(TranslationWithTeacherTask, "train_step", counting)

    def trained(*flags, **kwargs):
        return distil(
            digits, tmp_path, teacher, "imitkd_full", "--student-share", "constant:0.5", "--dropout", "0",
            "--optimizer", "sgd", "--lr", "0.5", "--lr-scheduler", "fixed", "--warmup-updates", 0,
            "--max-update", 3, "--curriculum", 9, *flags, *QUICK, **kwargs,
        )  # fmt: skip

    before = {}

    def remember(trainer, update, samples):
        before.update(before or copy.deepcopy(trainer.get_model().state_dict()))
        return update()

    double = trained("--batch-size", 32, around_step=remember).weights()
    double_counts, counts[:] = counts[:], []
    split = trained("--batch-size", 16, "--update-freq", 2).weights()
    assert [a + b for a, b in zip(counts[::2], counts[1::2], strict=True)] == double_counts
    assert counts[0] != counts[1], "equal micro-batches would not tell a mean of means from the mean"
    torch.testing.assert_close(split, double, rtol=1e-5, atol=1e-6)
    assert max(float((double[name] - before[name]).abs().max()) for name in double) > 1e-2


def equal(one, other) -> bool:
    """Return whether two batches hold the same keys and values."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("criterion", ["imitkd", "word_kd"])
def test_the_iterators_batch_does_not_change(criterion, digits, teacher, tmp_path):
    """On the CPU the batch is the iterator's own object, and later fairseq's dummy batch."""
    seen = []

    def watch(trainer, update, samples):
        before = copy.deepcopy(samples)
        result = update()
        seen.append(equal(samples, before))
        return result

    share = ("--student-share", "constant:1") if criterion == "imitkd" else ()
    distil(digits, tmp_path, teacher, criterion, "--max-update", 2, *share, *QUICK, around_step=watch)
    assert seen == [True, True]


def test_stock_criterion_needs_no_teacher(digits, tmp_path):
    """cross_entropy with the plugin's task equals cross_entropy with ``translation`` to the bit. No teacher
    is needed.
    """
    flags = ("--criterion", "cross_entropy", "--max-update", 3, *QUICK)
    ours = in_process.train(digits.data, tmp_path, "--task", "translation_with_teacher", *flags).weights()
    stock = in_process.train(digits.data, tmp_path, "--task", "translation", *flags).weights()
    assert equal(ours, stock)


def teacher_with_dropout(teacher: Path, folder: Path) -> Path:
    """The teacher's checkpoint with dropout and layerdrop in its configuration, as usual after training."""
    state = torch.load(teacher, weights_only=True)
    model = state["cfg"]["model"]
    settings = vars(model) if isinstance(model, argparse.Namespace) else model
    settings.update(dropout=0.3, attention_dropout=0.3, encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    torch.save(state, folder / "restless.pt")
    return folder / "restless.pt"


def test_the_teacher_never_changes(digits, teacher, tmp_path):
    """Its weights stay, no optimizer holds them, and it scores in evaluation mode despite its own dropout."""
    path = teacher_with_dropout(teacher, tmp_path)
    (stock,) = in_process.load_models(teacher)
    scores = []

    def watch(trainer, update, samples):
        held = trainer.task._distiller.teacher
        result = update()
        scores.append([teacher_logits(held, samples[0]), teacher_logits(held, samples[0])])
        with torch.no_grad():
            scores[-1].append(stock(**samples[0]["net_input"])[0])
        return result

    trainer = distil(
        digits,
        tmp_path,
        path,
        "imitkd",
        "--student-share",
        "constant:0.5",
        "--max-update",
        3,
        *QUICK,
        around_step=watch,
    ).trainer
    (model,) = trainer.task._distiller.teacher.models
    assert len(scores) == 3
    for first, second, expected in scores:
        assert torch.equal(first, second)
        torch.testing.assert_close(first, expected)
    assert equal(dict(model.state_dict()), torch.load(teacher, weights_only=True)["model"])
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())
    trained = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert trained == {id(weight) for weight in trainer.get_model().parameters()}
    assert trained.isdisjoint(id(weight) for weight in model.parameters())
    inputs = {"src_tokens": torch.tensor([[5, 6, 7, 2]] * 50), "src_lengths": torch.tensor([4] * 50)}
    inputs["prev_output_tokens"] = torch.tensor([[2, 5, 6]] * 50)
    model.train()
    assert not torch.equal(model(**inputs)[0], model(**inputs)[0]), (
        "this teacher's dropout must be one that would show"
    )


def test_ensemble_of_teachers(digits, teacher, student, tmp_path):
    """``A.pt:B.pt`` averages probabilities. B was a student of the plugin's task, and its teacher
    is deleted.
    """
    members = in_process.load_models(teacher, student.checkpoint)
    scores = []

    def watch(trainer, update, samples):
        with torch.no_grad():
            probs = [model(**samples[0]["net_input"])[0].softmax(-1) for model in members]
        scores.append((teacher_logits(trainer.task._distiller.teacher, samples[0]).exp(), sum(probs) / 2))
        return update()

    pair = f"{teacher}:{student.checkpoint}"
    flags = ("--student-share", "constant:0.5", "--max-update", 3, *QUICK)
    metrics = distil(digits, tmp_path, pair, "imitkd_full", *flags, around_step=watch).metrics["train_inner"]
    assert len(scores) == 3
    for found, expected in scores:
        torch.testing.assert_close(found, expected)
    assert metrics[-1]["loss"] < metrics[0]["loss"]


@pytest.mark.parametrize("architecture", ["lstm", pytest.param("fconv", marks=pytest.mark.slow)])
def test_students_of_other_architectures(architecture, digits, teacher, tmp_path):
    """A recurrent and a convolutional student roll out, train and decode with a transformer teacher."""
    metrics = distil(
        digits, tmp_path, teacher, "imitkd_full", *digit_corpus.ARCHITECTURES[architecture],
        "--student-share", "constant:0.6", "--max-update", 12, "--warmup-updates", 2, "--disable-validation",
    ).metrics["train_inner"]  # fmt: skip
    for interval in metrics:
        check_metrics(interval)
    nll = [interval["nll_loss"] for interval in metrics]
    assert sum(nll[-4:]) < sum(nll[:4])
    found = in_process.generate(digits.data, tmp_path / "checkpoint_last.pt", tmp_path, "--beam", 1)
    assert len(found) == len(digits.references())


PRECISIONS = {
    # By default fairseq flattens fp16 gradients on the current GPU, even with --cpu.
    "fp16": (("--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", 4), {}, torch.float16),
    "memory-efficient-fp16": (("--memory-efficient-fp16", "--fp16-init-scale", 4), {}, torch.float16),
    "amp": (("--amp",), {}, torch.float32),
    "bf16": ((), {"bf16": True}, torch.bfloat16),
    "memory-efficient-bf16": ((), {"bf16": True, "memory_efficient_bf16": True}, torch.bfloat16),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision(precision, digits, teacher, tmp_path):
    """Distillation works on the CPU in every precision in which stock cross_entropy does. With ``auto`` the
    teacher has the student's.
    """
    flags, common, dtype = PRECISIONS[precision]
    flags = (*flags, "--max-update", 3, *QUICK)
    in_process.train(
        digits.data, tmp_path, "--task", "translation", "--criterion", "cross_entropy", *flags, common=common
    )
    training = distil(
        digits, tmp_path, teacher, "imitkd_full", "--student-share", "constant:0.5", *flags, common=common
    )
    losses = [metrics["loss"] for metrics in training.metrics["train_inner"]]
    assert training.trainer.get_num_updates() == 3
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0] + 0.5
    assert next(training.trainer.get_model().parameters()).dtype == dtype
    assert next(training.trainer.task._distiller.teacher.models[0].parameters()).dtype == dtype


def test_bf16_typed_on_the_command_line(digits, teacher, tmp_path):
    """fairseq's own command takes bf16 for a TPU's and fails without a TPU."""
    flags = (
        "--teacher-path",
        teacher,
        "--criterion",
        "imitkd",
        "--bf16",
        "--max-update",
        3,
        *digit_corpus.TINY,
    )
    digit_corpus.train(digits.data, tmp_path, *flags)
    saved = torch.load(tmp_path / "checkpoint_last.pt")
    assert saved["cfg"]["common"]["bf16"]
    assert not saved["cfg"]["common"]["tpu"]
    assert all(weight.float().equal(weight.bfloat16().float()) for weight in saved["model"].values())


def test_teacher_dtype(digits, teacher, tmp_path):
    """``--teacher-dtype bf16`` halves the teacher, ``int8`` rounds its linear layers, and both leave the
    student in float32. The loss hardly changes.
    """
    losses, weights = {}, {}
    for dtype in ("fp32", "bf16", "int8"):
        flags = ("--student-share", "constant:0.5", "--max-update", 2, "--teacher-dtype", dtype, *QUICK)
        training = distil(digits, tmp_path, teacher, "imitkd_full", *flags)
        losses[dtype], weights[dtype] = training.metrics["train_inner"][0]["loss"], training.weights()
        expected = torch.bfloat16 if dtype == "bf16" else torch.float32
        assert next(training.trainer.task._distiller.teacher.models[0].parameters()).dtype == expected
        assert next(training.trainer.get_model().parameters()).dtype == torch.float32
    for dtype in ("bf16", "int8"):
        assert losses[dtype] == pytest.approx(losses["fp32"], rel=0.02)
        assert any(not weights[dtype][name].equal(weight) for name, weight in weights["fp32"].items())
