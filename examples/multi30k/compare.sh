#!/usr/bin/env bash
# Compare all methods, started from the same student, with equal updates and two seeds. This takes hours on two cores:
#   nohup examples/multi30k/compare.sh >compare.log 2>&1 &
# A second call continues where the first one stopped. SEEDS="1 2" and METHODS="gkd atkd" select. Everything is in run-compare/
# (RUN=DIR), because its students have the names of run.sh's but other trainings.
here=$(cd "$(dirname "$0")" && pwd)
set -euo pipefail
export RUN=${RUN:-$here/run-compare${SMOKE:+-smoke}}
# There are few updates of few tokens. At the recipe's learning rate they would first damage the student.
: "${METHODS:=continued word_kd imitkd imitkd_full gkd speculative_kd f_distill_kl f_distill_rkl f_distill f_distill_tvd
  annealing_kd continuation_kd distillm atkd}"
few=(--lr 5e-4 --warmup-updates 100 --max-tokens 2048 --max-update 300 --validate-interval-updates 100 --save-interval-updates 100)

"$here/prepare.sh"
"$here/teacher.sh"
"$here/student.sh"
for seed in ${SEEDS:-1 2}; do
  for method in $METHODS; do
    own=()
    case $method in
      # The student is already trained, so its share may rise faster: 1 - 0.1^(i/I).
      imitkd | imitkd_full) own=(--student-share exponential:0.1) ;;
      gkd) own=(--student-share constant:1) ;;
      # The run validates only a few times, too few for the share to grow from 0.
      distillm) own=(--student-share adaptive:0.3) ;;
    esac
    START=scratch SEED=$seed "$here/distill.sh" "$method" "${few[@]}" "${own[@]}"
  done
done
"$here/evaluate.sh"
