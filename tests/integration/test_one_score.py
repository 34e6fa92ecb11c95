"""One model has one score on one test set with every command's defaults: in validation, imitkd-generate,
imitkd-evaluate, imitkd-seqkd and rewards, and as an exported folder. The references have unknown words, one
is longer than the models can represent, and some translations are cut at the length limit.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import sacrebleu
import torch
from torch import Tensor

from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.cli import evaluate, seqkd
from fairseq_imitkd.cli import export as export_command
from fairseq_imitkd.data.corpus import Languages, read_split
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.export.bundle import Bundle
from fairseq_imitkd.text.rewards import Rewarder, RunningMean
from fairseq_imitkd.text.scores import CorpusScores
from tests.helpers import in_process
from tests.helpers.digit_corpus import run
from tests.helpers.exports import make_students
from tests.helpers.fairseq_models import LETTERS, RECURRENT, write_dictionaries
from tests.helpers.seqkd_jobs import EOS, write_split

BOS, PAD, UNK, LETTER = 0, 1, 3, 17
LONG = 5  # the sentence whose reference no model can represent
MARK = "@@ "
METRICS = {"bleu": 2, "chrf": 2, "ter": 2, "rouge1": 4, "rougeL": 4}  # decimals in validation's log
GRU = [word for name, value in RECURRENT.items() for word in ("--" + name.replace("_", "-"), value)]


@dataclass(frozen=True)
class Case:
    """A folder of students and data, and the subword mark of the target language."""

    root: Path
    mark: str | None

    @property
    def languages(self) -> Languages:
        return Languages.of(self.root / "data", "src", "tgt")

    def line(self, tokens: Tensor, unknown: str) -> str:
        """Return the text by a definition that shares nothing with the package."""
        symbols = self.languages.target_dictionary.symbols
        words = [unknown if n == UNK else symbols[n] for n in tokens.tolist() if n not in (BOS, PAD, EOS)]
        text = " ".join(words)
        return text if self.mark is None else f"{text} ".replace(self.mark, "").rstrip()

    def exported(self, name: str) -> list[str]:
        """Return what the exported student itself writes for all sources."""
        bundle = Bundle.read(self.root / name)
        corpus = read_split(self.languages, "test").sources
        sources = [corpus[number].long() for number in range(len(corpus))]
        found = bundle.translate([source if source.numel() > 1 else sources[0] for source in sources])
        return [
            self.line(tokens, "ZJZJZ") if source.numel() > 1 else ""
            for source, tokens in zip(sources, found, strict=True)
        ]

    def references(self) -> list[Tensor]:
        found = read_split(self.languages, "test").references
        return [found[number].long() for number in range(len(found))]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two students that write unknown words, both exported, and references with unknown words. Some
    references hold words that are written like padding and like a sentence's beginning. One source is empty.
    """
    root = make_students(tmp_path_factory.mktemp("students"))
    target = [f"{letter}@@" if number % 2 else letter for number, letter in enumerate(LETTERS)]
    write_dictionaries(root / "data", target=target)
    rows = [row[:-1].tolist() for row in Case(root, None).references()]
    for number, row in enumerate(rows):
        if number % 3 == 0:
            row.insert(number % (len(row) + 1), UNK)
        rows[number] = [UNK if token == LETTER else token for token in row]
    rows[1][1:1], rows[2][1:1] = [PAD], [BOS]
    rows[LONG] = [LETTER - 1] * 70
    write_split(root / "data", "test", rows, "tgt")
    for name in ("transformer", "gru"):
        state = torch.load(root / f"{name}.pt", weights_only=True)
        decoder = {  # a tensor that has two names is here once
            weight.data_ptr(): weight for key, weight in state["model"].items() if key.startswith("decoder.")
        }
        for weight in decoder.values():
            if weight.size(0) == 4 + len(LETTERS):
                weight[[UNK, LETTER]] = weight[[LETTER, UNK]]  # it writes <unk> instead of this letter
                weight[EOS] *= 0.8 if name == "transformer" else 0.2  # some sentences find no end
        torch.save(state, root / f"{name}.pt")
        export_command.main([
            str(root / f"{name}.pt"), "--data", str(root / "data"), "--out", str(root / f"{name}-exported"),
            "--quantization", "float32",
        ])  # fmt: skip
    return root


