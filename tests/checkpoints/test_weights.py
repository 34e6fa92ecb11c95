"""Every weight of a file is used by the model that runs: by teachers, students and fairseq's own readers."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.checkpoints.weights import UnusableWeights
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.errors import UsageError
from tests.helpers.fairseq_models import (
    build_student,
    checkpoint_state,
    make_batch,
    reversed_pairs,
    teacher_logits,
    tiny_task,
    training_config,
    write_dictionaries,
)
from tests.helpers.teacher_checkpoints import load, refusal, saved

SIZES = tuple(
    f"--{side}-{size}"
    for side in ("encoder", "decoder")
    for size in ("layers=2", "embed-dim=32", "ffn-embed-dim=32", "attention-heads=2")
)
KERNELS = ("--encoder-kernel-size-list", "[3,7]", "--decoder-kernel-size-list", "[3,7]")
PRE_NORM = ("--encoder-normalize-before", "--decoder-normalize-before")
RECURRENT = ("--encoder-embed-dim", "32", "--encoder-hidden-size", "16", "--decoder-hidden-size", "32")
LSTM = (*RECURRENT, "--decoder-embed-dim", "32", "--decoder-out-embed-dim", "16")
CONVOLUTIONAL = (
    "--encoder-embed-dim", "32", "--encoder-layers", "[(32, 3)] * 2", "--decoder-embed-dim", "32",
    "--decoder-layers", "[(32, 3)] * 2", "--decoder-out-embed-dim", "32",
)  # fmt: skip
FLAVOURS: dict[str, tuple[str, ...]] = {
    "transformer": ("--arch", "transformer", *SIZES),
    "pre-norm": ("--arch", "transformer", *SIZES, *PRE_NORM),
    "pre-norm-encoder": ("--arch", "transformer", *SIZES, PRE_NORM[0]),
    "pre-norm-decoder": ("--arch", "transformer", *SIZES, PRE_NORM[1]),
    "pre-norm-tied": ("--arch", "transformer", *SIZES, *PRE_NORM, "--share-all-embeddings"),
    "embedding-norm": ("--arch", "transformer", *SIZES, "--layernorm-embedding"),
    "learned-positions": ("--arch", "transformer", *SIZES, "--encoder-learned-pos", "--decoder-learned-pos"),
    "no-positions": ("--arch", "transformer", *SIZES, "--no-token-positional-embeddings"),
    "no-scale": ("--arch", "transformer", *SIZES, "--no-scale-embedding"),
    "tied-decoder": ("--arch", "transformer", *SIZES, "--share-decoder-input-output-embed"),
    "tied": ("--arch", "transformer", *SIZES, "--share-all-embeddings"),
    "layer-drop": ("--arch", "transformer", *SIZES, "--encoder-layerdrop", "0.2"),
    "swish": ("--arch", "transformer", *SIZES, "--activation-fn", "swish"),
    "align": ("--arch", "transformer_align", *SIZES),
    "bart": ("--arch", "bart_base", *SIZES),
    "mbart": ("--arch", "mbart_base", *SIZES, *PRE_NORM),
    "dynamic-convolution": ("--arch", "lightconv", *SIZES, *KERNELS, *PRE_NORM),
    "light-convolution": ("--arch", "lightconv", *SIZES, *KERNELS, "--encoder-conv-type", "lightweight"),
    "fconv": ("--arch", "fconv", *CONVOLUTIONAL),
    "lstm": ("--arch", "lstm", *LSTM),
    "lstm-bidirectional": ("--arch", "lstm", *LSTM, "--encoder-bidirectional"),
    "gru": ("--arch", "gru", *RECURRENT),
    "sru": ("--arch", "sru", *RECURRENT, "--layer-norm"),
}


QUICK = ("pre-norm-tied", "embedding-norm", "mbart", "dynamic-convolution", "fconv", "lstm", "sru")
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FLAVOURS]


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    return make_batch(reversed_pairs(5, seed=1))


def made(folder: Path, *flags: str) -> tuple[BaseFairseqModel, Any]:
    """Return a model whose weights are all random, norms and biases too, and its configuration."""
    arguments = [
        str(folder),
        "--source-lang",
        "src",
        "--target-lang",
        "tgt",
        "--cpu",
        "--task",
        "translation",
    ]
    cfg = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), [*arguments, *flags])
    )
    torch.manual_seed(3)
    model = tiny_task().build_model(cfg.model).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        parameter.data.nan_to_num_()  # a dynamic convolution leaves memory as it is
    return model, cfg


@pytest.mark.parametrize("name", CASES)
def test_saved_and_loaded_gives_the_same_logits(tmp_path: Path, sample: Any, name: str) -> None:
    """Bit for bit, by every reader. It is the same without the versions, which converters leave out."""
    model, cfg = made(write_dictionaries(tmp_path), *FLAVOURS[name])
    with torch.no_grad():
        expected = model(**sample["net_input"])[0]
    weights = model.state_dict()
    for lacks_versions in (False, True):
        kept = {key: value for key, value in weights.items() if not (lacks_versions and "version" in key)}
        path = saved(tmp_path, {**checkpoint_state(model, cfg), "model": kept})
        assert teacher_logits(load(path), sample).equal(expected)
        student = load_student(path, Languages.of(tmp_path, "src", "tgt")).model
        [stock], _ = checkpoint_utils.load_model_ensemble([path], task=tiny_task())
        for loaded in (student, stock.eval()):
            with torch.no_grad():
                assert loaded(**sample["net_input"])[0].equal(expected)


def test_a_file_of_2017_has_no_last_norm(tmp_path: Path, sample: Any) -> None:
    """Without versions and without the last norms, fairseq's own rule holds."""
    model, cfg = made(write_dictionaries(tmp_path), *FLAVOURS["pre-norm"])
    old = {
        key: value
        for key, value in model.state_dict().items()
        if not key.endswith("version") and not key.startswith(("encoder.layer_norm", "decoder.layer_norm"))
    }
    for side in (model.encoder, model.decoder):
        side.layer_norm = None
    with torch.no_grad():
        expected = model(**sample["net_input"])[0]
    path = saved(tmp_path, {**checkpoint_state(model, cfg), "model": old})
    assert teacher_logits(load(path), sample).equal(expected)


