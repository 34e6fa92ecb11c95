#!/usr/bin/env bash
# Train the teacher on the headlines: a transformer_lm of 2 layers, 192 dimensions. All seeds share it.
source "$(dirname "$0")/../common.sh"
teach_model --lr 2e-3 --max-update "${TEACHER_UPDATES:-2500}" "$@"