@pytest.fixture(params=[pytest.param(None, marks=pytest.mark.slow), MARK], ids=["words", "subwords"])
def case(request, root: Path) -> Case:
    return Case(root, request.param)


def evaluated(case: Case, out: Path) -> dict:
    models = [
        f"--model={name}={case.root / path}"
        for name, path in (
            ("transformer", "transformer.pt"), ("ctranslate2", "transformer-exported"), ("gru", "gru.pt"),
            ("onnx", "gru-exported"),
        )
    ]  # fmt: skip
    marks = ["--remove-bpe", "none"] if case.mark is None else []  # by default they are recognised
    given = ["--data", case.root / "data", "--out", out, "--beam", 1, "--threads", 1]
    evaluate.main([*models, *map(str, given), "--metrics", "rouge", "--batch-sizes", "8", *marks])
    return json.loads((out / "evaluation.json").read_text())


def validated(case: Case, name: str, out: Path) -> dict[str, float]:
    """Return the scores of a training that changes nothing, by validation."""
    size = ["--encoder-ffn-embed-dim", 32, "--decoder-ffn-embed-dim", 32]
    size = ["--arch", "gru", *GRU] if name == "gru" else size
    marks = ["--eval-bleu-remove-bpe", "none"] if case.mark is None else []
    in_process.train(
        case.root / "data", out, "--task", "translation_with_teacher", "--criterion", "cross_entropy",
        "--source-lang", "src", "--target-lang", "tgt", *size, "--train-subset", "valid", "--valid-subset",
        "test", "--finetune-from-model", case.root / f"{name}.pt", "--lr", 0, "--lr-scheduler", "fixed",
        "--warmup-updates", 0, "--max-update", 1, "--no-save",
        "--max-source-positions", 64, "--max-target-positions", 64, "--eval-metrics",
        "bleu,chrf,ter,rouge-1,rouge-l", "--eval-bleu-args", '{"beam": 1}', *marks,
    )  # fmt: skip
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return next(line for line in lines if line["tag"] == "test")


def generated(case: Case, name: str) -> tuple[float, list[str]]:
    """Return the BLEU that imitkd-generate prints, and its translations in the data's order."""
    marks = ["--remove-bpe", "none"] if case.mark is None else []
    done = run(
        "imitkd-generate", case.root / "data", "--path", case.root / f"{name}.pt", "--beam", 1, "--cpu",
        "--batch-size", 7, *marks,
    )  # fmt: skip
    [result] = [line for line in done.stdout.splitlines() if line.startswith("Generate test")]
    return float(result.split("BLEU = ")[1].split()[0]), in_process.hypotheses(done.stdout)


def translated_for_training(case: Case, out: Path) -> dict[int, str]:
    """Return the translations that imitkd-seqkd keeps, by the number of their source."""
    marks = ["--remove-bpe", "none"] if case.mark is None else []
    seqkd.main([
        str(case.root / "data"), "--teacher-path", str(case.root / "transformer.pt"), "--gen-subset", "test",
        "--beam", "1", "--cpu", "--batch-size", "7", "--out", str(out), *marks,
    ])  # fmt: skip
    rows = [line.split("\t") for line in (out / "text/test.tsv").read_text().splitlines()]
    return {int(row[0]): row[4] for row in rows if int(row[0]) != LONG}  # here no reference is needed


