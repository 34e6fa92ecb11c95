"""The type of fairseq's batches."""

from typing import Any

# A fairseq batch of B sentences: "id" (B,), "target" (B, T), "ntokens", "nsentences" and "net_input", the
# model's arguments: "src_tokens" (B, S), "src_lengths" (B,), "prev_output_tokens" (B, T).
Batch = dict[str, Any]

# Key of the teacher's encoder arguments in a batch whose teacher reads something else than the student.
TEACHER_INPUT = "teacher_input"


def teacher_input(sample: Batch) -> dict[str, Any]:
    """Return the encoder's arguments of a batch's teacher; they are the student's unless it has others."""
    if TEACHER_INPUT in sample:
        return dict(sample[TEACHER_INPUT])
    return {name: value for name, value in sample["net_input"].items() if name != "prev_output_tokens"}
