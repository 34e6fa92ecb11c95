"""How many logits are computed at once. tests/losses/test_chunked.py compares the kinds of logits."""

import torch

from fairseq_imitkd.models.logits import CHUNK_LOGITS, CHUNK_LOGITS_ELSEWHERE, LEAST_CHUNK, chunk_size

CPU = torch.device("cpu")


def test_chunk_size_is_given_or_chosen_by_size() -> None:
    """-1 never chunks and a positive number always does; 0 chunks only large batches."""
    for positions in (1, 10**9):
        assert chunk_size(positions, 1000, CPU, asked=-1) == 0
        assert chunk_size(positions, 1000, CPU, asked=1) == 1
        assert chunk_size(positions, 1000, CPU, asked=77) == 77
    for device, room in ((CPU, CHUNK_LOGITS["cpu"]), (torch.device("cuda"), CHUNK_LOGITS_ELSEWHERE)):
        symbols, positions = 1024, room // 1024
        assert chunk_size(positions, symbols, device) == 0
        assert chunk_size(positions + 1, symbols, device) == positions
        assert chunk_size(10**6, symbols, device) == positions
        assert chunk_size(10**6, room, device) == LEAST_CHUNK
        assert chunk_size(0, symbols, device) == 0
