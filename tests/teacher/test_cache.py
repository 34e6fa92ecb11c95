"""The cache of a teacher's answers: it equals the live teacher, is complete or refused, and
survives kills.
"""

import errno
import hashlib
import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import options
from fairseq.data import indexed_dataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from torch import Tensor

import fairseq_imitkd.tasks.translation as task_module
from fairseq_imitkd.data import output_folder
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.files import partial, write_json
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.data.output_folder import OutputFolder
from fairseq_imitkd.errors import RefusedUpdate, UsageError
from fairseq_imitkd.losses.divergences import DIVERGENCES, most_probable_only, needs
from fairseq_imitkd.mixing.batch import take
from fairseq_imitkd.models.logits import TokenLogits, WholeLogits
from fairseq_imitkd.tasks.translation import TranslationWithTeacherConfig
from fairseq_imitkd.teacher.cache import format, writer
from fairseq_imitkd.teacher.cache.format import as_tensor, bytes_a_token, token_arrays
from fairseq_imitkd.teacher.cache.reader import CachedTeacher, TopKLogits, open_cache, refuse_teacher_flags
from fairseq_imitkd.teacher.cache.writer import CacheRequest, write_cache
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.digit_corpus import ARCHITECTURES
from tests.helpers.fairseq_models import (
    build_student,
    checkpoint_state,
    give_teacher,
    layout,
    letters,
    make_batch,
    reversed_pairs,
    tiny_criterion,
    tiny_task,
    training_config,
    write_dictionaries,
)

SYMBOLS = len(letters())
PAIRS = reversed_pairs(40, seed=7)
LIMIT = 6  # the teacher's longest target, including EOS: pairs of 6 letters are too long
DIVERGENCES_OF_THE_BEST = [
    name
    for name in DIVERGENCES
    if name not in ("logit-mse", "teacher-argmax") and "target" not in needs(DIVERGENCES[name])[0]
]


def write_split(folder: Path, split: str, pairs: list[tuple[list[int], list[int]]]) -> None:
    """Write sentences as ``fairseq-preprocess`` does."""
    for side, language in enumerate(("src", "tgt")):
        prefix = str(folder / f"{split}.src-tgt.{language}")
        builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=SYMBOLS)
        for pair in pairs:
            builder.add_item(
                torch.IntTensor([letter + letters().nspecial for letter in pair[side]] + [letters().eos()])
            )
        builder.finalize(f"{prefix}.idx")


def save_teacher(folder: Path, name: str, seed: int, *flags: object) -> Path:
    """Save a checkpoint of random weights, large enough that no distribution is flat."""
    cfg = training_config(folder, "--task", "translation", *flags)
    torch.manual_seed(seed)
    model = tiny_task().build_model(cfg.model)
    for parameter in model.parameters():
        parameter.data *= 1.5
    torch.save(checkpoint_state(model, cfg), folder / name)
    return folder / name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, dictionaries and three teachers."""
    folder = write_dictionaries(tmp_path_factory.mktemp("data"))
    write_split(folder, "train", PAIRS)
    write_split(folder, "valid", PAIRS[:8])
    save_teacher(folder, "teacher.pt", 3)
    save_teacher(folder, "other.pt", 4)
    save_teacher(folder, "short.pt", 5, "--max-source-positions", LIMIT, "--max-target-positions", LIMIT)
    return folder


def request(data: Path, out: Path, **changes: Any) -> CacheRequest:
    """Return the request for a cache of the training data, in several batches and in float32."""
    settings = {
        "keep": "topk:6",
        "dtype": "fp32",
        "max_tokens": 60,
        "teacher_path": str(data / "teacher.pt"),
        "teacher_allow_poor": True,
        **changes,
    }
    return CacheRequest(data=str(data), out=str(out), **settings)


def live_teacher(data: Path, name: str = "teacher.pt") -> Teacher:
    """Return the teacher itself."""
    paths = os.pathsep.join(str(data / part) for part in name.split(":"))
    return load_teacher(
        TeacherSource(paths, data=str(data)), LanguagePair("src", "tgt", letters(), letters())
    )


def cached_teacher(folder: Path) -> CachedTeacher:
    """Return the cache as a run with a float32 student opens it."""
    teacher = CachedTeacher(folder, json.loads((folder / "cache.json").read_text()), letters().pad())
    teacher.place(torch.device("cpu"), torch.float32)
    return teacher


def batch(numbers: list[int]) -> dict[str, Any]:
    """Return sentences of the training data, as fairseq collates them."""
    return make_batch([PAIRS[number] for number in numbers], ids=numbers)


@pytest.fixture(scope="module")
def caches(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One cache of each kind."""
    root = tmp_path_factory.mktemp("caches")
    kinds = {
        "topk": {},
        "topk-fp16": {"dtype": "fp16"},
        "ensemble": {"teacher_path": f"{data / 'teacher.pt'}:{data / 'other.pt'}", "teacher_weights": "3:1"},
        "hidden": {"keep": "hidden"},
        "hidden-fp16": {"keep": "hidden", "dtype": "fp16"},
        "short": {"teacher_path": str(data / "short.pt")},
    }
    for name, changes in kinds.items():
        write_cache(request(data, root / name, **changes))
    return {name: root / name for name in kinds}


def probabilities(data: Path, names: list[str], weights: list[float], number: int) -> Tensor:
    """Return the teacher's probabilities of one sentence, ``(T, V)``, in float64 from the definition."""
    sample = batch([number])
    total = torch.zeros((), dtype=torch.float64)
    for name, weight in zip(names, weights, strict=True):
        [model] = live_teacher(data, name).models
        with torch.no_grad():
            logits = model.double()(**sample["net_input"])[0][0]
        total = total + weight * logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    return total


