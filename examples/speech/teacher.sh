#!/usr/bin/env bash
# Train the teacher on text: a translation model from English to German that never hears anything. All seeds share it.
SEED=1
source "$(dirname "$0")/../common.sh"
model 2 128
DATA=$RUN/text-bin stage teacher train teacher --task translation_with_teacher --criterion cross_entropy --arch transformer \
  "${MODEL[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}" --lr 3e-3 --max-tokens 2048 --max-update "${TEACHER_UPDATES:-400}"
