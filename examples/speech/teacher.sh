#!/usr/bin/env bash
# Train the teacher on text: a translation model from English to German, or to intents, that never hears anything. With TARGET=en it
# hears: a larger recogniser. All seeds share it.
SEED=1
source "$(dirname "$0")/../common.sh"
if [ "$TARGET" = en ]; then
  model 4 128
  stage teacher train teacher "${SPEECH[@]}" --criterion cross_entropy --arch s2t_transformer --conv-channels 128 "${MODEL[@]}" \
    "${OPTIMISER[@]}" "${VALIDATION[@]}" --lr 2e-3 --max-tokens 5000 --max-update "${TEACHER_UPDATES:-600}"
  exit
fi
model 2 128
DATA=$RUN/text-bin stage teacher train teacher --task translation_with_teacher --criterion cross_entropy --arch transformer \
  "${MODEL[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}" --lr 3e-3 --max-tokens 2048 --max-update "${TEACHER_UPDATES:-400}"
