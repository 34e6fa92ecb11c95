"""Translations of others: kinds of files, pooled by sentence, selected, filtered, and made for a student."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary, data_utils
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from sacrebleu.metrics import CHRF

from fairseq_imitkd.cli import seqkd as command
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd import factory, workers
from fairseq_imitkd.seqkd.factory import make
from fairseq_imitkd.seqkd.translations import Translated, TranslationFile
from fairseq_imitkd.tasks.translation import TranslationWithTeacherConfig, TranslationWithTeacherTask
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.text.subwords import Text, TextSettings
from tests.helpers.fairseq_models import checkpoint_state, training_config, write_dictionaries
from tests.helpers.killable import tree
from tests.helpers.seqkd_jobs import job, make_root, refusal, write_split


def lines_of(path: Path, scores: Path | None = None) -> list[Translated]:
    return [line for _, line in TranslationFile(path, scores)]


def run(data: Path, out: Path, *flags: Any) -> dict[str, Any]:
    """Run the command, and return its manifest."""
    command.main([str(data), "--out", str(out), "-s", "src", "-t", "tgt", "--cpu", *map(str, flags)])
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return manifest


def rows(out: Path, name: str = "train.tsv") -> list[list[str]]:
    return [line.split("\t") for line in (out / "text" / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's data directory, whose symbols are letters."""
    return make_root(tmp_path_factory.mktemp("translations")) / "data"