@pytest.mark.parametrize(
    ("kind", "names", "weights", "tolerance"),
    [
        ("topk", ["teacher.pt"], [1.0], 1e-4),
        ("topk-fp16", ["teacher.pt"], [1.0], 4e-3),
        ("ensemble", ["teacher.pt", "other.pt"], [0.75, 0.25], 1e-4),
    ],
)
def test_kept_symbols_are_the_most_probable(data, caches, kind, names, weights, tolerance) -> None:
    """The cache holds their log-probabilities, best first, and the sum of the others. The batch of a sentence
    does not matter.
    """
    arrays = {
        name: np.load(caches[kind] / f"{name}.npy") for name in ("offsets", "symbols", "lprobs", "tail")
    }
    for number in range(0, len(PAIRS), 7):
        expected, order = probabilities(data, names, weights, number).sort(dim=-1, descending=True)
        tokens = slice(*arrays["offsets"][number : number + 2])
        assert (arrays["symbols"][tokens] == order[:, :6].numpy()).all()
        np.testing.assert_allclose(
            np.exp(arrays["lprobs"][tokens].astype(float)), expected[:, :6], rtol=tolerance
        )
        np.testing.assert_allclose(
            np.exp(arrays["tail"][tokens].astype(float)), expected[:, 6:].sum(dim=-1), rtol=tolerance
        )


@pytest.mark.parametrize(("kind", "tolerance"), [("hidden", 1e-5), ("hidden-fp16", 5e-3)])
def test_hidden_states_give_the_live_teachers_logits(data, caches, kind, tolerance) -> None:
    """This holds at every token, for sentences in another order and other batches than at writing."""
    kept, teacher = cached_teacher(caches[kind]), live_teacher(data)
    for start in range(0, len(PAIRS), 8):
        sample = batch([*range(start, start + 8)])
        counted = sample["target"].flatten().ne(1)
        found, expected = (source.score(sample).logits(slice(None))[counted] for source in (kept, teacher))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "later"), [(torch.float32, torch.float16), (torch.bfloat16, torch.float32)]
)
def test_hidden_states_take_the_students_first_precision(caches, dtype, later) -> None:
    """A teacher of ``--teacher-dtype auto`` does so too, because rounded values can't be restored."""
    kept = CachedTeacher(
        caches["hidden"], json.loads((caches["hidden"] / "cache.json").read_text()), letters().pad()
    )
    for student in (dtype, later):
        kept.place(torch.device("cpu"), student)
        assert kept.score(batch([1])).logits(slice(None)).dtype == dtype


def test_parts_of_a_batch_are_found_by_their_own_numbers(caches) -> None:
    """They are rows and columns of the whole batch's answers. Chunks and selected positions work too."""
    for kind in ("topk", "hidden"):
        kept, sample = cached_teacher(caches[kind]), batch([3, 30, 11, 8, 25])
        whole = kept.score(sample).logits(slice(None)).unflatten(0, sample["target"].shape)
        rows = torch.tensor([1, 2, 4])
        part = take(sample, rows, layout=layout())
        scores = kept.score(part, kept.encode(sample), rows=rows)
        width, counted = part["target"].size(1), part["target"].flatten().ne(1)
        expected = whole[rows, :width].flatten(0, 1)[counted]
        torch.testing.assert_close(scores.logits(slice(None))[counted], expected)
        chosen = scores.at(counted.nonzero().squeeze(-1))
        torch.testing.assert_close(chosen.logits(slice(2, 5)), expected[2:5])


