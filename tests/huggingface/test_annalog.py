"""A model that others have made: annalog's transformer over SMILES strings becomes a teacher.

``pip install --no-deps annalog==1.0.6`` (MIT). Its layers are Marian's, with learned positions and a bias.
"""

import importlib.metadata
import importlib.util
import pickle
import random
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.export.checks import translations
from fairseq_imitkd.huggingface.importer import CHECKPOINT, ImportJob, import_model
from tests.helpers import in_process
from tests.helpers.huggingface_models import write_json
from tests.huggingface.conftest import write_split

pytestmark = pytest.mark.slow
NAMES = {
    "tok_embedding": "embed_tokens",
    "pos_embedding": "embed_positions",
    "self_attention.fc_": "self_attn.",
    "encoder_attention.fc_": "encoder_attn.",
    "enc_attn_layer_norm": "encoder_attn_layer_norm",
    "ff_layer_norm": "final_layer_norm",
    "positionwise_feedforward.fc_1": "fc1",
    "positionwise_feedforward.fc_2": "fc2",
}
PIECES = (
    "C",
    "CC",
    "N",
    "O",
    "c1ccccc1",
    "C(=O)",
    "C(C)",
    "C(F)",
    "S",
    "c1ccncc1",
    "CO",
    "N(C)",
    "Cl",
    "C#N",
)


class Plain(pickle.Unpickler):
    """Reads lists and dictionaries alone."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")


@pytest.fixture(scope="module")
def package() -> Path:
    """The folder of the installed package; its code needs RDKit, which the model does not."""
    try:
        return Path(importlib.metadata.distribution("annalog").locate_file("annalog"))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps annalog==1.0.6")


@pytest.fixture(scope="module")
def symbols(package: Path) -> list[str]:
    """The model's symbols by id."""
    with open(package / "ckpt_and_vocab" / "stereo_experiment_vocab_ttf.pkl", "rb") as file:
        return list(Plain(file).load()["itos"])


@pytest.fixture(scope="module")
def weights(package: Path) -> dict[str, torch.Tensor]:
    """The model's weights."""
    return dict(
        torch.load(package / "ckpt_and_vocab" / "Lev_extended.pt", map_location="cpu", weights_only=True)
    )


@pytest.fixture(scope="module")
def original(package: Path, weights: dict[str, torch.Tensor]) -> Any:
    """The model as its package computes it."""
    for name, path in (("annalog_model", None), ("annalog_model.vocabulary", "vocabulary.py"),
                       ("annalog_model.seq2seq_attention", "seq2seq_attention.py")):  # fmt: skip
        if path is None:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [str(package / "model_files")]
            continue
        spec = importlib.util.spec_from_file_location(name, package / "model_files" / path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    code = sys.modules["annalog_model.seq2seq_attention"]
    sides = [part(59, 256, 3, 8, 512, 0.1, torch.device("cpu"), 102) for part in (code.Encoder, code.Decoder)]
    model = code.Seq2Seq(*sides, 1, 1, torch.device("cpu"))
    model.load_state_dict(weights)
    return model.eval()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, weights: Any, symbols: list[str]) -> Path:
    """The imported model, by the mapping of Marian's."""
    folder = tmp_path_factory.mktemp("annalog")
    sizes = {f"{part}_{name}": number for part in ("encoder", "decoder")
             for name, number in (("layers", 3), ("attention_heads", 8), ("ffn_dim", 512))}  # fmt: skip
    config = {
        "model_type": "marian", "d_model": 256, "vocab_size": 59, "decoder_vocab_size": 59, **sizes,
        "max_position_embeddings": 102, "activation_function": "relu", "scale_embedding": True,
        "tie_word_embeddings": False, "share_encoder_decoder_embeddings": False, "is_encoder_decoder": True,
        "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2,
    }  # fmt: skip
    renamed = {}
    for key, value in weights.items():
        for old, new in NAMES.items():
            key = key.replace(old, new)
        renamed[f"model.{re.sub('attn[.]([qkvo])[.]', _projection, key)}"] = value
    renamed["lm_head.weight"] = renamed.pop("model.decoder.fc_out.weight")
    renamed["final_logits_bias"] = renamed.pop("model.decoder.fc_out.bias").unsqueeze(0)
    (folder / "model").mkdir()
    write_json(folder / "model", "config.json", config)
    save_file(renamed, folder / "model" / "model.safetensors")
    made = import_model(ImportJob(folder / "model", folder / "teacher", "from", "to"))
    assert made.verdict is not None
    assert made.parameters > 4_000_000
    return folder / "teacher"


