#!/usr/bin/env bash
# One distilled student: distill.sh METHOD [FLAGS…], any name of --criterion. Starts from student.sh's `scratch`.
# SEED=2 and others leave the student that they start from alone, and make METHOD-seed2.
source "$(dirname "$0")/../common.sh"
source "$(dirname "$0")/settings.sh"
method=${1:?usage: distill.sh METHOD [FLAGS…], METHOD a name of --criterion or 'continued'}
shift

# What the recipe sets otherwise than the method's paper.
case $method in
  # The student can already write, so its share may rise faster than from scratch: 1 - 0.1^(i/I).
  imitkd | imitkd_full) own=(--student-share exponential:0.1) ;;
  # Their sentences are the teacher's own.
  f_distill | f_distill_kl | f_distill_tvd) own=(--teacher-samples) ;;
  # It validates only a few times: too few for the share to grow from 0.
  distillm) own=(--student-share adaptive:0.3) ;;
  *) own=() ;;
esac

if [ "$method" = continued ]; then # no teacher: the fair baseline
  own=(--task translation --criterion label_smoothed_cross_entropy --label-smoothing 0.1)
else
  own=(--teacher-path "$RUN/teacher/checkpoint_best.pt" --criterion "$method" "${own[@]}")
fi
name=$method$KIND
[ "${SEED:-1}" = 1 ] || name=$name-seed$SEED
stage "$name" train "$name" "${own[@]}" "${STUDENT_MODEL[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}" "${CONTINUE[@]}" --dropout 0.1 "$@"