def counted_logits_of_both(
    data: Path, caches: dict[str, Path], sample: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return the logits of the cache and of the live teacher at the counted positions of a batch."""
    counted = sample["target"].flatten().ne(1)
    of_cache: TokenLogits = cached_teacher(caches["topk"]).score(sample)
    return of_cache.logits(slice(None))[counted], live_teacher(data).score(sample).logits(slice(None))[
        counted
    ]


@pytest.mark.parametrize("topk", [1, 4, 6])
@pytest.mark.parametrize("tail", ["dropped", "bucket"])
@pytest.mark.parametrize("name", DIVERGENCES_OF_THE_BEST)
def test_divergences_of_the_best_symbols_are_the_live_teachers(data, caches, name, tail, topk) -> None:
    """Values and the student's gradients agree, for as many symbols as the cache keeps and for fewer."""
    kept, expected = counted_logits_of_both(data, caches, batch([0, 5, 9, 13, 21]))
    student = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    inputs, settings = needs(DIVERGENCES[name])
    every = {
        "is_rollout": torch.zeros(len(student), dtype=torch.bool),
        "mixture_weight": torch.full((len(student),), 0.5),
    }
    keywords = {key: every[key] for key in inputs} | {
        key: {"jsd_weight": 0.3, "skew": 0.1, "rank_topk": 3, "entropy_threshold": 0.5}[key]
        for key in settings
    }
    results = []
    for teacher in (kept, expected):
        own = student.clone().requires_grad_(True)
        losses = DIVERGENCES[name](*most_probable_only(own, teacher, topk, tail=tail), **keywords)
        # The settings refuse what is infinite.
        if tail == "bucket" or name not in ("reverse-kl", "entropy-aware-kl"):
            losses.sum().backward()
        results.append((losses.detach(), own.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_teachers_argmax_is_the_live_teachers(data, caches) -> None:
    """On references, ImitKD's loss needs the most probable symbol alone."""
    kept, expected = counted_logits_of_both(data, caches, batch([1, 2, 3]))
    student = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        *(DIVERGENCES["teacher-argmax"](student, teacher) for teacher in (kept, expected))
    )


def test_temperature_of_the_kept_symbols_is_the_live_teachers(data, caches) -> None:
    """The kept symbols are renormalised at a temperature. A constant in all logits changes nothing."""
    kept, expected = counted_logits_of_both(data, caches, batch([1, 2, 3]))
    student = torch.zeros_like(expected)
    found = [
        most_probable_only(student, teacher / 3.0, 4, tail="dropped")[1].softmax(dim=-1)
        for teacher in (kept, expected)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_distributions_add_up_to_one(caches) -> None:
    """The tail is spread evenly over all symbols that are not kept."""
    scores = cached_teacher(caches["topk"]).score(batch([4, 6]))
    counted = batch([4, 6])["target"].flatten().ne(1)
    probs = scores.logits(slice(None))[counted].exp()
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(len(probs)))


def test_rounded_tail_never_exceeds_a_kept_symbol() -> None:
    """Nearly equal probabilities are rounded to half precision. The kept symbols still have the greatest
    ones.
    """
    size, lprob = 2000, math.log(1 / 2000)
    kept = torch.tensor([[lprob, lprob]]).half().float()
    tail = torch.tensor([math.log(1998 / 2000)]).half().float() + 0.01
    scores = TopKLogits(torch.tensor([[1500, 7]]), kept, tail, size)
    assert scores.logits(slice(None)).topk(2).indices[0].tolist() == [1500, 7]


def stored(logits: Tensor, topk: int, dtype: torch.dtype) -> TopKLogits:
    """Return a teacher's scores after they were written to a cache and read."""
    found = writer.most_probable(WholeLogits(logits), len(logits), topk, chunk=64)
    lprobs, tail = (found[name].to(dtype).float() for name in ("lprobs", "tail"))
    return TopKLogits(found["symbols"], lprobs, tail, logits.size(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_stored_order_is_read(dtype: torch.dtype) -> None:
    """The two best of 20,000 labels differ by 1e-4 and are a tie in half precision. Other symbols are close
    too, and some are equal before they are stored. The best one is the live teacher's, at other temperatures
    too, and no probability changes by more than rounding does.
    """
    count, size, topk = 20_000, 50, 8
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(count, size, generator=generator) * 2.0
    rows = torch.arange(count)
    order = torch.stack([torch.randperm(size, generator=generator) for _ in range(100)]).repeat(200, 1)
    logits[rows, order[:, 0]] = 8.0
    logits[rows, order[:, 1]] = 8.0 - 1e-4
    logits[rows[::2], order[::2, 2]] = 8.0 - 2e-4
    logits[rows[::3], order[::3, 3]] = logits[rows[::3], order[::3, 0]]
    logits[rows[::7], :] = 1.0
    cache = stored(logits, topk, dtype)
    if dtype is torch.float16:
        assert float(cache.lprobs[:, 0].eq(cache.lprobs[:, 1]).float().mean()) > 0.9
    read = cache.logits(slice(None))
    assert torch.equal(read.argmax(dim=-1), logits.argmax(dim=-1))
    for temperature in (1.0, 0.7, 3.0):
        assert torch.equal((read / temperature).topk(topk, sorted=True).indices, cache.symbols)
    torch.testing.assert_close(read.gather(-1, cache.symbols), cache.lprobs, rtol=1e-4, atol=0.0)


def test_symbols_without_probability_and_padding_are_read() -> None:
    """Their logits are -inf; no NaN comes of them, nor of the zeros that stand at padding."""
    logits = torch.full((2, 9), -torch.inf)
    logits[:, 4] = logits[:, 2] = 0.0
    read = stored(logits, 4, torch.float16).logits(slice(None))
    assert read.argsort(dim=-1, descending=True, stable=True)[0, :2].tolist() == [2, 4]
    assert torch.equal(read.isinf(), logits.isinf())
    zeros = TopKLogits(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3), torch.zeros(1), 9)
    assert bool(zeros.logits(slice(None)).isfinite().all())


def test_more_equal_symbols_than_are_kept() -> None:
    """The first in the dictionary is the best, as for a live teacher."""
    for size, topk in itertools.product((5, 200), (1, 2, 3)):
        logits = torch.zeros(6, size)
        logits[1:, 0] = -1.0
        found = writer.most_probable(WholeLogits(logits), 6, topk, chunk=4)
        assert found["symbols"][:, 0].tolist() == [0, 1, 1, 1, 1, 1]
        assert all(len(set(row)) == topk for row in found["symbols"].tolist())


def test_half_precision_cache_has_the_live_teachers_labels(data, tmp_path) -> None:
    """The whole way, of a teacher whose symbols come in pairs that half precision can't tell apart."""
    path = tmp_path / "pairs.pt"
    state = torch.load(data / "teacher.pt", weights_only=True)
    weight = state["model"]["decoder.output_projection.weight"]
    weight[4::2] = weight[5::2] * (1.0 - 1e-5)
    torch.save(state, path)
    write_cache(
        request(data, tmp_path / "cache", dtype="fp16", teacher_path=str(path), teacher_data=str(data))
    )
    sample = batch([*range(len(PAIRS))])
    counted = sample["target"].flatten().ne(1)
    live = load_teacher(
        TeacherSource(str(path), data=str(data)), LanguagePair("src", "tgt", letters(), letters())
    )
    expected, found = (
        teacher.score(sample).logits(slice(None))[counted].argmax(dim=-1)
        for teacher in (live, cached_teacher(tmp_path / "cache"))
    )
    assert torch.equal(found, expected)
    assert len(set(expected.remainder(2).tolist())) == 2, "the best is not always the first of its pair"


@pytest.mark.parametrize(("symbols", "kind"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_symbols_take_no_more_room_than_they_need(symbols: int, kind: Any) -> None:
    """The smallest integer type is used that holds the last symbol of the vocabulary."""
    shapes = token_arrays(8, "fp16", 5, symbols=symbols, width=0)
    assert shapes["symbols"] == ((5, 8), kind)
    assert bytes_a_token(shapes) == 8 * (np.dtype(kind).itemsize + 2) + 2
    assert as_tensor(np.array([symbols - 1]).astype(kind)).tolist() == [symbols - 1]
    assert bytes_a_token(token_arrays(0, "fp32", 5, symbols=symbols, width=512)) == 2048


def test_manifest_describes_the_cache(data, caches) -> None:
    """It holds hashes as ``sha256sum`` prints them, counts, and the bytes of a token."""
    manifest = json.loads((caches["topk"] / "cache.json").read_text())
    tokens = sum(len(target) + 1 for _, target in PAIRS)
    found = {
        key: manifest[key]
        for key in ("kind", "topk", "dtype", "split", "sentences", "absent", "tokens", "symbols")
    }
    assert found == {
        "kind": "topk", "topk": 6, "dtype": "fp32", "split": "train", "sentences": len(PAIRS), "absent": 0,
        "tokens": tokens, "symbols": SYMBOLS,
    }  # fmt: skip
    assert manifest["bytes_a_token"] == 6 * (2 + 4) + 4
    arrays = [
        np.load(caches["topk"] / f"{name}.npy", mmap_mode="r") for name in ("symbols", "lprobs", "tail")
    ]
    assert sum(array.nbytes for array in arrays) == tokens * manifest["bytes_a_token"]
    assert manifest["teacher_sha256"] == [hashlib.sha256((data / "teacher.pt").read_bytes()).hexdigest()]


def test_sentences_too_long_for_the_teacher_are_absent(data, caches) -> None:
    """Training with the live teacher leaves out the same ones. A run that needs one of them is stopped."""
    kept, offsets = cached_teacher(caches["short"]), np.load(caches["short"] / "offsets.npy")
    assert kept.max_positions == live_teacher(data, "short.pt").max_positions == (LIMIT, LIMIT)
    long = [number for number, (source, _) in enumerate(PAIRS) if len(source) + 1 > LIMIT]
    assert 0 < len(long) < len(PAIRS)
    assert np.flatnonzero(np.diff(offsets) == 0).tolist() == long
    assert json.loads((caches["short"] / "cache.json").read_text())["absent"] == len(long)
    with pytest.raises(
        RefusedUpdate, match=f"sentence {long[0]} has 7 target tokens, but 0 in --teacher-cache '.*short'"
    ):
        kept.score(batch([long[0]]))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Killed(BaseException):
    """A kill: no handler of the package may catch it."""


# Which call of write_json a command is killed at, before or after it: the progress is written at the start,
# when the files are there, and after each batch; the manifest is written at the end. What is kept changes
# only which files are torn, so one kill amid the batches is enough for the hidden states.
@pytest.mark.parametrize(
    ("keep", "stop", "after"),
    [
        *(("topk:6", stop, after) for stop in (0, 1, 2, 4, -2, -1) for after in (False, True)),
        ("hidden", 4, True),
    ],
)
def test_killed_anywhere_and_run_again_the_cache_is_the_same(
    data, tmp_path, monkeypatch, keep, stop, after
) -> None:
    """The bytes are the same, even though the file being written is torn. Saved batches are not computed
    again.
    """
    monkeypatch.setattr(writer, "SAVE_SECONDS", 0.0)
    notes: list[tuple[str, dict[str, Any]]] = []
    stock = OutputFolder.write_json

    def counting(folder: OutputFolder, name: str, content: dict[str, Any]) -> None:
        notes.append((name, content))
        stock(folder, name, content)

    monkeypatch.setattr(OutputFolder, "write_json", counting)
    write_cache(request(data, tmp_path / "whole", keep=keep))
    assert len(notes) > 6, "several batches"
    at, notes[:] = stop % len(notes), []

    def killing(folder: OutputFolder, name: str, content: dict[str, Any]) -> None:
        if len(notes) == at and not after:
            partial(folder.path / name).write_text('{"torn')
            raise Killed
        counting(folder, name, content)
        if len(notes) == at + 1:
            raise Killed

    monkeypatch.setattr(OutputFolder, "write_json", killing)
    with pytest.raises(Killed):
        write_cache(request(data, tmp_path / "killed", keep=keep))
    done = notes[-1][1].get("batches") if notes else None
    if done is not None and not (tmp_path / "killed" / "cache.json").exists():
        spoil_unsaved_answers(tmp_path / "killed", data, done)

    asked: list[int] = []
    answers = writer._answers
    monkeypatch.setattr(OutputFolder, "write_json", stock)
    monkeypatch.setattr(writer, "_answers", lambda *given, **more: asked.append(1) or answers(*given, **more))
    write_cache(request(data, tmp_path / "killed", keep=keep))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    complete = (stop, after) == (-1, True)
    batches = 0 if complete else len(planned_batches(data)) - (done or 0)
    assert len(asked) == batches


def planned_batches(data: Path) -> list[np.ndarray]:
    """Return the batches of :func:`request` in order."""
    own = request(data, Path("unused"))
    task = writer._task(own, Languages.of(data, None, None))
    task.load_dataset("train")
    return writer._plan(task.dataset("train"), (64, 64), own).batches


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_torn_progress_file_leaves_the_previous_one(tmp_path, monkeypatch, moment: str) -> None:
    """The kill happens while the file is written, or before it replaces the previous one."""
    write_json(tmp_path / "note", {"format": format.FORMAT, "batches": 1})

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(os if moment == "fsync" else Path, moment, killed)
    with pytest.raises(Killed):
        write_json(tmp_path / "note", {"format": format.FORMAT, "batches": 2})
    assert format.read_json(tmp_path / "note") == {"format": format.FORMAT, "batches": 1}


def spoil_unsaved_answers(folder: Path, data: Path, done: int) -> None:
    """Overwrite all answers that the progress file does not list."""
    offsets = np.load(folder / "offsets.npy")
    for path in [
        path for name in ("symbols", "lprobs", "tail", "features") for path in folder.glob(f"{name}.npy")
    ]:
        array = np.load(path, mmap_mode="r+")
        for numbers in planned_batches(data)[done:]:
            for number in numbers:
                array[offsets[number] : offsets[number + 1]] = 7
        array.flush()


def test_complete_cache_does_not_change(data, caches, monkeypatch) -> None:
    """A second run of the command does not load the teacher."""
    before = contents(caches["hidden"])
    monkeypatch.setattr(writer, "load_teacher", lambda *_, **__: pytest.fail("loaded"))
    write_cache(request(data, caches["hidden"], keep="hidden"))
    assert contents(caches["hidden"]) == before


def refusal(own: CacheRequest) -> str:
    """Return the message with which a command ends."""
    with pytest.raises(UsageError) as refused:
        write_cache(own)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"keep": "topk"}, ["--keep must be hidden or topk:K", "'topk'"]),
        ({"keep": "topk:0"}, ["--keep", "'topk:0'"]),
        ({"keep": f"topk:{SYMBOLS}"}, [f"--keep topk:{SYMBOLS} must be below", f"{SYMBOLS} symbols"]),
        ({"max_tokens": 5}, ["--max-tokens 5", "7 tokens", "raise it"]),
        ({"gen_subset": "test"}, ["--gen-subset 'test' is not in DATA"]),
        ({"source_lang": "de", "target_lang": "en"}, ["has no dict.de.txt"]),
        ({"teacher_path": "none.pt"}, ["--teacher-path 'none.pt' is not a file"]),
        ({"keep": "hidden", "teacher_path": "TWO"}, ["--keep hidden needs one teacher", "use --keep topk:K"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_requests_that_can_not_work_are_refused(data, tmp_path, changes, parts) -> None:
    """They are refused before the folder is made."""
    if changes.get("teacher_path") == "TWO":
        changes = {**changes, "teacher_path": f"{data / 'teacher.pt'}:{data / 'other.pt'}"}
    message = refusal(request(data, tmp_path / "new", **changes))
    assert all(part in message for part in parts)
    assert not (tmp_path / "new").exists()


def test_hidden_states_without_a_known_matrix_are_refused(data, tmp_path) -> None:
    """The logits of a convolutional teacher are not a single product."""
    arguments = [
        str(data),
        "--source-lang",
        "src",
        "--target-lang",
        "tgt",
        "--task",
        "translation",
        *ARCHITECTURES["fconv"],
    ]
    cfg = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), arguments)
    )
    torch.save(checkpoint_state(tiny_task().build_model(cfg.model), cfg), tmp_path / "fconv.pt")
    own = request(
        data, tmp_path / "new", keep="hidden", teacher_path=str(tmp_path / "fconv.pt"), teacher_data=str(data)
    )
    assert "use --keep topk:K" in refusal(own)


def test_folder_of_something_else_is_refused(data, caches, tmp_path) -> None:
    """It holds other files, or a cache of other settings, complete or not. Nothing in it changes."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "exists and is not a teacher cache" in refusal(request(data, tmp_path / "mine"))
    assert contents(tmp_path / "mine") == {"thesis.txt": b"years of work"}
    before = contents(caches["topk"])
    for changes, part in (
        ({"dtype": "fp16"}, "dtype = fp32, but now it is fp16"),
        ({"keep": "topk:5"}, "topk = 6, but now it is 5"),
        ({"teacher_path": str(data / "other.pt")}, "teacher_sha256 = "),
        ({"gen_subset": "valid"}, "split = train, but now it is valid"),
        ({"truncate_source": True, "max_source_positions": 5}, "truncate_source = 0, but now it is 5"),
    ):
        message = refusal(request(data, caches["topk"], **changes))
        assert f"--out '{caches['topk']}' was begun with {part}" in message
    assert contents(caches["topk"]) == before


def test_full_disk_leaves_nothing_behind(data, tmp_path, monkeypatch) -> None:
    """One line names the folder. With enough space the same command works."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        message = refusal(request(data, tmp_path / "full"))
    assert message.startswith(f"--out '{tmp_path / 'full'}' can't be written (No space left on device)")
    assert not (tmp_path / "full").exists()
    write_cache(request(data, tmp_path / "full"))
    assert (tmp_path / "full" / "cache.json").exists()


def test_space_is_reserved_without_fallocate(tmp_path, monkeypatch) -> None:
    """macOS has no fallocate. There the file is filled by writing."""
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write(b"head")
        file.truncate(3 * writer.RESERVED_AT_ONCE + 5)
    before = path.read_bytes()
    assert path.stat().st_blocks * 512 < len(before)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with open(path, "r+b") as file:
        writer._reserve(file)
    assert path.read_bytes() == before
    assert path.stat().st_blocks * 512 >= len(before)


def test_disk_that_fills_later_keeps_the_saved_batches(data, caches, tmp_path, monkeypatch) -> None:
    """A progress file that can't be written is not torn either."""
    monkeypatch.setattr(writer, "SAVE_SECONDS", 0.0)
    stock = OutputFolder.write_json
    notes: list[str] = []

    def full(folder: OutputFolder, name: str, content: dict[str, Any]) -> None:
        notes.append(name)
        if len(notes) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        stock(folder, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "write_json", full)
        assert "No space left" in refusal(request(data, tmp_path / "full"))
    assert json.loads((tmp_path / "full" / "progress.json").read_text())["batches"] == 2
    write_cache(request(data, tmp_path / "full"))
    assert contents(tmp_path / "full") == contents(caches["topk"])


def test_teacher_that_overflows_half_precision_is_refused(data, tmp_path, monkeypatch) -> None:
    """The message names the sentence and the remedy. Infinity is never saved."""
    answers = writer._answers
    monkeypatch.setattr(
        writer, "_answers", lambda *given, **more: {"features": answers(*given, **more)["features"] * 1e6}
    )
    message = refusal(request(data, tmp_path / "new", keep="hidden", dtype="fp16"))
    assert "are not finite in fp16" in message
    assert "--dtype fp32" in message
    assert not (tmp_path / "new" / "cache.json").exists()


def opened(
    data: Path, folder: Path, method: str = "word_kd", task: dict[str, Any] | None = None, **settings: Any
) -> Any:
    """Return the cache as a run of this method opens it."""
    own = tiny_task(**{"data": str(data), "train_subset": "train", **(task or {})})
    return open_cache(str(folder), own, tiny_criterion(method, own, **settings).method)


def run_refusal(*given: Any, **settings: Any) -> str:
    """Return the message with which a run ends."""
    with pytest.raises(UsageError) as refused:
        opened(*given, **settings)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("kind", "method", "settings"),
    [
        ("topk", "word_kd", {"teacher_topk": 6}),
        ("topk", "word_kd", {"teacher_topk": 1, "teacher_tail": "bucket"}),
        ("topk", "word_kd", {"teacher_topk": 4, "teacher_temperature": 2.0}),
        ("topk", "imitkd", {"student_share": "0"}),
        ("topk", "f_distill", {"student_share": "0", "teacher_topk": 3}),
        ("hidden", "word_kd", {"teacher_temperature": 2.0}),
        ("hidden", "annealing_kd", {}),
        ("hidden", "continuation_kd", {}),
        ("hidden", "atkd", {}),
        ("hidden", "f_distill", {"student_share": "0", "js_weights": "exact"}),
    ],
)
def test_methods_on_references_are_accepted(data, caches, kind, method, settings) -> None:
    """The cache has what they need of the teacher."""
    assert isinstance(opened(data, caches[kind], method, **settings), CachedTeacher)


@pytest.mark.parametrize(
    ("kind", "method", "settings", "parts"),
    [
        ("hidden", "imitkd", {}, ["--student-share exponential:0.005", "add --student-share 0"]),
        ("hidden", "gkd", {}, ["--student-share constant:1", "--teacher-path"]),
        ("hidden", "distillm", {}, ["--student-share adaptive:0"]),
        ("hidden", "speculative_kd", {}, ["--student-share constant:1"]),
        ("hidden", "f_distill_kl", {"teacher_samples": True}, ["--teacher-samples", "leave it out"]),
        ("topk", "word_kd", {},
         ["--teacher-topk must be in 1..6", "but is 0 (the whole distribution)", "--keep hidden"]),
        ("topk", "word_kd", {"teacher_topk": 7}, ["--teacher-topk must be in 1..6", "but is 7"]),
        (
            "topk", "word_kd", {"teacher_topk": 4, "teacher_tail": "bucket", "teacher_temperature": 2.0},
            ["--teacher-temperature 2.0", "--teacher-tail dropped"],
        ),
        ("topk", "annealing_kd", {}, ["--divergence logit-mse needs more", "--keep hidden"]),
        ("topk", "atkd", {}, ["--divergence target-decoupled-kl needs more", "--keep hidden"]),
        (
            "topk", "f_distill", {"student_share": "0", "js_weights": "exact", "teacher_topk": 3},
            ["--divergence sequence-js --js-weights exact needs more", "--keep hidden"],
        ),
    ],
)  # fmt: skip
def test_methods_that_need_more_are_refused(data, caches, kind, method, settings, parts) -> None:
    """The message names the flag, the cache and the remedy."""
    message = run_refusal(data, caches[kind], method, **settings)
    assert all(part in message for part in [*parts, str(caches[kind])])


def test_no_cache_and_unfinished_caches_are_refused(data, caches, tmp_path) -> None:
    """The message names the problem and the remedy."""
    assert "holds no cache.json" in run_refusal(data, tmp_path)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(caches["hidden"], unfinished)
    (unfinished / "cache.json").rename(unfinished / "progress.json")
    assert "is not complete: run its imitkd-cache command again" in run_refusal(data, unfinished)
    (unfinished / "cache.json").write_text('{"torn')
    assert "cache.json' can't be read" in run_refusal(data, unfinished)
    (unfinished / "cache.json").write_text('{"format": 0}')
    assert "another version" in run_refusal(data, unfinished)


@pytest.mark.parametrize("name", ["features", "offsets", "weight"])
def test_damaged_caches_are_refused(data, caches, tmp_path, name) -> None:
    """An array is missing, cut off, or of another size."""
    damaged = tmp_path / "damaged"
    shutil.copytree(caches["hidden"], damaged)
    path = damaged / f"{name}.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert f"{name}.npy' can't be read" in run_refusal(data, damaged)
    np.save(path, np.zeros((2, 2)))
    assert f"{name}.npy' holds float64 (2, 2)" in run_refusal(data, damaged)
    path.unlink()
    assert f"{name}.npy' can't be read" in run_refusal(data, damaged)


def test_other_data_is_refused(data, caches, tmp_path) -> None:
    """One token differs, a sentence is missing, or the symbols, the split or the settings of the input
    differ.
    """

    def changed(pairs: list[Any], symbols: str | None = None) -> Path:
        folder = write_dictionaries(
            tmp_path / str(len(list(tmp_path.iterdir()))), *([symbols] * 2 if symbols else [])
        )
        write_split(folder, "train", pairs)
        return folder

    hidden = caches["hidden"]
    other = [*PAIRS[:-1], (PAIRS[-1][0], [*PAIRS[-1][1][:-1], (PAIRS[-1][1][-1] + 1) % 16])]
    for pairs in (other, PAIRS[:-1]):
        assert "data_sha256 is" in run_refusal(changed(pairs), hidden)
    assert isinstance(opened(changed(PAIRS), hidden), CachedTeacher)
    for task, part in (
        ({"train_subset": "valid"}, "split is train there, but valid here"),
        ({"truncate_source": True, "max_source_positions": 9}, "truncate_source is 0 there, but 9 here"),
        ({"left_pad_source": False}, "left_pad_source is True there, but False here"),
        ({"data": f"{data}:{data}"}, "data_sha256 is"),
        ({"upsample_primary": 3}, "--upsample-primary 3"),
    ):
        assert part in run_refusal(data, hidden, task=task)
    several = changed(PAIRS)
    write_split(several, "train1", PAIRS)
    assert "in parts ('train1', …)" in run_refusal(several, hidden)


@pytest.mark.parametrize("kind", ["topk", "hidden"])
def test_shards_are_those_of_the_epoch(data, tmp_path, kind: str) -> None:
    """``DATA1:DATA2``: fairseq reads a directory in each epoch, and the answers are about its sentences."""
    two = write_dictionaries(tmp_path / "two")
    shards = PAIRS, [(target, source) for source, target in PAIRS[:5]]
    write_split(two, "train", shards[1])
    both = f"{data}:{two}"
    keep = {"topk": "topk:19", "hidden": "hidden"}[kind]
    settings: dict[str, Any] = {"keep": keep, "teacher_path": str(data / "teacher.pt")}
    manifest = write_cache(
        CacheRequest(data=both, out=str(tmp_path / "out"), dtype="fp32", teacher_allow_poor=True, **settings)
    )
    assert manifest["shards"] == [len(PAIRS), 5]
    method = {"topk": {"teacher_topk": 19}, "hidden": {}}[kind]
    cached = opened(data, tmp_path / "out", task={"data": both}, **method)
    live = live_teacher(data)
    cached.place(torch.device("cpu"), torch.float32)
    live.place(torch.device("cpu"), torch.float32)
    for epoch in (1, 2, 3):
        cached.begin_epoch(epoch)
        pairs = shards[(epoch - 1) % 2]
        sample = make_batch([pairs[number] for number in (0, 3, 4)], ids=[0, 3, 4])
        counted = sample["target"].ne(letters().pad()).flatten()
        own, expected = (
            teacher.score(sample).logits(slice(None)).log_softmax(-1)[counted] for teacher in (cached, live)
        )
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    assert "data_sha256 is" in run_refusal(data, tmp_path / "out")


def test_other_dictionaries_are_refused(data, caches) -> None:
    """They have the same symbols in another order."""
    own = tiny_task(data=str(data), train_subset="train")
    own.tgt_dict = letters("bacdefghijklmnop")
    with pytest.raises(UsageError, match="target_dictionary_sha256"):
        open_cache(str(caches["hidden"]), own, tiny_criterion("word_kd", own).method)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("teacher_path", "teacher.pt"),
        ("teacher_weights", "1:2"),
        ("teacher_dtype", "fp16"),
        ("teacher_data", "folder"),
        ("teacher_allow_globals", "numpy.core"),
        ("teacher_selection", "agreement"),
        ("teacher_encoder_cache", "1GB"),
    ],
)
def test_flags_of_a_live_teacher_are_refused(name: str, value: str) -> None:
    """They would have no effect. The teacher's path is one of them."""
    own = tiny_task(teacher_cache="cache", **{name: value})
    with pytest.raises(UsageError) as refused:
        refuse_teacher_flags(own.cfg, TranslationWithTeacherConfig())
    flag = f"--{name.replace('_', '-')} {value}"
    assert str(refused.value).startswith(f"{flag} changes nothing with --teacher-cache")
    refuse_teacher_flags(tiny_task(teacher_cache="cache").cfg, TranslationWithTeacherConfig())


