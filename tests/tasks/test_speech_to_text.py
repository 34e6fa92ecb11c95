"""``speech_to_text_with_teacher``: losses by their definitions, rollouts, the command line, and refusals."""

import math
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data.iterators import CountingIterator
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from fairseq_imitkd.checkpoints.kinds import check_kind
from fairseq_imitkd.data.batch_type import TEACHER_INPUT
from fairseq_imitkd.data.corpus import dataset_builder
from fairseq_imitkd.data.speech import check_manifests, check_transcripts
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.mixing import Mixer, Writers
from fairseq_imitkd.mixing.batch import encoder_inputs
from fairseq_imitkd.mixing.pool import LookAheadIterator
from fairseq_imitkd.rollout import Prompt, RolloutGenerator, RolloutPolicy, SpecialSymbols, decode
from fairseq_imitkd.rollout.fast_transformer import TransformerSteps
from fairseq_imitkd.rollout.steps import begin_decoding
from fairseq_imitkd.teacher.likelihood import LEAST, likelihoods
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training import distiller
from tests.distributed.two_ranks import Optimizer
from tests.helpers import in_process, speech
from tests.helpers.digit_corpus import TINY
from tests.helpers.fairseq_models import build_student, give_teacher, letters, tiny_criterion
from tests.integration.test_resume_epochs import differences, end, train

