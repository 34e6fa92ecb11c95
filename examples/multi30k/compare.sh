#!/usr/bin/env bash
# All methods from the same student, with equal updates and two seeds: hours on two cores, so let it run in the background.
#   nohup examples/multi30k/compare.sh >compare.log 2>&1 &
# A second call goes on where the first one stopped. SEEDS="1 2", METHODS="gkd atkd" choose. All is in run-compare/ (RUN=DIR):
# its students have the names of run.sh's, but other trainings.
here=$(cd "$(dirname "$0")" && pwd)
set -euo pipefail
export RUN=${RUN:-$here/run-compare${SMOKE:+-smoke}}
# Few updates of few tokens: at the recipe's rate they would first undo what the student can.
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
      # The student can already write, so its share may rise faster than from nothing: 1 - 0.1^(i/I).
      imitkd | imitkd_full) own=(--student-share exponential:0.1) ;;
      gkd) own=(--student-share constant:1) ;;
      # It validates only a few times: too few for the share to grow from 0.
      distillm) own=(--student-share adaptive:0.3) ;;
    esac
    START=scratch SEED=$seed "$here/distill.sh" "$method" "${few[@]}" "${own[@]}"
  done
done
"$here/evaluate.sh"
