#!/usr/bin/env bash
# Train the teacher on the worked steps: a transformer_lm of 2 layers, 96 dimensions. All seeds share it.
SEED=1
source "$(dirname "$0")/../common.sh"
model 2 96 384
stage teacher train teacher --criterion cross_entropy "${MODEL[@]}" --lr 3e-3 --max-update "${TEACHER_UPDATES:-2000}" "${TRAINING[@]}"
