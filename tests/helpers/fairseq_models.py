"""Small tasks, batches and students that tests build in their own process."""

import functools
import random
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fairseq import options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import Dictionary
from fairseq.data.language_pair_dataset import collate
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    BaseFairseqModel,
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
)
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_imitkd.criterion import DISTILLATION, DistillationCriterion
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.mixing import BatchLayout
from fairseq_imitkd.mixing.batch import encoder_inputs, first_decoder_inputs
from fairseq_imitkd.rollout import (
    Prompt,
    RandomKey,
    Rollout,
    RolloutPolicy,
    SpecialSymbols,
    decode,
    sampling_uniforms,
)
from fairseq_imitkd.tasks.translation import TranslationWithTeacherConfig, TranslationWithTeacherTask
from fairseq_imitkd.teacher.teacher import Teacher

# Methods in which a token's loss does not depend on other tokens of the batch.
TOKENWISE = [name for name in METHODS if name not in ("atkd", "selective_kd")]

LETTERS = "abcdefghijklmnop"
POSITIONS = 64  # maximum source and target length of a student
WIDTHS = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_embed_dim": 32,
    "decoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 32,
    "decoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
LSTM = {
    "encoder_embed_dim": 16,
    "encoder_hidden_size": 32,
    "decoder_embed_dim": 16,
    "decoder_hidden_size": 32,
    "decoder_out_embed_dim": 16,
}
RECURRENT = {
    "encoder_embed_dim": 32,
    "encoder_hidden_size": 16,
    "decoder_hidden_size": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
}

# name -> (architecture, settings), for every kind of decoder cache and of position embedding
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("transformer", WIDTHS),
    "transformer-pre-norm": (
        "transformer",
        {**WIDTHS, "encoder_normalize_before": True, "decoder_normalize_before": True},
    ),
    "transformer-learned-positions": (
        "transformer",
        {**WIDTHS, "encoder_learned_pos": True, "decoder_learned_pos": True},
    ),
    "transformer-shared-embeddings": (
        "transformer",
        {**WIDTHS, "share_all_embeddings": True, "decoder_layers": 2},
    ),
    "transformer-embedding-norm": ("transformer", {**WIDTHS, "layernorm_embedding": True}),
    "bart": (
        "bart_base",
        {**WIDTHS, "share_all_embeddings": False, "share_decoder_input_output_embed": False},
    ),
    "lstm": ("lstm", {**LSTM, "encoder_layers": 1, "decoder_layers": 1}),
    "lstm-bidirectional": (
        "lstm",
        {**LSTM, "encoder_layers": 2, "decoder_layers": 2, "encoder_bidirectional": True},
    ),
    "gru": ("gru", RECURRENT),
    "sru": ("sru", {**RECURRENT, "encoder_layers": 2, "decoder_layers": 2}),
    "sru-projected": (
        "sru",
        {**RECURRENT, "projection_size": 8, "layer_norm": True, "decoder_hidden_size": 24},
    ),
    "fconv": (
        "fconv",
        {
            "encoder_embed_dim": 32,
            "encoder_layers": "[(32, 3)] * 2",
            "decoder_embed_dim": 32,
            "decoder_layers": "[(32, 3)] * 2",
            "decoder_out_embed_dim": 32,
        },
    ),
}


def letters(symbols: Sequence[str] = LETTERS) -> Dictionary:
    """Return a dictionary of these symbols, after fairseq's four special symbols."""
    dictionary = Dictionary()
    for symbol in symbols:
        dictionary.add_symbol(symbol)
    return dictionary


def tiny_task(**settings: Any) -> TranslationWithTeacherTask:
    """Return a task with the letters as both dictionaries, without data and teacher."""
    dictionary = letters()
    return TranslationWithTeacherTask(
        TranslationWithTeacherConfig(source_lang="src", target_lang="tgt", **settings), dictionary, dictionary
    )


@dataclass(frozen=True)
class AtUpdate:
    """A method's schedules at an update, for batches that several methods get. See :func:`tiny_criterion`."""

    update_num: int = 0


