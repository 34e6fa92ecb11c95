"""The graphs of a recurrent student compute what its modules do, for all sizes of a batch."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines import onnx, onnx_convert
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.engines.onnx import OnnxEngine
from fairseq_imitkd.models.recurrent import SRUModel
from fairseq_imitkd.rollout import RolloutGenerator, RolloutPolicy
from tests.helpers.fairseq_models import (
    POSITIONS,
    STUDENTS,
    build_student,
    letters,
    make_batch,
    reversed_pairs,
    roll_out,
    trained_student,
    written,
)

LANGUAGES = Languages("src", "tgt", letters(), letters(), Path("unused"))
RECURRENT = ("gru", "sru", "sru-projected")


@pytest.fixture(scope="module", params=RECURRENT)
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """A student, its ONNX version, and the folder."""
    folder = tmp_path_factory.mktemp("onnx") / "model"
    student = trained_student(request.param)
    onnx_convert.convert(student, LANGUAGES, folder, quantization="float32")
    return student, onnx.load(folder, LANGUAGES, (POSITIONS, POSITIONS)), folder


def lprobs(model: Any, sample: dict[str, Any]) -> torch.Tensor:
    """Return the log-probabilities of all symbols at every real target position, ``(N, V)``."""
    with torch.no_grad():
        found = model.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
    return found[sample["target"].ne(letters().pad())]


@pytest.mark.parametrize("left_pad", [True, False])
@pytest.mark.parametrize(
    "pairs",
    [
        reversed_pairs(7, 1),
        reversed_pairs(1, 2),
        [([3], [2])],
        reversed_pairs(5, 3, longest=60),
        [([], [1, 2])],
    ],
)
def test_log_probabilities_are_the_students(both: Any, pairs: Any, left_pad: bool) -> None:
    """For batches of any size, short and long, with padding on either side."""
    student, exported, _ = both
    sample = make_batch(pairs, left_pad_source=left_pad)
    assert lprobs(exported, sample) == pytest.approx(lprobs(student, sample), abs=1e-5)


def test_translations_are_the_students(both: Any) -> None:
    """Greedy ones by the engine, which forgets finished sentences, and a beam, which puts rows in another
    order.
    """
    student, exported, _ = both
    sample = make_batch(reversed_pairs(20, 4))
    policy = RolloutPolicy("greedy", max_len_a=1.0, max_len_b=5)
    assert written(roll_out(exported, sample, policy, max_positions=POSITIONS)) == written(
        roll_out(student, sample, policy)
    )
    found = []
    for model in (student, exported):
        generator = RolloutGenerator([model], letters(), beam_size=4, max_len_b=12)
        hypotheses = generator.generate([model], sample)
        found.append(
            [
                [(each["tokens"].tolist(), round(float(each["score"]), 3)) for each in some]
                for some in hypotheses
            ]
        )
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "settings", [{}, {"max_len_b": 3}, {"min_len": 8}, {"max_len_a": 0.5, "max_len_b": 1}, {"min_len": 0}]
)
def test_own_greedy_decoding_is_the_engines(both: Any, settings: dict[str, Any]) -> None:
    """Tokens, scores and cuts are the fairseq engine's, also for a single sentence."""
    student, exported, _ = both
    decoding = SearchSettings(beam=1, **{"max_len_b": 12, **settings})
    sources = [torch.tensor([4 + letter for letter in source] + [2]) for source, _ in reversed_pairs(25, 5)]
    sources.sort(key=len, reverse=True)
    for some in (sources, sources[:1], sources[-1:]):
        own = OnnxEngine.of_model(exported, LANGUAGES, decoding).translate(range(len(some)), some, 1)
        theirs = FairseqEngine.of_model(student, LANGUAGES, decoding).translate(range(len(some)), some, 1)
        for [mine], [other] in zip(own, theirs, strict=True):
            assert mine.tokens.tolist() == other.tokens.tolist()
            assert (mine.cut, mine.score) == (other.cut, pytest.approx(other.score, abs=1e-5))
    if settings.get("max_len_b") == 3:
        assert (
            len(
                {
                    found[0].cut
                    for found in OnnxEngine.of_model(exported, LANGUAGES, decoding).translate(
                        range(25), sources, 1
                    )
                }
            )
            == 2
        )


