#!/usr/bin/env bash
# Train the teacher on the worked steps: a transformer_lm of 2 layers, 96 dimensions. All seeds share it.
source "$(dirname "$0")/../common.sh"
teach_model --lr 3e-3 --max-update "${TEACHER_UPDATES:-2000}" "$@"
