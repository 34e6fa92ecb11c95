#!/usr/bin/env bash
# One distilled student: distill.sh METHOD [FLAGS…], METHOD one of word_kd, imitkd, imitkd_full. Starts from student.sh's.
source "$(dirname "$0")/../common.sh"
source "$(dirname "$0")/settings.sh"
method=${1:?usage: distill.sh word_kd|imitkd|imitkd_full [FLAGS…]}
shift

case $method in
  word_kd) share=() ;;
  # The student can already write, so its share may rise faster than from scratch: 1 - 0.1^(i/I).
  imitkd | imitkd_full) share=(--student-share exponential:0.1) ;;
  *) die "METHOD must be word_kd, imitkd or imitkd_full, but is '$method'" ;;
esac

stage "$method" train "$method" --teacher-path "$RUN/teacher/checkpoint_best.pt" --criterion "$method" "${share[@]}" \
  "${STUDENT_MODEL[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}" "${CONTINUE[@]}" --dropout 0.1 "$@"
