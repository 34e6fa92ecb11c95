"""Encoding on a GPU does not wait for it, and gives what fairseq gives."""

import pytest
import torch
from fairseq import utils

from fairseq_imitkd.models.encoding import encode
from tests.helpers.emulated_cuda import emulated_cuda
from tests.helpers.fairseq_models import build_student, make_batch, reversed_pairs


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("normalize_before", [False, True])
@torch.no_grad()
def test_encoder_output(normalize_before: bool, samples: int) -> None:
    model = build_student("transformer", encoder_layers=3, encoder_normalize_before=normalize_before).eval()
    batch = make_batch(reversed_pairs(6, seed=1))
    inputs = {name: batch["net_input"][name] for name in ("src_tokens", "src_lengths")}
    expected = model.encoder.forward_torchscript(inputs)
    rows = torch.arange(6).repeat_interleave(samples)
    expected = model.encoder.reorder_encoder_out(expected, rows)
    with emulated_cuda() as device:
        on_device = {name: utils.move_to_cuda(value) for name, value in inputs.items()}
        there = model.cuda()
        device.waits.clear()
        found = encode(there, on_device, samples=samples)
        assert device.waits == []
        for name in ("encoder_out", "encoder_padding_mask", "encoder_embedding", "src_lengths"):
            torch.testing.assert_close(found[name][0].cpu(), expected[name][0])
