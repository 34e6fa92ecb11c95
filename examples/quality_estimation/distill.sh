#!/usr/bin/env bash
# Train a student with the teacher: distill.sh half|eighth [more] [FLAGS…]. Half of the loss is the squared error to the label,
# half that to the teacher's score. With `more` it also learns the teacher's score of the pairs that have no label.
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || die "usage: distill.sh half|eighth [more] [FLAGS…]"
size=$1 row=distilled_$1
shift
if [ "${1:-}" = more ]; then
  row=more_$size
  export DATA=$RUN/more-bin
  shift
fi

sized "$size"
name=$(named "$row")
stage "$name" train "$name" --task sentence_prediction_with_teacher --criterion word_kd --divergence logit-mse \
  --teacher-path "$RUN/teacher/checkpoint_best.pt" --teacher-data "$RUN/data-bin" \
  "${SCORE[@]}" "${MODEL[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}" "$@"