class Optimizer:
    """The part of fairseq's optimizer that a training step calls."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients."""
        loss.backward()


@pytest.mark.parametrize("chunk", [-1, 5])
@pytest.mark.parametrize(
    ("kind", "method", "settings"),
    [
        ("hidden", "word_kd", {}),
        ("hidden", "atkd", {}),
        ("hidden", "annealing_kd", {}),
        ("topk", "word_kd", {"teacher_topk": 4, "teacher_tail": "bucket"}),
        ("topk", "imitkd", {"student_share": "0"}),
    ],
)
def test_training_step_is_the_live_teachers(data, caches, kind, method, settings, chunk) -> None:
    """Loss, logs and gradients agree for a batch that is trained on whole, in parts or in chunks."""
    results = []
    sample = batch([0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33])
    for teacher in (cached_teacher(caches[kind]), live_teacher(data)):
        task, student = tiny_task(), build_student(seed=1, dropout=0.0)
        give_teacher(task, teacher)
        criterion = tiny_criterion(method, task, loss_chunk=chunk, **settings)
        loss, count, metrics = task.train_step(sample, student, criterion, Optimizer(), 3)
        gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
        results.append(
            (float(loss), count, float(metrics["agreed"]) if "agreed" in metrics else 0.0, gradients)
        )
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert max(float(gradient.abs().max()) for gradient in results[0][3].values()) > 1e-2


