"""Language models continue prompts of different lengths as if each were alone, on either path."""

import pytest
import torch
from fairseq import utils as fairseq_utils

from fairseq_imitkd.mixing.batch import encoder_inputs
from fairseq_imitkd.models.prompted import PromptedModel, join
from fairseq_imitkd.rollout import Prompt, RandomKey, RolloutPolicy, SpecialSymbols, decode, sampling_uniforms
from fairseq_imitkd.rollout import prompted as prompted_steps
from fairseq_imitkd.rollout.generator import RolloutGenerator
from fairseq_imitkd.rollout.prompted import PromptedSteps, RereadingSteps, begin_prompted
from tests.helpers.fairseq_models import letters, written
from tests.helpers.language_models import POSITIONS, alone, batch, build

FAST: dict[str, dict] = {
    "stock": {},
    "learned positions": {"decoder_learned_pos": True},
    "no positions, embedding norm": {"no_token_positional_embeddings": True, "layernorm_embedding": True},
    "other widths, LayerDrop": {"decoder_input_dim": 16, "decoder_output_dim": 24, "decoder_layerdrop": 0.5},
}
SLOW: dict[str, dict] = {
    "scaled heads": {"scale_heads": True},
    "adaptive input": {"adaptive_input": True, "adaptive_input_cutoff": "8"},
    "lstm": {"arch": "lstm_lm", "decoder_hidden_size": 32, "decoder_out_embed_dim": 32, "decoder_layers": 1},
}
EOS, PAD = letters().eos(), letters().pad()


@pytest.mark.parametrize("settings", (FAST | SLOW).values(), ids=FAST | SLOW)
def test_logits_equal_each_sentence_alone_in_float64(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-10: the whole batch, and steps while rows are dropped, against the model without padding."""
    monkeypatch.setattr(fairseq_utils, "softmax", lambda x, dim, onnx_trace=False: x.softmax(dim))
    model, sample = build(**settings).double().eval(), batch()
    prompts = sample["net_input"]["src_tokens"]
    tokens = torch.randint(4, 20, (9, 9), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = EOS
    with torch.no_grad():
        expected = []
        for (before, _), row in zip(alone(sample), tokens, strict=True):
            logits = model.decoder(torch.cat([before, row[1:]]).unsqueeze(0)[:, :POSITIONS])[0][0]
            expected.append(logits[len(before) - 1 :])
        whole = model(**sample["net_input"])[0]
        steps = begin_prompted(model, prompts, 9)
        assert type(steps) is (PromptedSteps if settings in FAST.values() else RereadingSteps)
        rows = torch.arange(9)
        for step in range(9):
            found = steps.logits(tokens[rows, : step + 1])
            for row, logits in zip(rows.tolist(), found, strict=True):
                if step < len(expected[row]):  # beyond the model's positions a row is only waiting
                    torch.testing.assert_close(logits, expected[row][step], rtol=1e-10, atol=1e-10)
            if step in (2, 5):
                kept = torch.tensor([number for number in range(rows.numel()) if number % 3 != 1])
                steps.keep(kept)
                rows = rows[kept]
        for row, (before, target) in enumerate(alone(sample)):
            own = model.decoder(torch.cat([before, target[:-1]]).unsqueeze(0))[0][0, len(before) - 1 :]
            torch.testing.assert_close(whole[row, : len(target)], own, rtol=1e-10, atol=1e-10)


def continued(model: PromptedModel, sample: dict, policy: RolloutPolicy) -> list[list[int]]:
    net_input = encoder_inputs(sample, torch.arange(len(sample["target"])), PAD)
    limits = policy.max_lengths(net_input["src_lengths"], POSITIONS, shares_positions=True)
    uniforms = sampling_uniforms([(RandomKey(seed=1, update=0), sample["id"])])
    prompt = Prompt(net_input, torch.full((len(limits),), EOS), limits)
    rollout = decode(model, prompt, policy, symbols=SpecialSymbols(PAD, EOS), uniforms=uniforms)
    lengths = net_input["src_lengths"] + rollout.tokens.ne(PAD).sum(dim=-1)
    assert int(lengths.max()) <= POSITIONS  # what a model reads when the rollout is scored
    return written(rollout)


@pytest.mark.parametrize("name", ["greedy", "sampling"])
def test_paths_write_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the last of the model's positions, which are learned: one more would be an error."""
    model, sample = build(decoder_learned_pos=True).eval(), batch()
    policy = RolloutPolicy(name, max_len_a=0.0, max_len_b=100)
    fast = continued(model, sample, policy)
    monkeypatch.setattr(prompted_steps, "unsupported_decoder_reason", lambda *_, **__: "the test asks for it")
    assert continued(model, sample, policy) == fast
    if name == "greedy":
        for (before, _), found in zip(alone(sample), fast, strict=True):
            tokens = before
            while len(tokens) < POSITIONS and (len(tokens) == len(before) or int(tokens[-1]) != EOS):
                logits = model.decoder(tokens.unsqueeze(0))[0][0, -1]
                logits[PAD] = float("-inf")
                tokens = torch.cat([tokens, logits.argmax().view(1)])
            assert tokens[len(before) :].tolist() == found


def test_beam_search_is_that_of_each_prompt_alone() -> None:
    """fairseq's search over the steps, with a batch of prompts and with single ones."""
    model = build(seed=3).eval()
    sample = batch(4)
    search = RolloutGenerator([model], letters(), beam_size=3, max_len_a=0, max_len_b=6)

    def best(inputs: dict) -> list[list[int]]:
        return [beam[0]["tokens"].tolist() for beam in search.generate([model], {"net_input": inputs})]

    inputs = {name: sample["net_input"][name] for name in ("src_tokens", "src_lengths")}
    together = best(inputs)
    for row, length in enumerate(inputs["src_lengths"].tolist()):
        single = {
            "src_tokens": inputs["src_tokens"][row : row + 1, :length],
            "src_lengths": torch.tensor([length]),
        }
        assert best(single) == [together[row]]


def test_what_a_language_model_reads() -> None:
    """The EOS first, then the prompt and the continuation; padding alone after them."""
    prompts = torch.tensor([[5, 6, EOS], [7, EOS, PAD], [EOS, PAD, PAD]])
    joined, places = join(prompts, torch.full((3, 1), EOS), PAD)
    assert joined.tolist() == [[EOS, 5, 6], [EOS, 7, PAD], [EOS, PAD, PAD]]
    assert places.tolist() == [[2], [1], [0]]
    joined, places = join(prompts, torch.tensor([[EOS, 8], [EOS, PAD], [EOS, 9]]), PAD)
    assert joined.tolist() == [[EOS, 5, 6, 8], [EOS, 7, PAD, PAD], [EOS, 9, PAD, PAD]]
    assert places.tolist() == [[2, 3], [1, 2], [0, 1]]
