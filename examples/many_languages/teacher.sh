#!/usr/bin/env bash
# Train the teacher of all pairs on the references: a transformer of 2+2 layers, 128 dimensions. All seeds share it.
SEED=1
source "$(dirname "$0")/../common.sh"
small "${TEACHER_MODEL[@]}"
stage teacher train teacher "${PLAIN[@]}" "${MODEL[@]}" --dropout 0.2 --lr 3e-3 --max-update "${TEACHER_UPDATES:-1000}" "${TRAINING[@]}"
