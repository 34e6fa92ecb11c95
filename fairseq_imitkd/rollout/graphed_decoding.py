"""Decoding on a GPU as CUDA graphs of whole steps: one launch from Python for several steps.

A step includes the choice of the token, its place in the text, and the end of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_imitkd.models.encoding import encode
from fairseq_imitkd.models.prompted import PromptedModel
from fairseq_imitkd.rollout.cuda_graphs import graphs_of, rounded
from fairseq_imitkd.rollout.draft import Corrector, Prompt, Rollout, SpecialSymbols, advance, finish
from fairseq_imitkd.rollout.fast_transformer import unsupported_reason
from fairseq_imitkd.rollout.fixed_transformer import FixedTransformer
from fairseq_imitkd.rollout.keyed_random import Uniforms
from fairseq_imitkd.rollout.policy import RolloutPolicy
from fairseq_imitkd.rollout.steps import Ensemble, average_log_probabilities, writers_of

# After each graph, the host waits for the device to tell how many rows are unfinished.
STEPS_PER_GRAPH = 4


def graphs_unsupported_reason(models: Sequence[Any]) -> str | None:
    """Return why models can't decode in graphs, in a few words, or None if they can."""
    for model in models:
        reason = "it is a language model" if isinstance(model, PromptedModel) else unsupported_reason(model)
        if reason is None and type(model.decoder.output_projection) is not nn.Linear:
            reason = "its output is not a plain linear layer"
        if reason is not None:
            return f"a {type(model).__name__} does not decode in CUDA graphs: {reason}"
    return None


@dataclass(frozen=True)
class Settings:
    """What is fixed in a graph, besides the sizes.

    Args:
        policy: how to choose a token.
        symbols: special symbols of the target dictionary.
        min_length: minimum number of tokens before the EOS.
        score: whether log-probabilities are recorded.
    """

    policy: RolloutPolicy
    symbols: SpecialSymbols
    min_length: int
    score: bool