def test_kinds_of_files(tmp_path: Path) -> None:
    """TSV with and without names of its columns, JSONL, and scores in a file of their own."""
    plain, named, lines = tmp_path / "a.tsv", tmp_path / "b.tsv", tmp_path / "c.jsonl"
    plain.write_text("\ufeffa b\tc\td\r\ne\tsource\n", encoding="utf-8", newline="")
    assert lines_of(plain) == [Translated("a b", ("c", "d")), Translated("e", ("source",))]
    named.write_text("reference\tsource\ttranslation\tscore\ttranslation\tscore\nr\ts\tx\t-1\ty\t0.5\n")
    assert lines_of(named) == [Translated("s", ("x", "y"), (-1.0, 0.5), "r")]
    content = [
        {"source": "s", "translations": ["x\ny", ""], "scores": [1, 2.5]},
        {"source": "t", "translation": "z", "score": 3, "other": None},
        {"source": "u", "translations": []},
        {"source": "v", "translations": [], "scores": []},
    ]
    lines.write_text("".join(json.dumps(each) + "\n" for each in content))
    assert lines_of(lines) == [
        Translated("s", ("x y", ""), (1.0, 2.5)),
        Translated("t", ("z",), (3.0,)),
        Translated("u", ()),
        Translated("v", (), ()),
    ]
    (tmp_path / "scores").write_text("1 2\n7\n")
    assert [line.scores for line in lines_of(plain, tmp_path / "scores")] == [(1.0, 2.0), (7.0,)]
    for file in (plain, named, lines):
        made = TranslationFile(file)
        assert [made.at(place) for place, _ in reversed(list(made))] == lines_of(file)[::-1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a\tb\n", "must end in .tsv or .jsonl"),
        ("a.tsv", "a\tb\nc\n", "line 2 must hold a source and its translations: it has no tab"),
        ("a.tsv", "source\ttranslation\na\n", "line 2 must hold a source and its translations: it has 1 col"),
        ("a.tsv", "source\tscore\n", "the columns must be source, translation (once or more"),
        ("a.tsv", "", "is empty; use a file with one source in each line"),
        ("a.jsonl", "[]\n", "line 1 must hold a source and its translations: it is not an object with a"),
        ("a.jsonl", "a\tb\n", "line 1 must hold a source and its translations: it is not JSON (column 1)"),
        ("a.jsonl", '{"source": "a", "translations": [1]}\n', 'its "translations" are not a list of texts'),
        (
            "a.jsonl",
            '{"source": "a", "translations": ["b"], "scores": [NaN]}\n',
            "its scores are not one number for each translation",
        ),
        (
            "t.jsonl",
            '{"source": "a", "translations": ["b"], "scores": [1' + 309 * "0" + "]}\n",
            "line 1 must hold a source and its translations: int too large",
        ),
        ("a.tsv", b"a\t\xff\n", "must be UTF-8, but line 1 is not; convert the file (iconv)"),
        (
            "a.jsonl",
            '{"source":"a","translation":"b","reference":"c"}\n{"source":"d","translation":"b"}\n',
            "all sentences must have a reference, or none",
        ),
    ],
    ids=str,
)
def test_refused_files(data: Path, tmp_path: Path, name: str, content: Any, message: str) -> None:
    """One line names the file, the line and what is wrong. The folder is free afterwards."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as error:
        run(data, tmp_path / "out", "--translations", path)
    assert str(error.value).startswith(f"--translations '{path}'")
    assert message in str(error.value)
    path = tmp_path / "good.tsv"
    path.write_text("a\tb\n")
    run(data, tmp_path / "out", "--translations", path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--teacher-path", "t"), "--translations takes the place of --teacher-path; leave one of them out"),
        (("--beam", "7"), "--beam changes nothing with --translations"),
        (("--select", "sample"), "--select must be first, best or mbr with --translations, but is sample"),
        (("--bpe", "fastbpe"), "--bpe changes nothing with --translations"),
        (("--drop-worst", "0.5"), "--drop-worst needs a score for each translation"),
        (("--reverse-teacher", "t"), "--reverse-teacher changes nothing without --drop-worst"),
        (
            ("--scores", __file__, __file__),
            "--scores must name one file for each of the 1 --translations, but",
        ),
        (("--scores", "nowhere"), "--scores 'nowhere' is not a file; use a file that is there"),
        (("--translations", "nowhere.tsv"), "--translations 'nowhere.tsv' is not a file; use a file that is"),
        (("--select", "best", "--metric", "chrf"), "--select best needs references, but --translations have"),
        (("--student-data", "d"), "--student-data changes nothing with --translations"),
    ],
    ids=str,
)
def test_refused_flags(data: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\tb\n")
    with pytest.raises(UsageError) as error:
        run(data, tmp_path / "out", "--translations", path, *flags)
    assert str(error.value).startswith(message)


def test_several_files_are_pooled(data: Path, tmp_path: Path) -> None:
    """By source and occurrence, in any order; mbr chooses among all, first by score, best by reference."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    first = [
        {"source": "a b", "translations": ["a b c", "p o"], "scores": [-1, -2], "reference": "n o"},
        {"source": "c", "translations": ["d"], "scores": [-1], "reference": "d"},
        {"source": "a b", "translations": ["e"], "scores": [-1], "reference": "e"},
    ]
    second = [
        {"source": "d", "translations": ["f"]},
        {"source": "a b", "translations": ["p o", "n o p", "n o p"], "scores": [-3, -0.5, -4]},
        {"source": "a b", "translations": ["g", "e"], "scores": [1, 0]},
    ]
    one.write_text("".join(json.dumps(each) + "\n" for each in first))
    two.write_text("".join(json.dumps({**each, "reference": "o"}) + "\n" for each in second))
    found = {}
    for name, *flags in (
        ("first",),
        ("two", "--keep", 2),
        ("mbr", "--select", "mbr", "--utility", "chrf"),
        ("best", "--select", "best", "--metric", "chrf"),
    ):
        manifest = run(data, tmp_path / name, "--translations", one, two, *flags)
        assert manifest["counts"]["sentences"] == 4
        found[name] = [(row[0], row[3], row[4]) for row in rows(tmp_path / name)]
    tail = [("1", "c", "d"), ("2", "a b", "g"), ("3", "d", "f")]
    assert found["first"] == [("0", "a b", "n o p"), *tail]
    assert [row[2] for row in found["two"]] == ["n o p", "a b c", "d", "g", "e", "f"]
    pool = ["a b c", "p o", "p o", "n o p", "n o p"]
    chrf = CHRF()
    utilities = [sum(chrf.sentence_score(own, [other]).score for other in pool) for own in pool]
    assert found["mbr"][0] == ("0", "a b", pool[int(np.argmax(utilities))])
    assert found["best"][0] == ("0", "a b", "n o p")
    assert [row[2] for row in rows(tmp_path / "first")] == ["-0.5000", "-1.0000", "1.0000", ""]