EOS, PAD = letters().eos(), letters().pad()
LIMIT = 6  # tokens of a rollout
ROLLOUTS: dict[str, Any] = {"student_share": "1", "rollout_max_len_a": 0.0, "rollout_max_len_b": LIMIT}
SETTINGS: dict[str, dict[str, Any]] = {
    "word_kd": {},
    "imitkd_full": ROLLOUTS,
    "gkd": {**ROLLOUTS, "rollout_policy": "greedy", "loss_average": "token", "jsd_weight": 0.3},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech.write_data(
        tmp_path_factory.mktemp("speech"), {"train": 40, "train_more": 10, "valid": 10, "test": 10}
    )


def greedy(model: Any, inputs: dict[str, Tensor], row: int) -> Tensor:
    """Return what a student writes for a sentence of a batch, by its own forward pass over the batch."""
    tokens = torch.tensor([EOS])
    while len(tokens) < LIMIT + 2:
        prefixes = tokens.expand(len(inputs["src_lengths"]), -1)
        logits = model(**inputs, prev_output_tokens=prefixes)[0][row, -1].clone()
        logits[PAD] = -math.inf
        tokens = torch.cat([tokens, logits.argmax().view(1)])
        if int(tokens[-1]) == EOS:
            break
    return tokens[1:] if int(tokens[-1]) == EOS else tokens[1 : LIMIT + 1]


def token_losses(method: str, log_q: Tensor, log_p: Tensor, target: Tensor) -> Tensor:
    """Return the loss at each token, by its definition; student ``q``, teacher ``p``."""
    if method == "gkd":
        m = 0.3 * log_p.exp() + 0.7 * log_q.exp()
        to_teacher, to_student = (each.exp() * (each - m.log()) for each in (log_p, log_q))
        return (0.3 * to_teacher + 0.7 * to_student).sum(dim=-1)
    forward = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    nll = -log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return forward if method == "imitkd_full" else 0.5 * nll + 0.5 * forward


@pytest.mark.parametrize("reads_text", [True, False])
@pytest.mark.parametrize("method", SETTINGS)
def test_losses_and_gradients_by_their_definitions_in_float64(
    method: str, reads_text: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher of text reads each transcript alone; speech models read the batch, which stays whole."""
    monkeypatch.setattr(distiller, "PART_COST", {"cpu": 1})
    task = speech.tiny_task(data)
    student = speech.build(task, dropout=0.0).double()
    teacher = (build_student(seed=2) if reads_text else speech.build(task, seed=2)).double().eval()
    dataset = speech.spoken(task, reads_text=reads_text)
    sample = speech.batch(dataset)
    inputs = {"src_tokens": sample["net_input"]["src_tokens"].double()}
    inputs["src_lengths"] = sample["net_input"]["src_lengths"]
    sample["net_input"] = {**sample["net_input"], **inputs}
    give_teacher(task, Teacher([teacher]))
    criterion = tiny_criterion(method, task, **SETTINGS[method])
    loss, count, _ = task.train_step(sample, student, criterion, Optimizer(), 0)
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()

    expected, tokens = torch.zeros((), dtype=torch.float64), 0
    for row, reference in enumerate(sample["target"]):
        with torch.no_grad():
            target = (
                greedy(student.eval(), inputs, row) if method != "word_kd" else reference[reference != PAD]
            )
            prefix = torch.cat([torch.tensor([EOS]), target[:-1]]).unsqueeze(0)
            repeated = prefix.expand(len(sample["target"]), -1)
            if reads_text:
                text = dataset.dataset.src_texts[int(sample["id"][row])]
                source = letters().encode_line(text, add_if_not_exist=False).long().unsqueeze(0)
                logits = teacher(source, torch.tensor([source.size(1)]), prefix)[0][0]
            else:
                logits = teacher(**inputs, prev_output_tokens=repeated)[0][row]
        log_q = student(**inputs, prev_output_tokens=repeated)[0][row].log_softmax(dim=-1)
        expected = expected + token_losses(method, log_q, logits.log_softmax(dim=-1), target).sum()
        tokens += len(target)
    expected.backward()
    assert count == tokens
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("arch", speech.ARCHITECTURES)
def test_rollouts_equal_fairseq_s_greedy_decoding(arch: str, data: Path) -> None:
    """Of a whole batch and of a part of it. fairseq's transformers take the fast path."""
    task = speech.tiny_task(data)
    sample = speech.batch(speech.spoken(task, reads_text=False))
    model = speech.fitted(speech.build(task, arch, dropout=0.0), sample)
    for rows in (torch.arange(7), torch.tensor([1, 3, 6])):
        net_input = encoder_inputs(sample, rows, None)
        prompt = Prompt(net_input, torch.full_like(rows, EOS), torch.full_like(rows, LIMIT))
        rollout = decode(model, prompt, RolloutPolicy(), symbols=SpecialSymbols(PAD, EOS))
        stock = SequenceGenerator(
            [model], letters(), beam_size=1, max_len_a=0, max_len_b=LIMIT, min_len=0, normalize_scores=False
        )
        found = [best[0]["tokens"] for best in stock.generate([model], {"net_input": net_input})]
        for tokens, cut, theirs in zip(rollout.tokens, rollout.truncated, found, strict=True):
            own = tokens[tokens.ne(PAD)]
            assert own.tolist() == theirs[: len(own)].tolist()
            assert len(theirs) == len(own) + int(cut)
    texts = {tuple(row.tolist()) for row in rollout.tokens}
    assert len(texts) > 1, "the models must hear a difference"
    is_fast = isinstance(begin_decoding(model, net_input, longest=9), TransformerSteps)
    assert is_fast == (arch != "s2t_berard")


def test_the_generator_of_the_task_is_the_fast_one(data: Path) -> None:
    task = speech.tiny_task(data)
    model = speech.build(task).eval()
    generator = task.build_generator([model], in_process.greedy())
    assert isinstance(generator, RolloutGenerator)
    assert generator.rollout_policy == RolloutPolicy("greedy")


def test_pooled_speech_has_the_student_s_precision(data: Path) -> None:
    """fairseq casts the features of the batch that it trains on; the pool has those of the next one."""
    task = speech.tiny_task(data)
    sentences = speech.spoken(task, reads_text=False)
    student = speech.build(task).to(torch.bfloat16).eval()
    settings = {
        "student_share": "1",
        "rollout_pool_updates": 2,
        "rollout_max_len_a": 0.0,
        "rollout_max_len_b": 6,
    }
    method = tiny_criterion("imitkd_full", task, **settings).method
    mixer = Mixer.from_method(method, task.layout)
    assert mixer.pool is not None
    ahead = LookAheadIterator(CountingIterator([speech.batch(sentences, range(n, n + 5)) for n in (0, 5)]))
    mixer.pool._batches = ahead
    first = next(ahead)
    first["net_input"]["src_tokens"] = first["net_input"]["src_tokens"].to(torch.bfloat16)
    mixed = mixer.roll_out(mixer.draw(first, method.at(0)), Writers(student, None, 30))
    assert mixed.is_rollout.all()


def test_transcripts_follow_the_rows_of_their_speech(data: Path) -> None:
    """Over several manifests too, whose sentences get numbers of the whole set."""
    dataset = speech.spoken(speech.tiny_task(data, "train,train_more"), reads_text=True, longest=5)
    numbers = [3, 41, 38, 45]
    sample = speech.batch(dataset, numbers)
    assert sorted(sample["id"].tolist()) == sorted(numbers)
    lengths = sample["net_input"]["src_lengths"].tolist()
    assert lengths == sorted(lengths, reverse=True)
    texts = [text for part in dataset.dataset.datasets for text in part.src_texts]
    for number, row, target in zip(
        sample["id"].tolist(), sample[TEACHER_INPUT]["src_tokens"], sample["target"], strict=True
    ):
        assert letters().string(row[row.ne(PAD)]) == texts[number]
        assert letters().string(target[target.ne(PAD)]) == texts[number][::-1]
    kept, left_out = dataset.filter_indices_by_size(torch.arange(50).numpy(), (400, 30))
    assert sorted(left_out) == [number for number in range(50) if len(texts[number].split()) > 4]
    assert len(kept) + len(left_out) == 50


def test_transcripts_follow_the_sentences_that_an_epoch_draws(tmp_path: Path) -> None:
    """``sampling_alpha`` draws others in each epoch. A sentence keeps its number, and its transcript."""
    folder = speech.write_data(tmp_path, {"train": 12, "train_more": 4}, sampling_alpha=0.5)
    dataset = speech.spoken(speech.tiny_task(folder, "train,train_more"), reads_text=True, longest=5)
    known: dict[int, str] = {}
    drawn = []
    for epoch in (1, 2, 3):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            item = dataset[index]
            text, target = (letters().string(item[side]) for side in ("source", "target"))
            assert text == target[::-1]
            assert known.setdefault(item["id"], text) == text
        drawn.append([dataset[index]["id"] for index in range(len(dataset))])
        sample = speech.batch(dataset, range(len(dataset)))
        sources = sample[TEACHER_INPUT]["src_tokens"]
        assert [letters().string(row[row.ne(PAD)]) for row in sources] == [
            known[number] for number in sample["id"].tolist()
        ]
        kept, _ = dataset.filter_indices_by_size(np.arange(len(dataset)), (400, 30))
        short = [index for index in range(len(dataset)) if len(known[drawn[-1][index]].split()) <= 4]
        assert kept.tolist() == short
    assert drawn[0] != drawn[1] != drawn[2]


def test_likelihood_of_a_teacher_of_text(data: Path) -> None:
    dataset = speech.spoken(speech.tiny_task(data), reads_text=True)
    [found] = likelihoods(Teacher([build_student()]), dataset, pad=PAD, symbols=len(letters()))
    assert found.sentences == 40 >= LEAST
    assert math.isfinite(found.own)
    assert found.other != found.own


def write_text(folder: Path, spoken: Path) -> None:
    """Write the transcripts and targets of the spoken training set as a corpus of fairseq's translation."""
    for side in ("src", "tgt"):
        letters().save(str(folder / f"dict.{side}.txt"))
        for split in ("train", "valid"):
            rows = [line.split("\t") for line in (spoken / f"{split}.tsv").read_text().splitlines()[1:]]
            with dataset_builder(folder / f"{split}.src-tgt.{side}", len(letters())) as builder:
                for row in rows:
                    text = row[4 if side == "src" else 3]
                    builder.add_item(letters().encode_line(text, add_if_not_exist=False))


STUDENT = (
    "--task", "speech_to_text_with_teacher", "--arch", "s2t_transformer", "--conv-channels", 8,
    "--encoder-layers", 1, "--decoder-layers", 1, "--encoder-embed-dim", 16, "--decoder-embed-dim", 16,
    "--encoder-ffn-embed-dim", 16, "--decoder-ffn-embed-dim", 16, "--encoder-attention-heads", 2,
    "--decoder-attention-heads", 2,
    "--batch-size", 8, "--rollout-max-len-a", 0, "--rollout-max-len-b", LIMIT,
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a teacher of text with its data."""
    folder = tmp_path_factory.mktemp("text")
    write_text(folder, data)
    flags = ("--task", "translation", "--criterion", "cross_entropy", *TINY, "--disable-validation")
    in_process.train(folder, folder, *flags, "--max-update", 4)
    return folder


def test_a_student_of_a_teacher_of_text_by_the_commands(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Training with scores in validation, a resumed run that ends in the same bits, and decoding."""
    flags = (
        *STUDENT, "--criterion", "imitkd_full", "--student-share", "0.5", "--teacher-path",
        teacher / "checkpoint_last.pt", "--teacher-allow-poor", "--max-update", 8,
        "--save-interval-updates", 4, "--eval-metrics", "chrf", "--eval-bleu-args", '{"beam": 1}',
        "--log-rollouts", 1,
    )  # fmt: skip
    whole = train(data, tmp_path / "whole", *flags)
    assert (tmp_path / "whole" / "rollouts.jsonl").read_text().count('"source": "') == 1
    folder = tmp_path / "cut"
    folder.mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint_1_4.pt", folder / "checkpoint_last.pt")
    again = train(data, folder, *flags)
    assert differences(end(again), end(whole)) == []
    found = in_process.generate(
        data, folder / "checkpoint_last.pt", tmp_path, "--task", "speech_to_text_with_teacher", "--beam", 2
    )
    assert len(found) == 10


STAGES = (
    *STUDENT[:-4], "--criterion", "word_kd", "--teacher-allow-poor", "--disable-validation",
    "--save-interval-updates", 3,
)  # fmt: skip
ALONE = ("--hidden-match", 1, "--hidden-match-only", "--loss-average", "sentence")


def test_a_stage_of_matching_alone(data: Path, teacher: Path, tmp_path: Path) -> None:
    """A resumed run ends in the same bits. Encoder and projection learn, the decoder does not. The projection
    is not among the student's weights.
    """
    flags = (*STAGES, *ALONE, "--teacher-path", teacher / "checkpoint_last.pt", "--max-update", 5)
    whole = train(data, tmp_path / "whole", *flags)
    folder = tmp_path / "cut"
    folder.mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint_1_3.pt", folder / "checkpoint_last.pt")
    again = train(data, folder, *flags)
    assert differences(end(again), end(whole)) == []
    first, last, resumed = (
        torch.load(tmp_path / name, weights_only=True)
        for name in ("whole/checkpoint_1_3.pt", "whole/checkpoint_last.pt", "cut/checkpoint_last.pt")
    )
    torch.testing.assert_close(resumed["criterion"], last["criterion"], rtol=0, atol=0)
    assert not [name for name, value in last["criterion"].items() if value.equal(first["criterion"][name])]
    assert last["model"].keys() == speech.build(speech.tiny_task(data), decoder_layers=1).state_dict().keys()
    for name, value in last["model"].items():
        assert value.equal(first["model"][name]) == (not name.startswith("encoder.") or "version" in name), (
            name
        )


@pytest.mark.slow
def test_a_second_stage(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Another method starts from these weights, with and without matching, and so does matching from weights
    that were trained without it. fairseq's own task decodes them.
    """
    flags = (*STAGES, "--teacher-path", teacher / "checkpoint_last.pt")
    for name, start, more in (
        ("first", None, ALONE),
        ("plain", "first", ()),
        ("both", "first", ("--hidden-match", 1)),
        ("late", "plain", ("--hidden-match", 1)),
    ):
        begin = ("--finetune-from-model", tmp_path / start / "checkpoint_last.pt") if start else ()
        done = in_process.train(data, tmp_path / name, *flags, *begin, *more, "--max-update", 2)
        assert (done.trainer.get_criterion().hidden_match is None) == (not more)
        assert ("hidden_match" in done.metrics["train_inner"][-1]) == bool(more)
    path = tmp_path / "both" / "checkpoint_last.pt"
    assert len(in_process.generate(data, path, tmp_path, "--task", "speech_to_text", "--beam", 2)) == 10
    with pytest.raises(UsageError, match="was trained with a projection of --hidden-match, unlike this tr"):
        in_process.train(data, tmp_path / "both", *flags, "--max-update", 4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["speculative_kd", "f_distill", "atkd", "distillm"])
def test_other_methods(method: str, data: Path, teacher: Path, tmp_path: Path) -> None:
    """The teacher of text also writes and corrects."""
    flags = (*STUDENT, "--criterion", method, "--teacher-path", teacher / "checkpoint_last.pt")
    flags = (*flags, "--student-share", "0.5")
    more = {"f_distill": ["--teacher-samples"], "distillm": ["--rollout-replay", 0]}.get(method, [])
    done = in_process.train(
        data, tmp_path, *flags, *more, "--teacher-allow-poor", "--max-update", 3, "--disable-validation"
    )
    assert all(math.isfinite(each["loss"]) for each in done.metrics["train_inner"])


def test_a_teacher_of_speech(data: Path, tmp_path: Path) -> None:
    """It was trained by fairseq's own task."""
    stock = ["speech_to_text" if word == STUDENT[1] else word for word in STUDENT[:-4]]
    in_process.train(
        data, tmp_path / "teacher", *stock, "--criterion", "cross_entropy", "--max-update", 2,
        "--disable-validation",
    )  # fmt: skip
    path = tmp_path / "teacher" / "checkpoint_last.pt"
    flags = (*STUDENT, "--criterion", "gkd", "--teacher-path", path, "--teacher-data", data)
    more = ("--teacher-allow-poor", "--max-update", 2, "--disable-validation")
    done = in_process.train(data, tmp_path / "student", *flags, *more)
    assert done.metrics["train_inner"][-1]["num_updates"] == 2


# ---- Refusals


def test_commands_for_text_refuse_speech_models() -> None:
    cfg = Namespace(task=Namespace(_name="speech_to_text"), model=Namespace(arch="s2t_transformer"))
    with pytest.raises(ValueError, match="by --task speech_to_text, which reads speech: decode it with"):
        check_kind(cfg)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            speech.COLUMNS[:-1],
            r"train.tsv' has no column src_text, which the text teacher of --teacher-path reads",
        ),
        (speech.COLUMNS[:2], r"train.tsv' lacks the columns n_frames, tgt_text: its first line must name"),
    ],
)
def test_manifests_without_columns_are_refused(columns: tuple, message: str, tmp_path: Path) -> None:
    data = speech.write_data(tmp_path, {})
    speech.write_split(data, "train", 3, seed=1, columns=columns)

    def check() -> None:
        check_manifests(str(data), "config.yaml", [("--train-subset", "train")])
        check_transcripts(str(data), "train")

    with pytest.raises(UsageError, match=message):
        check()


def test_an_empty_transcript_is_refused(tmp_path: Path) -> None:
    data = speech.write_data(tmp_path, {"train": 3})
    lines = (data / "train.tsv").read_text().splitlines()
    lines[2] = "\t".join([*lines[2].split("\t")[:4], ""])
    (data / "train.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match="sentence 'train1' of 'train' has no src_text"):
        speech.spoken(speech.tiny_task(data), reads_text=True)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trial", "--train-subset must begin with train, but is 'trial'"),
        ("train9", "--train-subset 'train9' is not in DATA"),
    ],
)
def test_splits_that_are_not_there(split: str, message: str, data: Path) -> None:
    with pytest.raises(UsageError, match=message):
        check_manifests(str(data), "config.yaml", [("--train-subset", split)])


def test_configurations_that_can_t_be_used(tmp_path: Path) -> None:
    data = speech.write_data(tmp_path, {}, prepend_tgt_lang_tag=True)
    with pytest.raises(UsageError, match="adds language tags to the targets"):
        check_manifests(str(data), "config.yaml", [])
    with pytest.raises(UsageError, match=r"other.yaml' can't be read \(.* not found\)"):
        check_manifests(str(data), "other.yaml", [])
    (data / "dict.txt").unlink()
    (data / "config.yaml").write_text("shuffle: true\n")
    with pytest.raises(UsageError, match=r"lacks the dictionary dict\.txt"):
        check_manifests(str(data), "config.yaml", [])


def test_flags_that_can_t_be_used(data: Path) -> None:
    task = speech.tiny_task(data)
    with pytest.raises(UsageError, match="--rollout-replay 1000 can't be used here"):
        tiny_criterion("distillm", task, rollout_max_len_a=0.0)
    with pytest.raises(UsageError, match=r"--rollout-max-len-a 1\.2 would allow more tokens"):
        tiny_criterion("imitkd", task)
