"""Folders that can't be imported: one line that says what the folder is, and what can be done with it."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fairseq_imitkd.checkpoints.safe_load import read_checkpoint
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.huggingface import check
from fairseq_imitkd.huggingface.folder import ModelFolder
from fairseq_imitkd.huggingface.importer import CHECKPOINT, ImportJob, import_model
from fairseq_imitkd.huggingface.weights import read_weights
from tests.helpers.huggingface_models import SIZES, built, m2m_files, marian_files, save, write_json

LONGEST = 200


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can be imported."""
    files = marian_files()
    size = len(files["vocab.json"])
    last = {"vocab_size": size, "pad_token_id": size - 1, "decoder_start_token_id": size - 1}
    return save(built("marian", **last, eos_token_id=0), tmp_path_factory.mktemp("good") / "m", files)


@pytest.fixture
def folder(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the current folder, named ``m``."""
    (tmp_path / "m").mkdir()
    for path in good.iterdir():
        (tmp_path / "m" / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return Path("m")


def refusal(folder: Path, *pair: str) -> str:
    """Return the line of a refused import, which leaves nothing behind."""
    with pytest.raises(UsageError) as refused:
        import_model(ImportJob(folder, Path("out"), *(pair or ("de", "en")), skip_check=True))
    message = str(refused.value)
    assert len(message) <= LONGEST
    assert "\n" not in message
    assert not Path("out").exists()
    assert [path.name for path in Path(".").iterdir() if "partial" in path.name] == []
    return message


def configured(**changes: Any) -> Callable[[Path], None]:
    """Return a change of ``config.json``; None removes a setting."""

    def change(folder: Path) -> None:
        content = {**json.loads((folder / "config.json").read_text()), **changes}
        write_json(folder, "config.json", {key: value for key, value in content.items() if value is not None})

    return change


def quantised(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    key = "model.encoder.layers.0.fc1.weight"
    save_file({**weights, key: weights[key].to(torch.int8)}, folder / "model.safetensors")


def sharded(folder: Path, parts: int = 3, lost: int = 1) -> None:
    """Split the weights, and leave a part out."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{number:05}-of-{parts:05}.safetensors" for number in range(1, parts + 1)]
    index = {key: names[number % parts] for number, key in enumerate(sorted(weights))}
    for number, name in enumerate(names):
        if number != lost:
            save_file({key: weights[key] for key in index if index[key] == name}, folder / name)
    write_json(folder, "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


class Code:
    """An object whose pickle runs code."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.shared.weight": Code()}, folder / "pytorch_model.bin")


def old_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Code()))


def removed(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def written(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def other_tokenizer(folder: Path) -> None:
    for name, content in marian_files(kind="bpe", size=500).items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            write_json(folder, name, content)


def smaller_tokenizer(folder: Path) -> None:
    symbols = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    write_json(folder, "vocab.json", {key: number for key, number in symbols.items() if number < 40})


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "T5": (
        configured(model_type="t5"),
        "is a model of type 't5': it has relative positions, which fairseq's ",
    ),
    "decoder": (
        configured(model_type="llama", is_encoder_decoder=False),
        "'llama', which is not an encoder-decoder model; train on its translations instead: docs/",
    ),
    "unknown": (configured(model_type="other"), "'other', which is not one of marian, m2m_100, mbart, bart"),
    "experts": (configured(model_type="nllb-moe"), "'nllb-moe': it has a mixture of experts; train on its "),
    "attention": (configured(model_type="led"), "'led': it has another kind of attention; train on its "),
    "speech": (
        configured(model_type="whisper"),
        "'whisper': it reads speech; train on its translations instead",
    ),
    "classifier": (
        configured(architectures=["BartForSequenceClassification"]),
        "is a BartForSequenceClassification, not a model that translates",
    ),
    "int8 by its settings": (
        configured(quantization_config={"load_in_8bit": True}),
        "is quantised, which can't",
    ),
    "int8 by its weights": (quantised, "holds model.encoder.layers.0.fc1.weight in int8, so it is quantised"),
    "part missing": (sharded, "lacks the part model-00002-of-00003.safetensors of 3; download it again"),
    "no config": (removed("config.json"), "MODEL_DIR 'm' has no config.json; use the folder of a model that"),
    "no type": (configured(model_type=None), "has a config.json without a model_type"),
    "no width": (
        configured(d_model=None),
        "needs a number in 1..100000 as d_model in config.json, but it is None",
    ),
    "huge width": (configured(d_model=10**12), "needs a number in 1..100000 as d_model in config.json"),
    "many layers": (configured(encoder_layers=10**5), "needs a number in 1..1000 as encoder_layers in"),
    "many positions": (
        configured(max_position_embeddings=10**7),
        "needs a number in 1..100000 as max_position_embeddings in",
    ),
    "heads": (
        configured(encoder_attention_heads=5),
        "has d_model 32, which must be even and a multiple of 5 heads",
    ),
    "other sizes": (
        configured(encoder_ffn_dim=47),
        "of shape (48, 32), but its config.json asks for (47, 32)",
    ),
    "layers": (configured(encoder_layers=3), "lacks the weight encoder.layers.2.self_attn.q_proj.weight"),
    "fewer layers": (
        configured(encoder_layers=1),
        "holds the weight encoder.layers.1.fc1.bias, which fairseq's",
    ),
    "activation": (configured(activation_function="mish"), "has the activation 'mish', which fairseq lacks"),
    "eos": (configured(eos_token_id=10**6), "has eos_token_id 1000000, which must be below the "),
    "no eos": (configured(eos_token_id=None), "must have eos_token_id and pad_token_id in its config.json"),
    "no weights": (removed("model.safetensors"), "has no weights: it must hold model.safetensors or pytorch"),
    "damaged": (written("model.safetensors", b"\0" * 100), "model.safetensors' is damaged or not a file of"),
    "pointer": (
        written("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "'m/model.safetensors' is only a pointer of git-lfs; run 'git lfs pull' in its folder",
    ),
    "code": (with_code, "'m/pytorch_model.bin' holds posix.system, which torch's safe loader never allows"),
    "pickle": (old_pickle, "'m/pytorch_model.bin' "),
    "other tokenizer": (
        other_tokenizer,
        "MODEL_DIR 'm' has the tokenizer of another model: it has the symbol",
    ),
    "smaller tokenizer": (smaller_tokenizer, "MODEL_DIR 'm' has the tokenizer of another model: it has 40 "),
    "damaged vocabulary": (
        written("vocab.json", b"[1"),
        "'m/vocab.json' must hold a JSON object; copy it again",
    ),
    "other vocabulary": (
        written("vocab.json", b'{"a": "b"}'),
        "'m/vocab.json' must hold a number for each symbol",
    ),
    "subwords": (
        written("source.spm", b"no model"),
        "subwords 'm/source.spm' is not a model of SentencePiece",
    ),
    "deep JSON": (written("config.json", b"[" * 10**5), "'m/config.json' must hold a JSON object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_folders_are_refused(folder: Path, name: str) -> None:
    """In one line, and no code of the folder has run."""
    change, said = WRONG[name]
    change(folder)
    assert said in refusal(folder)
    assert not Path("executed").exists()


def test_what_is_no_folder(folder: Path) -> None:
    assert (
        refusal(Path("nowhere"))
        == "MODEL_DIR 'nowhere' is not a folder; use the folder with the model's config.json"
    )
    assert refusal(Path("Helsinki-NLP/opus-mt-de-en")) == (
        "MODEL_DIR 'Helsinki-NLP/opus-mt-de-en' is not a folder; if it is a model of the hub: hf download "
        "Helsinki-NLP/opus-mt-de-en --local-dir opus-mt-de-en, and use that folder"
    )
    assert "'m/config.json' is not a folder" in refusal(folder / "config.json")


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (("de", "de"), "--source-lang and --target-lang must be two names, but both are 'de'"),
        (("../x", "en"), "--source-lang '../x' must be a short word without '/' and '.'"),
    ],
)
def test_wrong_languages(folder: Path, pair: tuple[str, str], said: str) -> None:
    assert refusal(folder, *pair) == said


def test_languages_with_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that needs tags names some, if a language is missing or unknown."""
    monkeypatch.chdir(tmp_path)
    files = m2m_files()
    model = save(built("m2m_100", vocab_size=len(files["vocab.json"]) + 108), Path("m"), files)
    with pytest.raises(
        UsageError, match=r"^--target-lang is not given, and M2M-100 or NLLB needs it; name one of its"
    ):
        import_model(ImportJob(model, Path("out"), "de"))
    assert refusal(model, "de", "xx") == (
        "--target-lang 'xx' has no tag in this model; use one of its languages, such as __af__, __am__, "
        "__ar__"
    )


def test_all_ways_to_store_weights_give_the_same(folder: Path) -> None:
    """One file or several, safetensors or torch's format, float32 or float16."""
    expected = read_weights(ModelFolder(folder))
    write_json(folder, "pytorch_model.bin.index.json", {"weight_map": {"of.another.model": "a.bin"}})
    assert_same(read_weights(ModelFolder(folder)), expected)  # an old index beside the weights
    (folder / "pytorch_model.bin.index.json").unlink()
    sharded(folder, lost=-1)
    assert_same(read_weights(ModelFolder(folder)), expected)
    for path in folder.glob("model*"):
        path.unlink()
    torch.save(expected, folder / "pytorch_model.bin")
    assert_same(read_weights(ModelFolder(folder)), expected)
    (folder / "pytorch_model.bin").unlink()
    halves = {key: value.half() for key, value in expected.items()}
    save_file(halves, folder / "model.safetensors")
    assert_same(read_weights(ModelFolder(folder)), {key: value.float() for key, value in halves.items()})


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare weights by name."""
    assert found.keys() == expected.keys()
    assert all(found[key].equal(value) for key, value in expected.items())


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "x.txt"])
def test_parts_lie_in_the_folder(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    write_json(folder, "model.safetensors.index.json", {"weight_map": {"a": name}})
    assert f"names {name!r}, which is not a part of a model" in refusal(folder)


def test_folder_without_tokenizer_files(folder: Path) -> None:
    """Is imported all the same; number N is called id:N, and text can't be encoded."""
    for name in ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"):
        (folder / name).unlink()
    made = import_model(ImportJob(folder, Path("out"), skip_check=True))
    assert made.subwords is None
    assert made.notes == ("not compared with transformers (--skip-check)",)
    lines = Path("out/dict.source.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].split()[0] == "id:2"


def test_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is imported, and the command says that it was not compared."""
    monkeypatch.setattr(check, "is_possible", lambda: False)
    made = import_model(ImportJob(folder, Path("out"), "de", "en"))
    assert made.verdict is None
    assert made.notes == ("not compared with transformers: pip install 'fairseq-imitkd[huggingface]'",)


def test_another_computation_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If fairseq's logits differ, nothing is written."""
    load = check.load_original

    def changed(folder: ModelFolder) -> Any:
        model = load(folder)
        model.final_logits_bias.add_(torch.linspace(0, 0.01, model.final_logits_bias.numel()))
        return model

    monkeypatch.setattr(check, "load_original", changed)
    with pytest.raises(
        UsageError, match=r"was not imported: its logits differ from those of transformers by 0\.01"
    ):
        import_model(ImportJob(folder, Path("out"), "de", "en"))
    assert not Path("out").exists()


def test_symbols_that_no_dictionary_can_hold(folder: Path) -> None:
    """Are renamed, in the dictionary and in encoded text."""
    symbols = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    names = {"a b": 5, "<s>": 6, "\u2028": 7, "": 8, "id:5": 9}
    kept = {key: number for key, number in symbols.items() if number not in names.values()}
    write_json(folder, "vocab.json", {**kept, **names})
    import_model(ImportJob(folder, Path("out"), "de", "en", skip_check=True))
    lines = [
        line.rpartition(" ")[0] for line in Path("out/dict.de.txt").read_text(encoding="utf-8").split("\n")
    ]
    assert lines[3:8] == ["id:5", "id:6", "id:7", "id:8", "id:9"]
    renamed = json.loads(Path("out/huggingface.json").read_text(encoding="utf-8"))["text"]["source"][
        "renamed"
    ]
    assert renamed == {"a b": "id:5", "<s>": "id:6", "\u2028": "id:7", "": "id:8", "id:5": "id:9"}


@pytest.mark.parametrize("name", ["m", "m/model.safetensors", "m/pytorch_model.bin"])
def test_a_reader_of_checkpoints_names_the_command(folder: Path, name: str) -> None:
    """``--teacher-path`` of a folder, of safetensors, or of torch's format."""
    torch.save({"model.shared.weight": torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError) as refused:
        read_checkpoint(name, None)
    assert str(refused.value) == (
        f"--teacher-path '{name}' is a model of Hugging Face's format; make a checkpoint of it: "
        "imitkd-import 'm' --out NEW"
    )


def test_a_name_of_the_hub_is_not_a_checkpoint() -> None:
    """The message says how to get one; a path whose folder exists is a mistake of another kind."""
    with pytest.raises(UsageError) as refused:
        read_checkpoint("Helsinki-NLP/opus-mt-de-en", None)
    assert str(refused.value) == (
        "--teacher-path 'Helsinki-NLP/opus-mt-de-en' is not a file; if it is a model of the hub: hf download "
        "Helsinki-NLP/opus-mt-de-en --local-dir opus-mt-de-en, then imitkd-import opus-mt-de-en"
    )
    for name in ("tests/opus-mt-de-en", "nowhere/teacher.pt", "nowhere"):
        with pytest.raises(UsageError, match=r"is not a file; use the path of a fairseq checkpoint \(.pt\)"):
            read_checkpoint(name, None)


def test_settings_of_the_sizes_matter() -> None:
    """The sizes of the test's models differ, so that none is read in place of another."""
    assert len({SIZES[name] for name in ("d_model", "encoder_ffn_dim", "decoder_ffn_dim")}) == 3
    assert CHECKPOINT == "model.pt"