def _projection(found: re.Match[str]) -> str:
    return f"attn.{'out' if found[1] == 'o' else found[1]}_proj."


def molecules(count: int, seed: int) -> list[str]:
    """Return SMILES strings."""
    generator = random.Random(seed)
    return ["C" + "".join(generator.choices(PIECES, k=generator.randint(2, 5))) for _ in range(count)]


def encoded(line: str, symbols: list[str]) -> str:
    """Return a molecule in the symbols of the import, which names them by their ids."""
    found = re.findall(r"\[[^\]]*\]|%\d\d|Br|Cl|.", line)
    return " ".join(["<s>", *(f"id:{symbols.index(symbol)}" for symbol in found)])


def test_logits_are_those_of_the_package(teacher: Path, original: Any, symbols: list[str]) -> None:
    """Of a padded batch, for each symbol that both have."""
    languages = Languages.of(teacher, "from", "to")
    model = load_student(str(teacher / CHECKPOINT), languages).model
    ids = {"<s>": 2, "<pad>": 1, "</s>": 3}
    theirs = [ids.get(name, int(name[3:]) if name.startswith("id:") else -1)
              for name in languages.source_dictionary.symbols]  # fmt: skip
    lines = [languages.source_dictionary.encode_line(encoded(line, symbols), add_if_not_exist=False).long()
             for line in molecules(12, 1)]  # fmt: skip
    padded = torch.nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=1)
    previous = torch.cat([padded.new_full((12, 1), 2), padded[:, 1:-1]], dim=1)
    numbers = torch.tensor(theirs)
    begun = numbers[previous]
    begun[:, 0] = 2
    with torch.no_grad():
        own = model(padded, padded.ne(1).sum(1), previous)[0]
        expected = original(numbers[padded], begun)[0]
    there = numbers.ge(0)
    compared = previous.gt(3)  # what follows the end of a sentence is not compared
    compared[:, 0] = True
    difference = (own[..., there] - expected[..., numbers[there]])[compared].abs().max()
    assert float(difference) < 1e-4
    assert float(expected.abs().max()) > 5


def test_a_student_learns_from_it(teacher: Path, symbols: list[str], tmp_path: Path) -> None:
    """Rollouts and all: the teacher's translations become more probable."""
    languages = Languages.of(teacher, "from", "to")
    model = load_student(str(teacher / CHECKPOINT), languages).model
    engine = FairseqEngine.of_model(model, languages, SearchSettings(beam=1, max_len_a=0.0, max_len_b=40))
    dictionary = languages.source_dictionary
    sources = [encoded(line, symbols) for line in molecules(150, 2)]
    ids = [dictionary.encode_line(line, add_if_not_exist=False).long() for line in sources]
    targets = [languages.target_dictionary.string(found) for found in translations(engine, ids)]
    assert len(set(targets)) > 100
    pair = "from", "to"
    for split in ("train", "valid"):
        dictionaries = [dictionary, languages.target_dictionary]
        write_split(tmp_path / "data", pair, dictionaries, [sources, targets], split)
    trained = in_process.train(
        tmp_path / "data", tmp_path / "student", "--task", "translation_with_teacher", "--criterion",
        "imitkd_full", "--max-update", 60, "--teacher-path", teacher / CHECKPOINT, "--seed", 1,
        "--max-tokens", 1000, "--teacher-allow-poor", "--validate-interval-updates", 20, "--lr", "1e-3",
    )  # fmt: skip
    losses = [float(found["loss"]) for found in trained.metrics["valid"]]
    assert losses[-1] < 0.7 * losses[0]