def _with_schedules(criterion: DistillationCriterion, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace :class:`AtUpdate` in a batch by the schedules of this criterion's method."""
    model, sample, *rest = arguments
    given = sample.get(DISTILLATION)
    if given is not None and isinstance(given.now, AtUpdate):
        now = criterion.method.at(given.now.update_num)
        sample = {**sample, DISTILLATION: replace(given, now=now)}
    return (model, sample, *rest)


def tiny_criterion(
    name: str,
    task: Any,
    *,
    seed: int = 1,
    max_update: int = 100,
    max_epoch: int = 0,
    ddp_backend: str = "legacy_ddp",
    **settings: Any,
) -> DistillationCriterion:
    """Return a method's criterion, with its defaults except for these settings."""
    read = {"seed": seed, "max_update": max_update, "max_epoch": max_epoch, "ddp_backend": ddp_backend}
    cfg = METHODS[name](
        **{
            "find_unused_parameters": False,
            "disable_validation": False,
            "sentence_avg": False,
            **read,
            **settings,
        }
    )
    cfg._name = name
    criterion = CRITERION_REGISTRY[name](cfg, task)
    criterion.register_forward_pre_hook(_with_schedules)
    return criterion


def tiny_method(name: str, **settings: Any) -> Method:
    """Return a method with its defaults, except for these settings."""
    return tiny_criterion(name, tiny_task(), **settings).method


def layout(left_pad_source: bool = True) -> BatchLayout:
    """Return how batches of letters are padded."""
    return BatchLayout(letters().pad(), SpecialSymbols.from_dictionary(letters()), left_pad_source)


def give_teacher(task: Any, teacher: Any) -> None:
    """Let a task open this teacher, which is in memory."""
    task.given_teacher = teacher
    task.open_teacher = lambda method: teacher


def build_student(name: str = "transformer", seed: int = 1, **changes: Any) -> BaseFairseqModel:
    """Return an untrained student of a kind in :data:`STUDENTS`. It has dropout, so its mode matters."""
    architecture, settings = STUDENTS[name]
    positions = {"max_source_positions": POSITIONS, "max_target_positions": POSITIONS}
    args = Namespace(
        **{"arch": architecture, "criterion": "imitkd", "dropout": 0.1, **positions, **settings, **changes}
    )
    ARCH_CONFIG_REGISTRY[architecture](args)
    torch.manual_seed(seed)
    return tiny_task().build_model(args)


def make_batch(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], ids: Sequence[int] | None = None, **flags: Any
) -> dict[str, Any]:
    """Collate (source, target) letter numbers (0 = ``a``) with fairseq, an EOS after each.

    Sentences and ids are sorted by decreasing source length.
    """
    dictionary = letters()

    def sentence(numbers: Sequence[int]) -> Tensor:
        return torch.tensor([number + dictionary.nspecial for number in numbers] + [dictionary.eos()])

    ids = range(len(pairs)) if ids is None else ids
    rows = [
        {"id": number, "source": sentence(source), "target": sentence(target)}
        for number, (source, target) in zip(ids, pairs, strict=True)
    ]
    return collate(
        rows,
        dictionary.pad(),
        dictionary.eos(),
        **{"left_pad_source": True, "left_pad_target": False, **flags},
    )


def reversed_pairs(count: int, seed: int, longest: int = 6) -> list[tuple[list[int], list[int]]]:
    """Return random letters, each with the same letters in reverse order."""
    generator = random.Random(seed)
    sources = [
        [generator.randrange(len(LETTERS)) for _ in range(generator.randint(1, longest))]
        for _ in range(count)
    ]
    return [(source, source[::-1]) for source in sources]


def trained_student(name: str) -> BaseFairseqModel:
    """Return a student in evaluation mode that has started to learn to reverse. Its texts vary and end.

    Each caller gets its own copy, because a ``SequenceGenerator`` leaves its beam size in BART.
    """
    model = build_student(name)
    nn.Module.load_state_dict(model, _trained_weights(name))  # BART's own method needs a task
    return model.eval()


@functools.cache
def _trained_weights(name: str) -> dict[str, Any]:
    model, updates = build_student(name), 60
    if name.startswith(
        "lstm"
    ):  # with fairseq's small initial weights it would repeat one letter for a long time
        updates = 120
        for parameter in model.parameters():
            parameter.data *= 3.0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for update in range(updates):
        sample = make_batch(reversed_pairs(16, seed=1000 + update))
        logits = model(**sample["net_input"])[0]
        loss = F.cross_entropy(logits.flatten(0, 1), sample["target"].flatten(), ignore_index=letters().pad())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.state_dict()


def roll_out(
    model: BaseFairseqModel,
    sample: dict[str, Any],
    policy: RolloutPolicy,
    key: RandomKey | None = None,
    max_positions: int | None = None,
) -> Rollout:
    """Decode every sentence of a batch, as the task does."""
    dictionary = letters()
    net_input = encoder_inputs(sample, torch.arange(sample["target"].size(0)), dictionary.pad())
    max_lengths = policy.max_lengths(net_input["src_lengths"], max_positions or model.max_decoder_positions())
    return decode(
        model,
        Prompt(net_input, first_decoder_inputs(sample), max_lengths),
        policy,
        symbols=SpecialSymbols.from_dictionary(dictionary),
        uniforms=sampling_uniforms([(key or RandomKey(seed=1, update=0), sample["id"])]),
    )


