"""Initialisation from the teacher: what is copied, what is not, and what is refused."""

from typing import Any

import pytest
import torch

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.initialise import initialise, parse_parts, spread
from tests.helpers.fairseq_models import WIDTHS, build_student


def built(seed: int, encoder: int = 1, decoder: int = 1, **changes: Any) -> Any:
    return build_student(
        "transformer", seed, **{**WIDTHS, "encoder_layers": encoder, "decoder_layers": decoder, **changes}
    )


def layers_of(student: Any, teacher: Any, side: str) -> list[int | None]:
    """For each layer of the student, the number of the teacher's layer with the same weights."""
    found: list[int | None] = []
    for own in getattr(student, side).layers:
        same = [
            number
            for number, theirs in enumerate(getattr(teacher, side).layers)
            if all(torch.equal(a, b) for a, b in zip(own.parameters(), theirs.parameters(), strict=True))
        ]
        found.append(same[0] if same else None)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("embeddings", {"embeddings": None}),
        ("encoder,decoder", {"encoder": None, "decoder": None}),
        ("embeddings, encoder:0.2.5,decoder:10", {"embeddings": None, "encoder": [0, 2, 5], "decoder": [10]}),
    ],
)
def test_parts(text: str, expected: Any) -> None:
    assert parse_parts(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "all", "encoder:", "encoder:a", "encoder,encoder:0", "embeddings:0", "encoder:0,2", "encoder:-1"],
)
def test_texts_that_name_no_parts(text: str) -> None:
    with pytest.raises(
        UsageError,
        match=r"^--init-from-teacher must be 'embeddings', 'encoder' and 'decoder' joined by commas, "
        ".* but is ",
    ):
        parse_parts(text)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (1, 6, [0]),
        (2, 6, [0, 5]),
        (3, 6, [0, 2, 5]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (3, 12, [0, 6, 11]),
        (4, 2, [0, 0, 1, 1]),
    ],
)
def test_layers_are_spread(student: int, teacher: int, expected: list[int]) -> None:
    assert spread(student, teacher) == expected


def test_what_is_copied() -> None:
    """Only the named parts; the teacher stays unchanged."""
    teacher = built(1, 4, 3)
    before = {name: values.clone() for name, values in teacher.state_dict().items()}
    student = built(2, 2, 1)
    own = {name: values.clone() for name, values in student.state_dict().items()}
    count = initialise(student, teacher, parse_parts("encoder"))
    assert layers_of(student, teacher, "encoder") == [0, 3]
    assert layers_of(student, teacher, "decoder") == [None]
    assert count == sum(parameter.numel() for parameter in student.encoder.layers.parameters())
    changed = {name for name, values in student.state_dict().items() if not torch.equal(values, own[name])}
    assert all(name.startswith("encoder.layers.") for name in changed)

    initialise(student, teacher, parse_parts("embeddings,encoder:2.1,decoder:1"))
    assert layers_of(student, teacher, "encoder") == [2, 1]
    assert layers_of(student, teacher, "decoder") == [1]
    for side in ("encoder", "decoder"):
        assert torch.equal(
            getattr(student, side).embed_tokens.weight, getattr(teacher, side).embed_tokens.weight
        )
    assert torch.equal(student.decoder.output_projection.weight, teacher.decoder.output_projection.weight)
    assert all(torch.equal(values, before[name]) for name, values in teacher.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [
        {"share_all_embeddings": True},
        {"encoder_learned_pos": True, "decoder_learned_pos": True},
        {"layernorm_embedding": True},
        {"encoder_normalize_before": True, "decoder_normalize_before": True},
    ],
    ids=str,
)
def test_a_student_of_the_same_size_computes_what_its_teacher_does(settings: dict[str, Any]) -> None:
    teacher, student = built(1, 2, 2, **settings).eval(), built(2, 2, 2, **settings).eval()
    count = initialise(student, teacher, parse_parts("embeddings,encoder,decoder"))
    assert count == sum(parameter.numel() for parameter in student.parameters())
    source, lengths, tokens = torch.tensor([[5, 6, 7, 2]]), torch.tensor([4]), torch.tensor([[2, 8, 9]])
    torch.testing.assert_close(
        student(source, lengths, tokens)[0], teacher(source, lengths, tokens)[0], rtol=0, atol=0
    )
    assert student.decoder.embed_tokens.weight is not teacher.decoder.embed_tokens.weight
    if settings.get("share_all_embeddings"):
        assert student.encoder.embed_tokens.weight is student.decoder.output_projection.weight


