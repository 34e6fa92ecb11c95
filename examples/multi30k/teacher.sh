#!/usr/bin/env bash
# The teacher: a transformer of 3+3 layers, 256 dimensions, trained on the references.
source "$(dirname "$0")/../common.sh"
source "$(dirname "$0")/settings.sh"

stage teacher train teacher --task translation "${TEACHER_MODEL[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}" \
  --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --dropout 0.3 \
  --lr 2e-3 --warmup-updates 500 --max-update "${TEACHER_UPDATES:-1500}"
