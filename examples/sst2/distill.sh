#!/usr/bin/env bash
# Train one student with a teacher: distill.sh METHOD [FLAGS…]. METHOD is word_kd, annealing_kd, continuation_kd or atkd. The
# student starts from random weights and gets as many updates as `scratch`. SEED=2 makes METHOD-seed2.
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || die "usage: distill.sh METHOD [FLAGS…], METHOD a --criterion without rollouts"
method=$1
shift

name=$(named "$method")
stage "$name" train "$name" --task sentence_prediction_with_teacher --criterion "$method" \
  --teacher-path "$RUN/teacher/checkpoint_best.pt" --teacher-data "$RUN/data-bin" \
  "${CLASSES[@]}" "${STUDENT[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}" "$@"