def test_step_loads_no_teacher_and_decodes_nothing(data, caches, monkeypatch) -> None:
    """The task builds its criterion from the cache alone. The flag is --teacher-cache."""
    monkeypatch.setattr(task_module, "load_teacher", lambda *_, **__: pytest.fail("loaded"))
    cfg = training_config(
        data,
        "--task",
        "translation_with_teacher",
        "--criterion",
        "word_kd",
        "--teacher-cache",
        caches["hidden"],
        "--max-update",
        9,
        "--max-tokens",
        400,
        "--optimizer",
        "adam",
    )
    task = task_module.TranslationWithTeacherTask.setup_task(cfg.task)
    task.build_model(cfg.model)
    task.build_criterion(cfg.criterion)
    assert isinstance(task._distiller.teacher, CachedTeacher)


def copied(cache: Path, folder: Path, **changes: Any) -> Path:
    """Return a copy of a cache with a changed manifest. Entries of None are removed."""
    shutil.copytree(cache, folder)
    manifest = json.loads((folder / "cache.json").read_text())
    kept = {name: value for name, value in (manifest | changes).items() if value is not None}
    (folder / "cache.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("topk", {"topk": None}),
        ("topk", {"topk": True}),
        ("topk", {"topk": 10**9}),
        ("topk", {"topk": "8"}),
        ("topk", {"dtype": "fp64"}),
        ("topk", {"dtype": ["fp16"]}),
        ("topk", {"sentences": "40"}),
        ("topk", {"max_positions": [64]}),
        ("topk", {"max_positions": None}),
        ("topk", {"projection": ["../weight"]}),
        ("hidden", {"projection": ["../weight"]}),
        ("hidden", {"projection": []}),
        ("hidden", {"width": 0}),
        ("hidden", {"kind": "topk"}),
    ],
    ids=str,
)
def test_malformed_manifests_are_refused(data, caches, tmp_path, kind: str, changes: dict[str, Any]) -> None:
    """A cache may come from anywhere."""
    folder = copied(caches[kind], tmp_path / "copy", **changes)
    message = run_refusal(data, folder, **({"teacher_topk": 6} if kind == "topk" else {}))
    assert (
        f"'{folder / 'cache.json'}' is damaged, its {next(iter(changes))} is " in message
        or "is damaged, its" in message
    )
    assert message.endswith("delete the folder and run imitkd-cache again")


