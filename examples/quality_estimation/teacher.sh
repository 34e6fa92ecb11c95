#!/usr/bin/env bash
# Train the teacher on the labelled pairs: RoBERTa's architecture, 2 layers, 128 dimensions, random weights. All seeds share it.
SEED=1
source "$(dirname "$0")/../common.sh"

roberta 2 128
stage teacher train teacher "${STOCK[@]}" "${SCORE[@]}" "${MODEL[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}" \
  --dropout 0.1 --lr 1e-3 --max-update "${TEACHER_UPDATES:-700}"
