#!/usr/bin/env bash
# Train the teacher on the labels: RoBERTa's architecture, 2 layers, 256 dimensions, random weights. All seeds share it.
SEED=1
source "$(dirname "$0")/../common.sh"

stage teacher train teacher "${STOCK[@]}" "${CLASSES[@]}" "${TEACHER_MODEL[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}" \
  --dropout 0.3 --max-tokens 2048 --lr 7e-4 --warmup-updates 200 --max-update "${TEACHER_UPDATES:-1000}"