@pytest.mark.parametrize("batches", ["x", -1, 10**9, True, [3]], ids=str)
def test_malformed_progress_files_are_refused(data, caches, tmp_path, batches: Any) -> None:
    """Otherwise a cache could count as complete without the teacher's answers."""
    folder = copied(caches["topk"], tmp_path / "copy", batches=batches)
    (folder / "cache.json").rename(folder / "progress.json")
    message = refusal(request(data, folder))
    assert message.startswith(
        f"'{folder / 'progress.json'}' is damaged, its batches is '{batches}': delete the folder and"
    )
    assert not (folder / "cache.json").exists()


def test_message_never_tells_to_delete_other_files(data, tmp_path) -> None:
    """There is a file instead of the folder, a folder of something else, or an unreadable one."""
    (tmp_path / "model.pt").write_text("mine")
    assert refusal(request(data, tmp_path / "model.pt")) == (
        f"--out '{tmp_path / 'model.pt'}' exists and is not a teacher cache; use a new or empty folder"
    )
    assert "holds no cache.json: give a folder that imitkd-cache wrote" in run_refusal(
        data, tmp_path / "model.pt"
    )
    (tmp_path / "other" / "cache.json").mkdir(parents=True)
    message = refusal(request(data, tmp_path / "other"))
    assert message.startswith(
        f"--out '{tmp_path / 'other'}' can't be written (Is a directory: "
        f"'{tmp_path / 'other' / 'cache.json'}'); use "
    )


