"""``translation_multi_simple_epoch_with_teacher``: its losses by their definitions, its rollouts and tags."""

import math
from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from fairseq_imitkd.models.tagged import reading_eos_first
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training.validation import ValidationScores
from tests.distributed.two_ranks import Optimizer
from tests.helpers.fairseq_models import give_teacher, tiny_criterion
from tests.helpers.language_models import Sentences
from tests.helpers.language_pairs import PAIRS, STYLES, TAGS, alone, batch, build, dictionary, tiny_task
from tests.tasks.test_language_modeling import token_losses

EOS, PAD = dictionary().eos(), dictionary().pad()
LIMIT = 5  # tokens of a rollout
ROLLOUTS: dict[str, Any] = {"student_share": "1", "rollout_max_len_a": 0.0, "rollout_max_len_b": LIMIT}
SETTINGS: dict[str, dict[str, Any]] = {
    "word_kd": {},
    "imitkd": ROLLOUTS,
    "gkd": {**ROLLOUTS, "rollout_policy": "greedy", "loss_average": "token", "jsd_weight": 0.3},
}


def greedy(model: Any, source: Tensor, before: Tensor) -> Tensor:
    """Return what a student writes after an EOS and a tag, by fairseq's own forward pass."""
    tokens, lengths = before, torch.tensor([len(source)])
    while len(tokens) - len(before) < LIMIT + 1:
        logits = model(source.unsqueeze(0), lengths, tokens.unsqueeze(0))[0][0, -1].clone()
        logits[PAD] = -math.inf
        tokens = torch.cat([tokens, logits.argmax().view(1)])
        if int(tokens[-1]) == EOS:
            break
    written = tokens[len(before) :]
    return written if int(written[-1]) == EOS else written[:LIMIT]


@pytest.mark.parametrize("chunk", [-1, 3])
@pytest.mark.parametrize(
    ("style", "method"), [*[("written", name) for name in SETTINGS], ("source", "gkd"), ("replacing", "gkd")]
)
def test_losses_and_gradients_by_their_definitions_in_float64(style: str, method: str, chunk: int) -> None:
    """Of each sentence alone, without padding, in the places where fairseq has the tags.

    A tag is not among the targets of the method. Where fairseq's models write it, the student learns it by
    its negative log-likelihood beside, so that beams are scored as in fairseq; this does not count.
    """
    student, inner = (build(seed, dropout=0.0).double() for seed in (1, 2))
    task = tiny_task(style)
    writes_tags = task.data_manager.tag_is_written
    assert writes_tags == (style == "written")
    give_teacher(task, Teacher([reading_eos_first(inner) if writes_tags else inner]))
    sample = batch(task)
    criterion = tiny_criterion(method, task, loss_chunk=chunk, **SETTINGS[method])
    loss, count, _ = task.train_step(sample, student, criterion, Optimizer(), 0)
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()

    expected, tokens = torch.zeros((), dtype=torch.float64), 0
    for source, before, reference in alone(task, sample):
        with torch.no_grad():
            target = reference if method == "word_kd" else greedy(student.eval(), source, before)
        read = torch.cat([before, target[:-1]]).unsqueeze(0)
        log_q, log_p = (
            model(source.unsqueeze(0), torch.tensor([len(source)]), read)[0][0].log_softmax(dim=-1)
            for model in (student, inner)
        )
        forced = len(before) - 1
        losses = token_losses(method, log_q[forced:], log_p[forced:].detach(), target)
        expected = expected + losses.sum() - (log_q[0, before[1]] if writes_tags else 0.0)
        tokens += len(target)
    expected.backward()
    assert count == tokens
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("arch", ["transformer", "lstm"])
def test_rollouts_are_what_fairseq_decodes_with_the_tag_forced(style: str, arch: str) -> None:
    """Each row of a batch has its own target language, and the batch has all of them.

    fairseq's own search decodes the sentences of one pair, as its task does: with the tag as a prefix, as the
    first decoder input, or with the source's tag alone. A source of fairseq's counts its tag, as here.
    """
    student, task = build(3, arch=arch), tiny_task(style)
    sample = batch(task)
    criterion = tiny_criterion(
        "imitkd", task, student_share="1", rollout_max_len_a=1.0, rollout_max_len_b=2, rollout_policy="greedy"
    )
    give_teacher(task, Teacher([build(2, arch=arch)]))
    distiller = task.distiller_of(criterion)
    draw = distiller.mixer.draw(sample, criterion.method.at(0))
    rolled = distiller.mixer.roll_out(draw, distiller._writers(student))
    first = sample["net_input"]["prev_output_tokens"][:, 0]
    if style != "source":
        assert sorted({dictionary()[int(tag)] for tag in first}) == ["__yy__", "__zz__"]

    search = SequenceGenerator(
        [student], dictionary(), beam_size=1, max_len_a=1, max_len_b=2 + (style == "written"), min_len=0
    )
    for row, (source, before, _) in enumerate(alone(task, sample)):
        inputs = {"src_tokens": source.unsqueeze(0), "src_lengths": torch.tensor([len(source)])}
        settings = {
            "source": {},
            "written": {"prefix_tokens": before[None, 1:]},
            "replacing": {"bos_token": int(before[0])},
        }[style]
        [[best]] = search.generate([student], {"net_input": inputs}, **settings)
        expected = best["tokens"][1 if style == "written" else 0 :].tolist()
        target = rolled.sample["target"][row]
        own = target[target.ne(PAD)].tolist()
        if bool(rolled.truncated[row]):  # fairseq forces an EOS
            own.append(EOS)
        assert own == expected
        assert rolled.sample["net_input"]["prev_output_tokens"][row, 0] == first[row]