def test_quantised_students_are_near_and_smaller(both: Any, tmp_path: Path, caplog: Any, capfd: Any) -> None:
    """Every matrix is in int8, also those in the loop over time.

    Neither torch's exporter nor onnxruntime's quantisation prints or logs anything. Logging works again
    afterwards.
    """
    import onnx as package

    student = both[0]
    onnx_convert.convert(student, LANGUAGES, tmp_path / "model", quantization="int8")
    said = [
        record for record in caplog.records if record.levelno > logging.DEBUG
    ]  # torch's traces mind no level
    assert (said, *capfd.readouterr()) == ([], "", "")
    logging.getLogger("tests").warning("said")
    assert "said" in caplog.text
    quantised = onnx.load(tmp_path / "model", LANGUAGES, (POSITIONS, POSITIONS))
    sample = make_batch(reversed_pairs(20, 4))
    difference = (lprobs(quantised, sample) - lprobs(student, sample)).abs()
    assert 1e-3 < float(difference.max()) < 1.0
    assert float(difference.mean()) < 0.1
    for graph in ("encoder", "decoder"):
        model = package.load(tmp_path / "model" / f"{graph}.onnx")
        for tensor in [
            *model.graph.initializer,
            *(i for n in model.graph.node for a in n.attribute for i in a.g.initializer),
        ]:
            is_matrix = len(tensor.dims) == 2 and min(tensor.dims) > 1
            assert not is_matrix or tensor.data_type in (
                package.TensorProto.INT8,
                package.TensorProto.UINT8,
            ), tensor.name


def test_files_tell_nothing_of_the_machine(both: Any) -> None:
    """torch records the file and line of each node."""
    for path in both[2].iterdir():
        assert b".py" not in path.read_bytes()


@pytest.mark.parametrize("name", STUDENTS)
def test_which_students_can_be_converted(name: str) -> None:
    """The package's own recurrent students."""
    assert (onnx_convert.unsupported_reason(trained_student(name)) is None) == (name in RECURRENT)


def test_changed_models_are_noticed() -> None:
    """A subclass may compute anything, and hooks would be lost."""

    class OwnModel(SRUModel):
        pass

    student = build_student("sru").eval()
    student.__class__ = OwnModel
    assert onnx_convert.unsupported_reason(student) == "it is a OwnModel, not an SRU or GRU of this package"
    student = build_student("sru").eval()
    student.encoder.reader.layers[0].transform.register_forward_hook(lambda *_: None)
    assert onnx_convert.unsupported_reason(student) == "its modules have hooks"


def test_padding_is_never_written(both: Any) -> None:
    """Even if the model finds it most probable."""
    _, exported, _ = both
    pad, eos = letters().pad(), letters().eos()

    class Padding:
        def __init__(self, session: Any):
            self.session = session

        def run(self, *args: Any) -> Any:
            logits, state = self.session.run(*args)
            logits[:, pad] = logits.max(axis=-1) + 1.0
            return logits, state

    session = exported.decoder.session
    exported.decoder.session = Padding(session)
    try:
        found = onnx.greedy(exported, [torch.tensor([4, 5, 6, eos])], max_lengths=[10], min_length=1)
    finally:
        exported.decoder.session = session
    plain = onnx.greedy(exported, [torch.tensor([4, 5, 6, eos])], max_lengths=[10], min_length=1)
    assert found[0].tokens.tolist() == plain[0].tokens.tolist()
    assert found[0].score < plain[0].score  # the padding has its share of the probability