@pytest.mark.parametrize("damage", ["never written", "other numbers", "symbols", "order", "hidden"])
def test_answers_that_are_not_distributions_are_refused(data, caches, tmp_path, damage: str) -> None:
    """Rows of zeros, of another sentence's symbols, or without a valid distribution are not trained on."""
    folder = copied(caches["hidden" if damage == "hidden" else "topk"], tmp_path / "copy")
    name = {"symbols": "symbols", "hidden": "features"}.get(damage, "lprobs")
    array, first = np.load(folder / f"{name}.npy", mmap_mode="r+"), int(np.load(folder / "offsets.npy")[3])
    array[first] = {
        "symbols": SYMBOLS, "other numbers": array[first] + 1.0, "order": array[first, ::-1]
    }.get(damage, 0)  # fmt: skip
    array.flush()
    assert cached_teacher(folder).score(batch([2, 4]))
    with pytest.raises(
        RefusedUpdate, match="is damaged: its values for sentence 3 are not a teacher's answer; delete the"
    ):
        cached_teacher(folder).score(batch([2, 3]))


@pytest.mark.parametrize("damage", ["gone", "archive", "offsets"])
def test_complete_caches_that_lost_files_are_refused(data, caches, tmp_path, damage: str) -> None:
    """The command does not call them complete, and a run names the remedy."""
    folder = copied(caches["topk"], tmp_path / "copy")
    if damage == "gone":
        (folder / "tail.npy").unlink()
    elif damage == "archive":
        np.savez(folder / "tail.npz", a=np.zeros(3))
        (folder / "tail.npz").replace(folder / "tail.npy")
    else:
        np.save(folder / "offsets.npy", np.load(folder / "offsets.npy")[::-1].copy())
    for message in (refusal(request(data, folder)), run_refusal(data, folder, teacher_topk=6)):
        assert message.endswith("delete the folder and run imitkd-cache again")