@pytest.mark.parametrize("style", STYLES)
def test_a_source_without_words_has_an_empty_translation(style: str) -> None:
    """Its tags are no words; a source of one word has a translation."""
    task, model = tiny_task(style), build(3)
    sources = [torch.tensor([EOS]), torch.tensor([5, EOS])]
    pair = Sentences(sources), Sentences(sources), None
    task.data_manager.load_lang_dataset = lambda *_, **__: pair
    sample = batch(task)
    found = task.inference_step(task.build_generator([model], Namespace(beam=1, min_len=1)), [model], sample)
    words = sample["net_input"]["src_lengths"] - sample["net_input"]["src_lengths"].min()
    assert sorted(words.tolist()) == [0] * 3 + [1] * 3
    for [best], count in zip(found, words.tolist(), strict=True):
        assert (best["tokens"].tolist() == [EOS]) == (count == 0)
        assert len(best["positional_scores"]) == len(best["tokens"])


def test_ids_are_unique_and_targets_have_no_tags() -> None:
    """Random numbers and pools know a sentence by its id, which fairseq counts anew for each pair."""
    task = tiny_task("written")
    sample = batch(task)
    assert len(set(sample["id"].tolist())) == len(sample["id"]) == 12
    tags = {dictionary().index(tag) for tag in TAGS}
    assert not tags & set(sample["target"].flatten().tolist())
    assert set(sample["net_input"]["prev_output_tokens"][:, 0].tolist()) < tags


def test_other_criteria_get_fairseqs_own_batches() -> None:
    """A teacher is trained as by fairseq's task: the tag is written, and scores leave it out."""
    task = tiny_task("written", distils=False)
    sample = batch(task)
    first = sample["target"][:, 0]
    assert {dictionary()[int(tag)] for tag in first} == {"__yy__", "__zz__"}
    assert task.tags_written == 1
    assert task.first_inputs(sample).equal(first)
    model = build(3).eval()
    search = task.build_generator([model], Namespace(beam=2, max_len_a=0, max_len_b=4))
    found = task.inference_step(search, [model], sample)
    task._scores = ValidationScores(
        ["bleu"], dictionary(), remove_bpe=None, tokenized_bleu=True, print_samples=False
    )
    task.inference_step = lambda *_: [[{"tokens": row[1:][row[1:].ne(PAD)]}] for row in sample["target"]]
    task.sequence_generator = task.tokenizer = None
    sums = task.valid_step(sample, model, tiny_criterion("word_kd", task))[2]
    assert task._scores.corpus.score("bleu", [sums[f"_bleu_{number}"] for number in range(10)]) == 100.0
    forced = search.generate([model], sample, prefix_tokens=first.unsqueeze(-1))
    for tag, [best, *_], [own, *_] in zip(first, forced, found, strict=True):
        assert best["tokens"].tolist() == [int(tag), *own["tokens"].tolist()]


def test_one_pair_of_a_validation_set() -> None:
    task = tiny_task("source")
    batch(task, "valid")
    for pair in PAIRS.split(","):
        task.data_manager.get_split_num_data_shards = lambda split, pair=pair: {f"main:{pair}": 1}
        task.load_dataset(f"valid:{pair}")
        assert task.datasets[f"valid:{pair}"].keys == [f"main:{pair}"]
    assert len(task.datasets["valid"]) == 12
    assert len(task.datasets["valid:xx-yy"]) == 4


def test_a_resumed_virtual_epoch_continues_the_draw() -> None:
    """A draw has three epochs. fairseq would draw anew for epoch 5; here it goes on with that of epoch 4."""
    task = tiny_task("source", virtual_epoch_size=4, virtual_data_size=12, sampling_method="uniform")
    batch(task)
    dataset = task.datasets["train"]
    dataset.set_epoch(4)
    dataset.set_epoch(5)
    resumed = tiny_task("source", virtual_epoch_size=4, virtual_data_size=12, sampling_method="uniform")
    resumed.data_manager._num_shards_dict["train"] = dict(task.data_manager._num_shards_dict["train"])
    resumed.load_dataset("train", epoch=5)
    again = resumed.datasets["train"]
    again.set_epoch(5)
    rows = [[each[number][1]["source"].tolist() for number in range(4)] for each in (dataset, again)]
    assert rows[0] == rows[1]