class GraphedDecoding:
    """A batch of ``B`` rows that is decoded in graphs; ``R`` rows are computed.

    Args:
        writer: one model or an ensemble that :func:`graphs_unsupported_reason` accepts, in evaluation mode.
        prompt: the batch.
        settings: what is fixed in a graph.
        uniforms: random numbers for sampling, or None.
        corrector: teacher of a speculative policy, or None.
    """

    def __init__(
        self,
        writer: Any,
        prompt: Prompt,
        settings: Settings,
        *,
        uniforms: Uniforms | None,
        corrector: Corrector | None,
    ):
        self.prompt, self.settings = prompt, settings
        self.device = prompt.first_tokens.device
        models = [*writers_of(writer), *(writers_of(corrector.teacher) if corrector else ())]
        self.writers = len(writers_of(writer))  # the models after these are the corrector's
        self.store = graphs_of(*(model.decoder for model in models))
        self.decoding = self.store.begin([model.decoder for model in models])
        longest = prompt.longest or int(prompt.max_lengths.max())
        read = [prompt.net_input] * self.writers
        if corrector:
            read += [corrector.net_input or prompt.net_input] * len(corrector.teacher.models)
        encoded = [
            encode(model, each, samples=prompt.samples) for model, each in zip(models, read, strict=True)
        ]
        sources = max(out["encoder_out"][0].size(0) for out in encoded)
        self.longest, self.count = longest, prompt.first_tokens.size(0)
        self.sizes = (rounded(self.count), rounded(sources), rounded(longest + STEPS_PER_GRAPH))
        self.members = [
            FixedTransformer(
                model.decoder,
                weights,
                out,
                sizes=self.sizes,
                buffers=partial(self._buffer, prefix=f"{number}."),
            )
            for number, (model, weights, out) in enumerate(
                zip(models, self.store.weights, encoded, strict=True)
            )
        ]
        self._allocate()
        self._begin(uniforms, corrector)
        ensembles = [writer, corrector.teacher if corrector else None]
        self.log_weights = [self._log_weights(number, each) for number, each in enumerate(ensembles)]
        self.rows_computed = 0

    def run(self) -> Rollout:
        """Decode until all rows are finished."""
        for step in range(0, self.longest + 1, STEPS_PER_GRAPH):
            self._check()
            self.store.run((self.sizes, self.settings), self._block)
            self.rows_computed += STEPS_PER_GRAPH * self.sizes[0]
            if step == 0:  # few rows are that short, so the host does not wait to ask
                continue
            unfinished = int(self.unfinished_count)
            if unfinished == 0:
                break
            if rounded(unfinished) < self.sizes[0]:
                self._shrink(rounded(unfinished))
        self._store_rows()
        return finish(
            self.final_tokens[:-1],
            self.final_truncated[:-1],
            self.prompt.max_lengths,
            symbols=self.settings.symbols,
            rows_computed=self.rows_computed,
            lprobs=None if self.final_lprobs is None else self.final_lprobs[:-1],
        )

    def _check(self) -> None:
        if self.decoding != self.store.decodings:
            raise RuntimeError("another decoding with this model has begun and uses the same buffers")

    def _buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype, *, prefix: str = "") -> Tensor:
        return self.store.buffer(prefix + name, shape, dtype, device=self.device)

    def _allocate(self) -> None:
        """Set the buffers of the rows' state. Only :meth:`_block` and what prepares it use them."""
        rows, _, targets = self.sizes
        self.position = self._buffer("position", (1,), torch.int64)
        self.last = self._buffer("last", (rows,), torch.int64)
        self.limits = self._buffer("limits", (rows,), torch.int64)
        self.unfinished = self._buffer("unfinished", (rows,), torch.bool)
        self.truncated = self._buffer("truncated", (rows,), torch.bool)
        self.unfinished_count = self._buffer("unfinished_count", (), torch.int64)
        self.tokens = self._buffer("tokens", (targets, rows), torch.int64)
        self.lprobs: Tensor | None = None
        if self.settings.score:
            self.lprobs = self._buffer("lprobs", (targets, rows), torch.float32)
        kinds = ["uniforms", "corrections"][: self._random_numbers()]
        self.uniforms = [self._buffer(name, (targets, rows), torch.float64) for name in kinds]

    def _random_numbers(self) -> int:
        """Return how many random numbers a token needs."""
        policy = self.settings.policy
        return policy.samples + policy.speculates

    def _begin(self, uniforms: Uniforms | None, corrector: Corrector | None) -> None:
        """Fill the rows' state. Unused rows are finished from the start."""
        rows, _, targets = self.sizes
        count = self.count
        # The row of the batch that each row is; unused rows share one more.
        self.rows = torch.full((rows,), count, device=self.device)
        self.rows[:count] = torch.arange(count, device=self.device)
        self.final_tokens = torch.full(
            (count + 1, targets), self.settings.symbols.eos, dtype=torch.int64, device=self.device
        )
        self.final_truncated = torch.zeros(count + 1, dtype=torch.bool, device=self.device)
        self.final_lprobs: Tensor | None = None
        if self.settings.score:
            self.final_lprobs = torch.zeros(count + 1, targets, device=self.device)
        self.position.zero_()
        self.last.fill_(self.settings.symbols.eos)
        self.last[:count] = self.prompt.first_tokens
        self.limits.zero_()
        self.limits[:count] = self.prompt.max_lengths
        self.unfinished.zero_()
        self.unfinished[:count] = True
        self.truncated.zero_()
        numbers = [uniforms, corrector.uniforms if corrector else None]
        for buffer, source in zip(self.uniforms, numbers, strict=False):
            assert source is not None
            buffer.zero_()
            buffer[:, :count] = source.table(targets)

    def _log_weights(self, number: int, writer: Any) -> Tensor | None:
        """Return the weights of an ensemble's models at a fixed place; None for a single model."""
        if not isinstance(writer, Ensemble) or len(writer.models) == 1:
            return None
        weights = self._buffer(f"log_weights.{number}", (len(writer.models),), torch.float32)
        return weights.copy_(writer.log_weights)

    def _block(self) -> None:
        """Compute several steps. Graphs record this."""
        with torch.autocast("cuda", enabled=False):
            for _ in range(STEPS_PER_GRAPH):
                self._step()
            self.unfinished_count.copy_(self.unfinished.sum())

    def _step(self) -> None:
        settings, policy = self.settings, self.settings.policy
        pad, eos = settings.symbols.pad, settings.symbols.eos
        logits = self._logits(self.members[: self.writers], self.log_weights[0])
        normaliser = policy.tempered(logits).logsumexp(dim=-1) if settings.score else None
        logits[:, pad].fill_(float("-inf"))
        if settings.min_length > 0:
            logits[:, eos].masked_fill_(self.position < settings.min_length, float("-inf"))
        uniforms = [numbers.index_select(0, self.position)[0] for numbers in self.uniforms]
        chosen = policy.choose(logits, uniforms[0] if uniforms else None)
        if policy.speculates:
            teacher_logits = self._logits(self.members[self.writers :], self.log_weights[1])
            teacher_logits[:, pad].fill_(float("-inf"))
            chosen = policy.corrected(chosen, teacher_logits, uniforms[1])
        written, unfinished, cut = advance(chosen, self.unfinished, self.limits <= self.position, eos=eos)
        self.tokens.index_copy_(0, self.position, written.unsqueeze(0))
        if normaliser is not None:
            assert self.lprobs is not None
            scores = policy.tempered(logits.gather(-1, written.unsqueeze(-1)).squeeze(-1)) - normaliser
            self.lprobs.index_copy_(0, self.position, scores.unsqueeze(0))
        self.truncated.logical_or_(cut)
        self.unfinished.copy_(unfinished)
        self.last.copy_(written)
        self.position.add_(1)

    def _logits(self, members: Sequence[FixedTransformer], log_weights: Tensor | None) -> Tensor:
        """Return the next token's logits, ``(R, V)``; those of an ensemble are log-probabilities."""
        logits = [member.logits(self.last, self.position) for member in members]
        return logits[0] if log_weights is None else average_log_probabilities(logits, log_weights)

    def _store_rows(self) -> None:
        """Copy what the rows have written to the batch's rows."""
        self.final_tokens.index_copy_(0, self.rows, self.tokens.t())
        self.final_truncated.index_copy_(0, self.rows, self.truncated)
        if self.final_lprobs is not None and self.lprobs is not None:
            self.final_lprobs.index_copy_(0, self.rows, self.lprobs.t())

    def _shrink(self, count: int) -> None:
        """Go on with this many rows. All unfinished rows are among them."""
        self._store_rows()
        kept = self.unfinished.logical_not().to(torch.uint8).argsort(stable=True)[:count]
        self.rows = self.rows[kept]
        names = ("last", "limits", "unfinished", "truncated")
        held = [getattr(self, name)[kept] for name in names]
        tables = [table[:, kept] for table in self._tables()]
        self.sizes = (count, *self.sizes[1:])
        for member in self.members:
            member.shrink(kept, self.sizes)
        self._allocate()
        for name, values in zip(names, held, strict=True):
            getattr(self, name).copy_(values)
        for table, values in zip(self._tables(), tables, strict=True):
            table.copy_(values)

    def _tables(self) -> list[Tensor]:
        """Return the buffers that hold something for each position of each row, ``(T, R)`` each."""
        return [self.tokens, *self.uniforms, *([] if self.lprobs is None else [self.lprobs])]