def test_two_commands_at_once(data, caches, tmp_path, monkeypatch) -> None:
    """The second one waits and is refused, because both can't write the same files."""
    monkeypatch.setattr(output_folder, "PATIENCE", 0.1)
    folder = tmp_path / "cache"
    folder.mkdir()
    with OutputFolder(folder, "a teacher cache").lock():
        assert "another run is writing" in refusal(request(data, folder))
    write_cache(request(data, folder))
    assert contents(folder) == contents(caches["topk"])


@pytest.mark.parametrize("damage", ["lengths", "no target", "cut", "symbols", "dictionary", "one language"])
def test_damaged_data_is_refused_in_one_line(data, tmp_path, damage: str) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    prefix, changes = folder / "train.src-tgt.tgt", {}
    if damage == "lengths":
        write_split(folder, "valid", PAIRS[:8])
        for end in ("bin", "idx"):
            shutil.copy(folder / f"valid.src-tgt.tgt.{end}", f"{prefix}.{end}")
        expected = "source and target of --gen-subset train must have as many sentences"
    elif damage == "no target":
        for end in ("bin", "idx"):
            Path(f"{prefix}.{end}").unlink()
        expected = "has no target side"
    elif damage == "cut":
        Path(f"{prefix}.bin").write_bytes(Path(f"{prefix}.bin").read_bytes()[:-2])
        expected = "train.src-tgt.tgt.idx describes"
    elif damage == "symbols":
        write_split(folder, "train", [([0], [SYMBOLS])] * 5)
        expected = "train.src-tgt.tgt.bin holds symbol "
    elif damage == "dictionary":
        (folder / "dict.src.txt").write_bytes("é 1\n".encode("latin1"))
        expected = "dict.src.txt' is not a dictionary of fairseq"
    else:
        changes, expected = {"source_lang": "fr"}, "--source-lang fr is not in DATA"
    assert expected in refusal(request(folder, tmp_path / "new", **changes))
    assert not (tmp_path / "new").exists() or damage == "symbols"