@pytest.mark.parametrize(
    ("parts", "student", "message"),
    [
        (
            "embeddings",
            {"encoder_embed_dim": 16, "decoder_embed_dim": 16},
            "the student's encoder's embed_tokens must be built as the teacher's, but weight is "
            "20 x 16, the teacher's 20 x 32; use the teacher's widths, or leave this part out",
        ),
        (
            "encoder",
            {"encoder_ffn_embed_dim": 64},
            "the student's encoder layer 0 (from 0) must be built as the teacher's",
        ),
        (
            "decoder:0",
            {"decoder_layers": 2},
            "decoder:… must name as many layers as the student has, 2, but names 1",
        ),
        ("encoder:9", {}, "encoder:… must name layers of the teacher, in 0..2, but names 9"),
    ],
    ids=str,
)
def test_what_does_not_fit(parts: str, student: dict[str, Any], message: str) -> None:
    """Nothing is copied then."""
    own = built(2, **student)
    before = {name: values.clone() for name, values in own.state_dict().items()}
    with pytest.raises(UsageError) as error:
        initialise(own, built(1, 3, 3), parse_parts(f"{parts}"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(values, before[name]) for name, values in own.state_dict().items())


@pytest.mark.parametrize(
    ("parts", "student", "teacher", "message"),
    [
        (
            "encoder",
            {"encoder_attention_heads": 8},
            {},
            "encoder: the student's --encoder-attention-heads must be the teacher's, 2, but is 8",
        ),
        (
            "decoder",
            {"decoder_attention_heads": 8},
            {},
            "--decoder-attention-heads must be the teacher's, 2, but is 8",
        ),
        (
            "encoder",
            {},
            {"encoder_normalize_before": True},
            "--encoder-normalize-before must be the teacher's, True, but is False",
        ),
        (
            "decoder",
            {"decoder_normalize_before": True},
            {},
            "--decoder-normalize-before must be the teacher's, False, but is True",
        ),
        (
            "encoder",
            {"activation_fn": "gelu"},
            {},
            "--activation-fn must be the teacher's, relu, but is gelu",
        ),
        (
            "encoder",
            {},
            {"activation_fn": "linear"},
            "--activation-fn must be the teacher's, linear, but is relu",
        ),
        (
            "decoder",
            {"decoder_normalize_before": True, "no_decoder_final_norm": True},
            {"decoder_normalize_before": True},
            "decoder.layer_norm must be the teacher's, LayerNorm, but is none",
        ),
        (
            "embeddings",
            {"no_scale_embedding": True},
            {},
            "--no-scale-embedding must be the teacher's, False, but is True",
        ),
        (
            "embeddings",
            {},
            {"layernorm_embedding": True},
            "encoder.layernorm_embedding must be the teacher's, LayerNorm, but is none",
        ),
        (
            "embeddings",
            {},
            {"decoder_learned_pos": True},
            "decoder.embed_positions must be the teacher's, LearnedPositionalEmbedding, but is "
            "SinusoidalPositionalEmbedding",
        ),
    ],
    ids=str,
)
def test_same_shapes_that_mean_something_else(
    parts: str, student: dict[str, Any], teacher: dict[str, Any], message: str
) -> None:
    """Weights would be copied and compute something else. Parts that are not copied may differ."""
    own, theirs = built(2, **student), built(1, 3, 3, **teacher)
    before = {name: values.clone() for name, values in own.state_dict().items()}
    with pytest.raises(UsageError) as error:
        initialise(own, theirs, parse_parts("embeddings,encoder,decoder"))
    assert f"{message}; build the student alike, or leave {parts} out" in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(values, before[name]) for name, values in own.state_dict().items())
    others = {"embeddings": "encoder", "encoder": "embeddings", "decoder": "embeddings"}
    assert initialise(own, theirs, parse_parts(others[parts])) > 0


@pytest.mark.parametrize(
    ("student", "teacher", "refused"),
    [
        ({"share_all_embeddings": True}, {}, "encoder's embed_tokens and decoder's embed_tokens"),
        (
            {"share_decoder_input_output_embed": True},
            {},
            "decoder's embed_tokens and decoder's output_projection",
        ),
        (
            {"share_all_embeddings": True},
            {"share_decoder_input_output_embed": True},
            "encoder's embed_tokens and decoder's embed_tokens",
        ),
        ({}, {"share_all_embeddings": True}, None),
        ({"share_decoder_input_output_embed": True}, {"share_all_embeddings": True}, None),
    ],
    ids=str,
)
def test_one_tensor_for_several_of_the_teachers(
    student: dict[str, Any], teacher: dict[str, Any], refused: str | None
) -> None:
    """A student may share fewer tensors than its teacher, but not more."""
    own, theirs = built(2, **student), built(1, 2, 2, **teacher)
    before = {name: values.clone() for name, values in own.state_dict().items()}
    parts = parse_parts("embeddings,encoder")
    if refused is None:
        initialise(own, theirs, parts)
        assert torch.equal(own.decoder.output_projection.weight, theirs.decoder.output_projection.weight)
        return
    with pytest.raises(UsageError) as error:
        initialise(own, theirs, parts)
    assert (
        f"--init-from-teacher: the student's {refused} are one tensor, but the teacher's differ; leave"
        in str(error.value)
    )
    assert all(torch.equal(values, before[name]) for name, values in own.state_dict().items())


def test_words_for_a_student_of_another_kind() -> None:
    """It has no scale and no positions."""
    student, teacher = build_student("gru"), built(1, share_decoder_input_output_embed=True)
    initialise(student, teacher, parse_parts("embeddings"))
    assert torch.equal(student.encoder.embed_tokens.weight, teacher.encoder.embed_tokens.weight)


def test_students_without_layers() -> None:
    with pytest.raises(
        UsageError, match="--init-from-teacher encoder needs a student and a teacher with layers"
    ):
        initialise(build_student("lstm"), built(1), parse_parts("encoder"))
    with pytest.raises(
        UsageError,
        match=r"decoder layer 0 \(from 0\) .* but bias_hh is .*, the teacher's missing",
    ):
        initialise(build_student("lstm"), built(1), parse_parts("decoder"))
