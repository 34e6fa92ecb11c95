#!/usr/bin/env bash
# The student without a teacher: 1+1 layers, 64 dimensions, on the references. Every distilled student starts from it,
# and so does `continued`, which gets as many updates as they do: the fair baseline.
source "$(dirname "$0")/../common.sh"
SEED=1
source "$(dirname "$0")/settings.sh"

stage "scratch$KIND" train "scratch$KIND" --task translation "${STUDENT_MODEL[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}" \
  --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --dropout 0.1 \
  --lr 4e-3 --warmup-updates 500 --max-update "${SCRATCH_UPDATES:-1500}"