def test_answers_that_are_empty(data: Path, tmp_path: Path) -> None:
    """They stand behind all others, and need no score; alone they are one that is dropped."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    empty: list[dict[str, Any]] = [{}, {"scores": []}, {"translations": [" "]}, {}]
    empty.insert(3, {"translations": ["", "n"], "scores": [9, -3]})
    lines = [
        {"source": source, "translations": [], **more} for source, more in zip("abcde", empty, strict=True)
    ]
    one.write_text("".join(json.dumps(line) + "\n" for line in lines))
    both = {"translations": ["d", "f"], "scores": [-2, -1]}
    two.write_text("".join(json.dumps({"source": source, **both}) + "\n" for source in "abcd"))
    manifest = run(data, tmp_path / "first", "--translations", one, two)
    assert [row[2:] for row in rows(tmp_path / "first")] == [["-1.0000", source, "f"] for source in "abcd"]
    assert (manifest["counts"]["dropped"]["empty"], manifest["counts"]["translations"]) == (1, 5)
    run(data, tmp_path / "scored", "--translations", one, two, "--drop-worst", 0.1, "--keep", 9)
    found = [(row[3], row[4]) for row in rows(tmp_path / "scored")]
    assert found == [*((source, target) for source in "abcd" for target in "fd"), ("d", "n")]


BAD = [
    ("a b c d", "a b c d", "copy"),
    ("a b c d", "a  b c d", "copy"),
    ("a b c d", "e f e f e f", "repeats"),
    ("a b c d", "e", "ratio"),
    ("a b c d", "", "empty"),
    ("a b c d", "h i j k", "worst"),
    ("a b c d", "h i j l", "worst"),
]


def test_planted_bad_lines(data: Path, tmp_path: Path) -> None:
    """The filters find all bad lines, count them, and keep them in a file with the reason."""
    good = [("a a a", "b b b"), *[(f"a b {'c ' * many}", f"d e {'f g ' * many}") for many in (1, 2)]]
    good = [*good, *[("k l m n", letter + " m n o") for letter in "abcdefghijklmnop"]]
    lines = [(*pair, "") for pair in good]
    for place, bad in enumerate(BAD):
        lines.insert(2 * place, bad)
    path, scores = tmp_path / "all.tsv", tmp_path / "scores"
    path.write_text("".join(f"{source}\t{target}\n" for source, target, _ in lines))
    scores.write_text("".join(f"{-9 if reason == 'worst' else -1}\n" for _, _, reason in lines))
    flags = ("--drop-copies", "--drop-repeats", "--max-ratio", 2, "--scores", scores, "--drop-worst", 0.1)
    manifest = run(data, tmp_path / "out", "--translations", path, *flags)
    bad_at = [(str(at), reason) for at, (_, _, reason) in enumerate(lines) if reason]
    assert [(row[0], row[2]) for row in rows(tmp_path / "out", "train.dropped.tsv")] == bad_at
    expected = {
        "copy": 2,
        "repeats": 1,
        "ratio": 1,
        "empty": 1,
        "worst": 2,
        "cut": 0,
        "language": 0,
        "duplicate": 0,
    }
    assert manifest["counts"]["dropped"] == expected
    assert [row[0] for row in rows(tmp_path / "out")] == [
        str(at) for at, (_, _, reason) in enumerate(lines) if not reason
    ]


def trained_back(root: Path, data: Path) -> Path:
    """A teacher of the other direction, over the same dictionaries, that knows nothing yet."""
    source, target = (Dictionary.load(str(data / f"dict.{side}.txt")) for side in ("src", "tgt"))
    back = root / "back"
    back.mkdir()
    for side in ("src", "tgt"):
        (back / f"dict.{side}.txt").write_bytes((data / f"dict.{side}.txt").read_bytes())
    task = TranslationWithTeacherTask(
        TranslationWithTeacherConfig(source_lang="tgt", target_lang="src"), target, source
    )
    cfg = training_config(back, "--task", "translation", "--source-lang", "tgt", "--target-lang", "src")
    torch.manual_seed(3)
    torch.save(checkpoint_state(task.build_model(cfg.model), cfg), back / "reverse.pt")
    return back / "reverse.pt"


def test_reverse_teacher_and_resume(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it finds least probable are dropped; stopped anywhere, the result has the same bytes."""
    root, settings = (
        data.parent,
        {
            "reverse_teacher": str(trained_back(tmp_path, data)),
            "filters": {"drop_worst": 0.2, "max_ratio": 2.0},
            "decoding": {"keep": 2, "max_len_b": 30},
        },
    )
    make(job(root, tmp_path / "whole", **settings))
    dropped = rows(tmp_path / "whole", "test.dropped.tsv")
    worst = [float(row[5]) for row in dropped if row[2] == "worst"]
    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    counts = manifest["counts"]
    assert len(worst) == counts["dropped"]["worst"] == int(0.2 * (counts["written"] + len(worst))) > 0
    assert all(quality < -1 for quality in worst)
    for module, name, last in ((workers, "save_batch", 3), (np, "save", 2), (factory, "write", 0)):
        real, calls = getattr(module, name), iter(range(100))

        def stopped(*given: Any, real: Any = real, calls: Any = calls, last: int = last, **more: Any) -> None:
            real(*given, **more)
            if next(calls) == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                make(job(root, tmp_path / "parts", **settings))
    make(job(root, tmp_path / "parts", **settings))
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_a_shard_that_was_stopped_scores_all_that_it_has_translated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "reverse_teacher": str(trained_back(tmp_path, data)),
        "filters": {"drop_worst": 0.2},
        "num_shards": 2,
        "shard_id": 1,
    }

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(factory, "score_back", stopped)
        with pytest.raises(KeyboardInterrupt):
            make(job(data.parent, tmp_path / "out", **settings))
    made = make(job(data.parent, tmp_path / "out", **settings))
    scored = (tmp_path / "out" / "decoded").glob("*.reverse.npy")
    assert sorted(int(path.name.split(".")[0]) for path in scored) == list(range(1, made.batches, 2))