def test_five_ways_agree(case: Case, tmp_path: Path, capsys) -> None:
    """To validation's last digit, for checkpoints and exported students. Both are sacreBLEU's score of lines
    in which no unknown word matches. The written files are these lines.
    """
    found = evaluated(case, tmp_path / "evaluation")
    kept = [row for number, row in enumerate(case.references()) if number != LONG]
    references = [case.line(row, "QXQXQ") for row in kept]
    assert (tmp_path / "evaluation/references.txt").read_text().splitlines() == references
    unknown = sum(int(row.eq(UNK).sum()) for row in kept)
    assert found["data"]["unknown_words"] == unknown > 30
    note = f"the references have {unknown} unknown words, which match no translation"
    assert note in capsys.readouterr().out
    for name, exported in (("transformer", "ctranslate2"), ("gru", "onnx")):
        validation = validated(case, name, tmp_path / name)
        for model in (name, exported):
            scores = found["models"][model]["decoding"]["greedy"]
            own = {metric: round(scores[metric]["score"], digits) for metric, digits in METRICS.items()}
            assert own == {metric: validation[metric] for metric in METRICS}
            assert own["bleu"] > 1
            lines = (tmp_path / f"evaluation/{model}.greedy.txt").read_text().splitlines()
            assert sum(line.count("ZJZJZ") for line in lines) >= 8
            other = [line.replace("ZJZJZ", "UNKNOWNTOKENINHYP") for line in lines]
            assert own["bleu"] == round(sacrebleu.corpus_bleu(other, [references]).score, 2)
        assert scores["truncated"], "otherwise no length limit is compared"
        score, texts = generated(case, name)
        assert score == own["bleu"]
        assert texts == [line.replace("ZJZJZ", "<unk>") for line in lines]
        every = case.exported(f"{name}-exported")
        assert [line for number, line in enumerate(every) if number != LONG] == lines
        if name == "transformer":
            made = translated_for_training(case, tmp_path / "seqkd")
            assert len(made) > 20
            numbers = [number for number in range(len(every)) if number != LONG]
            own_lines = dict(zip(numbers, texts, strict=True))
            assert made == {number: own_lines[number] for number in made}
    assert found["signatures"]["bleu"].startswith("nrefs:1|")


def test_rewards_and_selection_agree(case: Case, tmp_path: Path) -> None:
    """A reward, and the score by which imitkd-seqkd selects, are the score of a corpus of that sentence."""
    student = load_student(str(case.root / "transformer.pt"), case.languages).model
    search = SearchSettings(beam=4, max_len_a=1.2, max_len_b=10)
    engine = FairseqEngine.of_model(student, case.languages, search)
    sources, references = read_split(case.languages, "test").sources, case.references()
    chrf = CorpusScores(["chrf"])
    marks = ["--remove-bpe", "none"] if case.mark is None else []  # by default they are recognised
    seqkd.main([
        str(case.root / "data"), "--teacher-path", str(case.root / "transformer.pt"), "--gen-subset", "test",
        "--select", "best", "--metric", "chrf", "--nbest", "4", "--beam", "4", "--cpu",
        "--batch-size", "7", "--out", str(tmp_path / "seqkd"), *marks,
    ])  # fmt: skip
    table = [line.split("\t") for line in (tmp_path / "seqkd/text/test.tsv").read_text().splitlines()]
    rewarders = {
        name: Rewarder(name, case.languages.target_dictionary, remove_bpe=case.mark, baseline=RunningMean())
        for name in ("chrf", "sentence-bleu")
    }
    kept, places = {int(row[0]): row[4] for row in table}, set()
    for number in kept:
        reference = references[number]
        every = engine.translate([number], [sources[number].long()], 4)[0]
        lines = [case.line(each.tokens, "ZJZJZ") for each in every]
        pairs = [(line, case.line(reference, "QXQXQ")) for line in lines]
        scores = [sacrebleu.sentence_chrf(line, [text]).score for line, text in pairs]
        sums = [chrf.statistics([line], [text])["chrf"] for line, text in pairs]
        assert [chrf.score("chrf", each) for each in sums] == [round(score, 2) for score in scores]
        bleus = [sacrebleu.sentence_bleu(line, [text]).score for line, text in pairs]
        for each, *expected in zip(every, scores, bleus, strict=True):
            batch = reference[None], each.tokens[None], torch.tensor([True])
            rewards = [rewarder.advantages(*batch)[1]["reward"] for rewarder in rewarders.values()]
            assert rewards == [score / 100.0 for score in expected]
        best = scores.index(max(scores))
        assert kept[number] == case.line(every[best].tokens, "<unk>")
        places.add(best)
    assert len(places) > 1, "otherwise the first would do"
