"""The type of fairseq's batches."""

from typing import Any

# A fairseq batch of B sentences: "id" (B,), "target" (B, T), "ntokens", "nsentences" and "net_input", the
# model's arguments: "src_tokens" (B, S), "src_lengths" (B,), "prev_output_tokens" (B, T).
Batch = dict[str, Any]