def test_qualities_are_those_of_the_reverse_teacher(data: Path, tmp_path: Path) -> None:
    """The mean log-probability of the source's symbols given the translation, computed one by one."""
    root, reverse = data.parent, trained_back(tmp_path, data)
    out = tmp_path / "out"
    settings = {
        "reverse_teacher": str(reverse),
        "filters": {"drop_worst": 0.5},
        "decoding": {"max_len_b": 30},
    }
    make(job(root, out, **settings))
    source, target = (Dictionary.load(str(data / f"dict.{side}.txt")) for side in ("src", "tgt"))
    pair = LanguagePair("tgt", "src", target, source)
    [model] = load_teacher(TeacherSource(str(reverse), dtype="fp32"), pair).models
    qualities = {}
    for number, _, reason, *texts, quality in rows(out, "test.dropped.tsv"):
        if reason != "worst":
            continue
        read, wrote = (
            dictionary.encode_line(text, add_if_not_exist=False).long()
            for dictionary, text in ((target, texts[1]), (source, texts[0]))
        )
        previous = wrote.roll(1).unsqueeze(0)
        logits = model(read.unsqueeze(0), torch.tensor([read.numel()]), previous)[0][0].double()
        mean = logits.log_softmax(-1).gather(-1, wrote.unsqueeze(-1)).mean().item()
        qualities[number] = (float(quality), mean)
    assert len(qualities) > 10
    assert all(abs(own - expected) < 2e-4 for own, expected in qualities.values())


def test_reverse_teacher_of_the_same_direction(data: Path, tmp_path: Path) -> None:
    settings = {"reverse_teacher": str(data.parent / "teacher.pt"), "filters": {"drop_worst": 0.5}}
    with pytest.raises(UsageError) as error:
        make(job(data.parent, tmp_path / "out", **settings))
    assert str(error.value).startswith("--reverse-teacher '")


def test_dictionaries_of_the_reverse_teacher(data: Path, tmp_path: Path) -> None:
    """They lie beside its checkpoint, for --teacher-data is of the teacher."""
    reverse = trained_back(tmp_path, data)
    other = tmp_path / "other"
    other.mkdir()
    (other / "reverse.pt").write_bytes(reverse.read_bytes())
    words = (other / "dict.src.txt", other / "dict.tgt.txt")
    for path in words:
        path.write_text("x 1\n")

    def said(path: Path) -> str:
        filters = {"drop_worst": 0.5}
        return refusal(job(data.parent, tmp_path / "out", reverse_teacher=str(path), filters=filters))

    differ = said(other / "reverse.pt")
    assert differ.startswith(f"--reverse-teacher '{other}/reverse.pt' lies beside {other}/dict.tgt.txt, but")
    assert differ.endswith("; keep those alone that it was trained with")
    (reverse.parent / "dict.src.txt").unlink()
    unlike = said(other / "reverse.pt")
    assert "has other dictionaries than the reverse teacher" in unlike
    words[0].unlink()
    missing = said(other / "reverse.pt")
    assert missing.startswith("the reverse teacher's dictionaries dict.tgt.txt and dict.src.txt are not in ")
    for message in (unlike, missing):
        assert message.endswith("; put its own ones beside it")