def teacher_logits(teacher: Teacher, sample: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
    """Return a teacher's logits at every prefix of a batch, ``(B, T, V)``."""
    return teacher.score(sample, *args, **kwargs).logits(slice(None)).unflatten(0, sample["target"].shape)


def written(rollout: Rollout) -> list[list[int]]:
    """Return each row's tokens without padding."""
    pad = letters().pad()
    return [row[row.ne(pad)].tolist() for row in rollout.tokens]


class _CountEncoder(FairseqEncoder):
    """Returns the number of each sentence's first source letter."""

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **_: Any) -> dict[str, list[Tensor]]:
        first = torch.stack([row[row.ne(self.dictionary.pad())][0] for row in src_tokens])
        return {"encoder_out": [first - self.dictionary.nspecial]}

    def reorder_encoder_out(
        self, encoder_out: dict[str, list[Tensor]], new_order: Tensor
    ) -> dict[str, list[Tensor]]:
        return {"encoder_out": [value.index_select(0, new_order) for value in encoder_out["encoder_out"]]}

    def max_positions(self) -> int:
        return POSITIONS


class _CountDecoder(FairseqIncrementalDecoder):
    """Writes as many letters ``b`` as the encoder returns, then EOS. It records the number of rows at each
    step.
    """

    def __init__(self, dictionary: Dictionary):
        super().__init__(dictionary)
        self.scale = nn.Parameter(torch.ones(()))
        self.rows_at_step: list[int] = []

    def forward(
        self, prev_output_tokens: Tensor, encoder_out: Any = None, incremental_state: Any = None
    ) -> tuple[Tensor, Any]:
        self.rows_at_step.append(prev_output_tokens.size(0))
        steps = torch.arange(prev_output_tokens.size(1)).expand_as(prev_output_tokens)
        ends = steps >= encoder_out["encoder_out"][0].unsqueeze(-1)
        best = torch.where(ends, self.dictionary.eos(), self.dictionary.nspecial + 1)
        logits = 9.0 * self.scale * F.one_hot(best, len(self.dictionary)).float()
        return (logits if incremental_state is None else logits[:, -1:]), {}

    def max_positions(self) -> int:
        return POSITIONS


def counting_student() -> FairseqEncoderDecoderModel:
    """Return a student that writes ``n`` letters and EOS if the source begins with letter number ``n``."""
    dictionary = letters()
    return FairseqEncoderDecoderModel(_CountEncoder(dictionary), _CountDecoder(dictionary))


TINY_TRANSFORMER_FLAGS = (
    "--arch", "transformer", "--encoder-layers", "1", "--decoder-layers", "1", "--encoder-embed-dim", "32",
    "--decoder-embed-dim", "32", "--encoder-ffn-embed-dim", "32", "--decoder-ffn-embed-dim", "32",
    "--encoder-attention-heads", "2", "--decoder-attention-heads", "2", "--dropout", "0.1",
)  # fmt: skip


def training_args(data: Path, *flags: object) -> Namespace:
    """Return the arguments that ``fairseq-train`` parses from its command line."""
    arguments = [
        str(data),
        "--source-lang",
        "src",
        "--target-lang",
        "tgt",
        "--cpu",
        *TINY_TRANSFORMER_FLAGS,
        *map(str, flags),
    ]
    return options.parse_args_and_arch(options.get_training_parser(), arguments)


def training_config(data: Path, *flags: object) -> Any:
    """Return the configuration of ``fairseq-train`` with these flags."""
    return convert_namespace_to_omegaconf(training_args(data, *flags))


def write_dictionaries(
    folder: Path, source: Sequence[str] = LETTERS, target: Sequence[str] = LETTERS
) -> Path:
    """Write dictionary files like ``fairseq-preprocess``, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    letters(source).save(str(folder / "dict.src.txt"))
    letters(target).save(str(folder / "dict.tgt.txt"))
    return folder


def checkpoint_state(model: nn.Module, cfg: Any, **changes: Any) -> dict[str, Any]:
    """Return the checkpoint that fairseq's trainer writes for a model built from ``cfg``."""
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
        if OmegaConf.is_config(cfg)
        else cfg,
        "model": model.state_dict(),
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "C",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 1,
            }
        ],
        "task_state": {},
        "extra_state": {"epoch": 1, "metrics": {}, "previous_training_time": 1.0},
        "last_optimizer_state": {"state": {0: {"step": 1, "exp_avg": torch.zeros(8)}}, "param_groups": []},
    }
    return {**state, **changes}


def assert_same(one: Any, other: Any) -> None:
    """Compare all keys, tensors and numbers of two batches."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert one.equal(other)
    else:
        assert one == other
