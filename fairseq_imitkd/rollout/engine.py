"""Decoding during training: what the student writes, greedily or by sampling.

The engine differs from fairseq's ``SequenceGenerator`` in four ways. Each sentence has its own maximum
length, no EOS is forced, the models' modes are restored, and finished sentences leave the batch.
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from fairseq.models import BaseFairseqModel
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_imitkd.rollout.draft import Corrector, Draft, Prompt, Rollout, SpecialSymbols
from fairseq_imitkd.rollout.graphed_decoding import GraphedDecoding, Settings, graphs_unsupported_reason
from fairseq_imitkd.rollout.keyed_random import Uniforms
from fairseq_imitkd.rollout.policy import RolloutPolicy
from fairseq_imitkd.rollout.steps import Ensemble, Steps, begin_decoding, writers_of

logger = logging.getLogger(__name__)

# Dropping finished rows copies every cache, so the engine waits until this share of the rows is finished.
COMPACT_SHARE = 0.1


@torch.no_grad()
def decode(
    writer: BaseFairseqModel | Ensemble,
    prompt: Prompt,
    policy: RolloutPolicy,
    *,
    symbols: SpecialSymbols,
    uniforms: Uniforms | None = None,
    min_length: int = 0,
    score: bool = False,
    corrector: Corrector | None = None,
) -> Rollout:
    """Let a student or a teacher translate a batch.

    Args:
        writer: unwrapped encoder-decoder with an incremental decoder, or an ensemble of such models. Their
            modes are restored, also after an error.
        prompt: batch to translate.
        policy: how to choose a token.
        symbols: special symbols of the target dictionary.
        uniforms: random numbers for sampling; a greedy policy ignores them.
        min_length: minimum number of tokens before the EOS.
        score: also return the log-probabilities of the tokens.
        corrector: teacher that corrects the choices of a speculative policy.

    Returns:
        a :class:`Rollout` of ``B`` rows in the order of the prompt.
    """
    with evaluating(writer):
        if policy.cuda_graphs and prompt.first_tokens.is_cuda and _can_use_graphs(writer, corrector):
            settings = Settings(policy, symbols, min_length, score)
            return GraphedDecoding(writer, prompt, settings, uniforms=uniforms, corrector=corrector).run()
        draft = Draft(prompt, symbols, score=score)
        longest, samples = draft.longest + 1, prompt.samples
        begin = partial(begin_decoding, longest=longest, samples=samples)
        steps = begin(writer, prompt.net_input)
        teacher_steps = None
        if corrector:
            teacher_steps = begin(corrector.teacher, corrector.net_input or prompt.net_input)
        prefixes = prompt.first_tokens.unsqueeze(-1)
        # One step beyond the maximum length: a row that chooses the EOS there is complete, not truncated.
        for step in range(draft.longest + 1):
            logits = steps.logits(prefixes)
            normaliser = policy.tempered(logits).logsumexp(dim=-1) if score else None
            logits[:, symbols.pad] = float("-inf")
            if step < min_length:
                logits[:, symbols.eos] = float("-inf")
            chosen = policy.choose(logits, uniforms(step, draft.rows) if uniforms else None)
            if corrector and teacher_steps:
                teacher_logits = teacher_steps.logits(prefixes)
                teacher_logits[:, symbols.pad] = float("-inf")
                chosen = policy.corrected(chosen, teacher_logits, corrector.uniforms(step, draft.rows))
            written = draft.append(step, chosen)
            if normaliser is not None:
                draft.score(step, policy.tempered(_at(logits, written)) - normaliser)
            if (step + 1) % draft.steps_between_checks == 0:
                unfinished = _drop_finished(draft, steps, teacher_steps)
                if unfinished == 0:
                    break
            prefixes = draft.prefixes(step + 1)
    return draft.rollout(steps.rows_computed)


def _can_use_graphs(writer: BaseFairseqModel | Ensemble, corrector: Corrector | None) -> bool:
    """Return whether the models can decode in CUDA graphs; say once why not."""
    models = [*writers_of(writer), *(writers_of(corrector.teacher) if corrector else ())]
    reason = graphs_unsupported_reason(models)
    if reason is not None:
        _say_once(f"rollouts are slower than they could be, because {reason}")
    return reason is None


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


def _drop_finished(draft: Draft, *decoders: Steps | None) -> int:
    """Drop the finished rows if they are many enough to be worth it. Return the number of unfinished rows."""
    unfinished = draft.count_unfinished()
    if 0 < unfinished <= (1.0 - COMPACT_SHARE) * draft.rows.numel():
        kept = draft.drop_finished()
        for steps in filter(None, decoders):
            steps.keep(kept)
    return unfinished


def _at(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the logit of one token per row, ``(R, V), (R,) -> (R,)``."""
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@contextmanager
def evaluating(writer: nn.Module | Ensemble) -> Iterator[None]:
    """Put models into evaluation mode with a beam of 1; restore each module's mode and beam, even on errors.

    A ``SequenceGenerator`` writes its beam size into BART's attention modules, which then expect that many
    rows per sentence, and relies on finding it there later. See
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/models/bart/model.py#L282-L291
    """
    models = writers_of(writer)
    modes = [(module, module.training) for model in models for module in model.modules()]
    beams = [(module, module.beam_size) for module, _ in modes if isinstance(module, MultiheadAttention)]
    for model in models:
        model.eval()
    for attention, _ in beams:
        attention.beam_size = 1
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for attention, beam_size in beams:
            attention.beam_size = beam_size