# The three choices of normalisation: of the encoder's layers, of the decoder's, and of embeddings.
NORMS = list(itertools.product((False, True), repeat=3))


def normalised(norms: tuple[bool, ...]) -> BaseFairseqModel:
    """Return a model with these norms, all of whose weights are random."""
    names = ("encoder_normalize_before", "decoder_normalize_before", "layernorm_embedding")
    model = build_student("transformer", **dict(zip(names, norms, strict=True))).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    "versions", ["absent", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kept", "old"))]
)
def test_flags_of_norms_agree_with_the_weights_or_the_file_is_refused(sample: Any, versions: str) -> None:
    """Whatever the weights and the flags: a model that loads computes what the weights were trained for."""
    models = {norms: normalised(norms) for norms in NORMS}
    loaded = 0
    for (true, model), flags in itertools.product(models.items(), NORMS):
        state = model.state_dict()
        for key in ("encoder.version", "decoder.version"):
            if versions == "absent":
                del state[key]
            elif versions == "old":
                state[key] = torch.ones(1)
        lacks_last_norm = any(now and not before for now, before in zip(flags[:2], true[:2], strict=True))
        if lacks_last_norm and versions != "kept":
            continue  # by its names, this is a file of 2017, which has no last norm
        other = normalised(flags)
        try:
            other.load_state_dict(state, strict=True)
        except (RuntimeError, UnusableWeights):
            assert flags != true or versions == "old"
            continue
        loaded += 1
        with torch.no_grad():
            assert other(**sample["net_input"])[0].equal(model(**sample["net_input"])[0])
    assert loaded >= (2 if versions == "old" else len(NORMS))


def _renamed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def apply(weights: dict[str, Tensor]) -> None:
        weights[name] = change(weights[name].clone())

    return apply


DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "old version": (
        _renamed("decoder.version", lambda value: torch.ones(1)),
        "its decoder.layer_norm.weight is not used by the model that its settings describe, whose "
        "decoder.version is [1.0],",
    ),
    "two values of one weight": (
        _renamed("decoder.output_projection.weight", lambda value: value + 1),
        "has two values",
    ),
    "integers": (
        _renamed("encoder.layers.0.fc1.weight", lambda value: value.long()),
        "its encoder.layers.0.fc1.weight holds torch.int64, but must hold floating-point numbers",
    ),
    "truth values": (_renamed("encoder.layers.0.fc1.bias", lambda value: value > 0), "holds torch.bool"),
    "complex numbers": (
        _renamed("decoder.layers.1.fc2.weight", lambda value: value.to(torch.complex64)),
        "holds torch.complex64",
    ),
    "not a number": (
        _renamed("decoder.layers.1.fc2.bias", lambda value: value * float("nan")),
        "its decoder.layers.1.fc2.bias holds numbers that are infinite or not a number",
    ),
    "infinite": (
        _renamed("encoder.layer_norm.weight", lambda value: value / 0),
        "its encoder.layer_norm.weight holds numbers that are infinite",
    ),
    "beyond float32": (
        _renamed("encoder.layers.0.fc1.weight", lambda value: value.double() * 1e300),
        "its encoder.layers.0.fc1.weight holds numbers that are infinite",
    ),
    "zeros": (lambda weights: [value.zero_() for value in weights.values()], "holds only zeros"),  # type: ignore[dict-item,return-value]
}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with dictionaries, and the checkpoint of a model that shares its embeddings."""
    folder = write_dictionaries(tmp_path_factory.mktemp("tied"))
    return folder, checkpoint_state(*made(folder, *FLAVOURS["pre-norm-tied"]))


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("damage", DAMAGE)
def test_weights_that_are_none_are_refused(tied: tuple[Path, dict[str, Any]], damage: str) -> None:
    """By a teacher, a student, and a command of fairseq that reads the file, in one line."""
    folder, state = tied
    state = copy.deepcopy(state)
    apply, said = DAMAGE[damage]
    apply(state["model"])
    path = saved(folder, state)
    assert said in refusal(path)
    with pytest.raises(
        UsageError, match=r"CHECKPOINT '.*' (can't be used: its |holds a model that is damaged)"
    ):
        load_student(path, Languages.of(folder, "src", "tgt"))
    with pytest.raises(UsageError, match=r"checkpoint '.*' can't be used: its "):
        checkpoint_utils.load_model_ensemble([path], task=tiny_task())


def test_a_load_that_is_not_strict_is_left_alone() -> None:
    model = tiny_task().build_model(training_config(Path(), "--task", "translation").model)
    assert model.load_state_dict({}, strict=False).missing_keys