def subwords(folder: Path, lines: list[str], size: int) -> tuple[Path, Path]:
    """Return a SentencePiece model of some lines, and a data directory whose dictionaries are its pieces."""
    folder.mkdir()
    (folder / "lines").write_text("\n".join(lines) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines"), model_prefix=str(folder / "m"), vocab_size=size, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))
    symbols = [model.id_to_piece(number) for number in range(3, model.get_piece_size())]
    return folder / "m.model", write_dictionaries(folder / "data", symbols, symbols)


LINES = [
    f"{who} {what} to the {who[2:]} mat" for who in ("a cat", "a dog", "a rat") for what in ("sat", "ran")
]


def test_student_with_other_subwords(tmp_path: Path) -> None:
    """The teacher's text in the student's subwords, with the student's dictionaries and validation set.

    What the teacher does not know, the student does not know.
    """
    teacher_model, data = subwords(tmp_path / "teacher", LINES, 30)
    student_model, student = subwords(tmp_path / "student", LINES, 22)
    dictionary, own = (Dictionary.load(str(folder / "dict.src.txt")) for folder in (data, student))
    pieces, students = (
        sentencepiece.SentencePieceProcessor(model_file=str(model))
        for model in (teacher_model, student_model)
    )
    for side in ("src", "tgt"):
        coded = [[dictionary.index(piece) for piece in pieces.encode(line, out_type=str)] for line in LINES]
        coded += [[*coded[0][:3], dictionary.unk(), *coded[1]], [dictionary.unk()]]
        write_split(data, "test", coded, side)
        for name in ("valid", "valid1"):
            write_split(
                student, name, [[own.index(piece) for piece in students.encode("a cat", out_type=str)]], side
            )
    task = TranslationWithTeacherTask(
        TranslationWithTeacherConfig(source_lang="src", target_lang="tgt"), dictionary, dictionary
    )
    cfg = training_config(data, "--task", "translation")
    torch.manual_seed(2)
    torch.save(checkpoint_state(task.build_model(cfg.model), cfg), tmp_path / "teacher.pt")
    flags = ("--teacher-path", tmp_path / "teacher.pt", "--teacher-allow-poor", "--gen-subset", "test")
    flags = (*flags, "--student-data", student, "--student-bpe", "sentencepiece", "--mix-gold", 1)
    flags = (*flags, "--student-sentencepiece-model", student_model, "--max-len-b", 20)
    out = tmp_path / "out"
    manifest = run(data, out, *flags)
    assert manifest["student"]["dictionaries"].keys() == {"src", "tgt"}
    made = out / "data-bin"
    assert (made / "dict.tgt.txt").read_bytes() == (student / "dict.tgt.txt").read_bytes()
    assert (made / "valid1.src-tgt.tgt.bin").read_bytes() == (student / "valid1.src-tgt.tgt.bin").read_bytes()
    gold = [row[3] for row in rows(out, "test.tsv") if row[1] == "gold"]
    assert gold[:-2] == LINES
    assert [text.count("<unk>") for text in gold[-2:]] == [1, 1]
    for side, column in (("src", 3), ("tgt", 4)):
        dataset = data_utils.load_indexed_dataset(str(made / f"test.src-tgt.{side}"), own)
        expected = [
            [" ".join(students.encode(part, out_type=str)) for part in row[column].split("<unk>")]
            for row in rows(out, "test.tsv")
        ]
        assert [own.string(row) for row in dataset] == [" <unk> ".join(parts).strip() for parts in expected]


ENGLISH, GERMAN = "We played in the forest yesterday.", "Wir haben gestern im Wald gespielt."
FILTERS = ("--drop-other-languages", "en", "--drop-copies")


@pytest.mark.parametrize("given", ["split", "translations"])
def test_numbers_are_compared_as_their_text(given: str, tmp_path: Path) -> None:
    """With GPT-2's subwords, filters and text/ have the text of both sides; without their files, or with
    another dictionary, they can't.
    """
    prefix, pairs = "--", [(GERMAN, ENGLISH), (GERMAN, GERMAN), (ENGLISH, ENGLISH), (ENGLISH, GERMAN)]
    numbers = [str(at) for at in range(256)]
    data, other = (
        write_dictionaries(tmp_path / name, some, some)
        for name, some in (("data", numbers), ("other", [f"w{at}" for at in numbers]))
    )
    encoder, merges = tmp_path / "encoder.json", tmp_path / "vocab.bpe"
    encoder.write_text(json.dumps({byte: at for at, byte in enumerate(bytes_to_unicode().values())}))
    merges.write_text("#version: 0.2\n")
    if given == "translations":
        prefix = "--student-"
        (tmp_path / "all.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
        flags: tuple[Any, ...] = ("--translations", tmp_path / "all.tsv", "--gen-subset", "test")
    else:
        text = Text(TextSettings("gpt2", {"gpt2_encoder_json": encoder, "gpt2_vocab_bpe": merges}))
        dictionary = Dictionary.load(str(data / "dict.src.txt"))
        for side, lines in zip(("src", "tgt"), zip(*pairs, strict=True), strict=True):
            coded = [[dictionary.index(symbol) for symbol in text.encode(line).split()] for line in lines]
            for folder in (data, other):
                write_split(folder, "test", coded, side)
        task = TranslationWithTeacherTask(
            TranslationWithTeacherConfig(source_lang="src", target_lang="tgt"), dictionary, dictionary
        )
        cfg = training_config(data, "--task", "translation")
        torch.save(checkpoint_state(task.build_model(cfg.model), cfg), tmp_path / "teacher.pt")
        flags = ("--teacher-path", tmp_path / "teacher.pt", "--teacher-allow-poor", "--gen-subset", "test")
        flags = (*flags, "--mix-gold", 1, "--max-len-b", 1, "--max-len-a", 0)  # its own are cut
    files = (f"{prefix}gpt2-encoder-json", encoder, f"{prefix}gpt2-vocab-bpe", merges)
    bpe = (f"{prefix}bpe", "gpt2", *files)
    run(data, tmp_path / "out", *flags, *FILTERS, *bpe)
    assert [row[3:] for row in rows(tmp_path / "out", "test.tsv")] == [list(pairs[0])]
    dropped = [row for row in rows(tmp_path / "out", "test.dropped.tsv") if row[2] != "cut"]
    assert [(row[2], *row[3:5]) for row in dropped] == [
        (reason, *pair) for reason, pair in zip(("copy", "copy", "language"), pairs[1:], strict=True)
    ]
    with pytest.raises(UsageError, match=f"dict.tgt.txt are numbers; add {prefix}bpe gpt2 with its files"):
        run(data, tmp_path / "no", *flags, *FILTERS)
    with pytest.raises(UsageError, match=f"{prefix}bpe gpt2 makes text of numbers, but the symbols of dict"):
        run(other, tmp_path / "no", *flags, *bpe)


def test_translations_in_a_students_subwords(tmp_path: Path) -> None:
    """Each side has its own model."""
    source_model, data = subwords(tmp_path / "source", LINES, 30)
    target_model, other = subwords(tmp_path / "target", LINES, 22)
    (data / "dict.tgt.txt").write_bytes((other / "dict.tgt.txt").read_bytes())
    path = tmp_path / "all.tsv"
    path.write_text("".join(f"{line}\t{line[::-1]}\n" for line in LINES))
    flags = ("--student-bpe", "sentencepiece", "--student-sentencepiece-model", source_model)
    run(
        data,
        tmp_path / "out",
        "--translations",
        path,
        *flags,
        "--student-target-sentencepiece-model",
        target_model,
    )
    languages = Languages.of(tmp_path / "out" / "data-bin", "src", "tgt")
    for side, model, dictionary in (
        ("src", source_model, languages.source_dictionary),
        ("tgt", target_model, languages.target_dictionary),
    ):
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
        prefix = tmp_path / "out" / "data-bin" / f"train.src-tgt.{side}"
        dataset = data_utils.load_indexed_dataset(str(prefix), dictionary)
        texts = [line if side == "src" else line[::-1] for line in LINES]
        assert [dictionary.string(row) for row in dataset] == [
            " ".join(pieces.encode(text, out_type=str)) for text in texts
        ]
        assert not any(row.eq(dictionary.unk()).any() for row in dataset)
