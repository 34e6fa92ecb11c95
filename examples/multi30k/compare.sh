#!/usr/bin/env bash
# All methods from the same student, with equal updates and two seeds: hours on two cores, so let it run in the background.
#   nohup examples/multi30k/compare.sh >compare.log 2>&1 &
# A second call goes on where the first one stopped. SEEDS="1 2", METHODS="gkd atkd" choose; WORKERS=2 trainings at a time.
here=$(cd "$(dirname "$0")" && pwd)
set -euo pipefail
# Few updates of few tokens: at the recipe's rate they would first undo what the student can.
export DISTILL_LR=${DISTILL_LR:-5e-4}
export DISTILL_UPDATES=${DISTILL_UPDATES:-300} DISTILL_TOKENS=${DISTILL_TOKENS:-2048} DISTILL_VALIDATE=${DISTILL_VALIDATE:-100}
: "${METHODS:=continued word_kd imitkd imitkd_full gkd speculative_kd f_distill_kl f_distill_rkl f_distill f_distill_tvd
  annealing_kd continuation_kd distillm atkd}"

"$here/prepare.sh"
"$here/teacher.sh"
"$here/student.sh"
for seed in ${SEEDS:-1 2}; do
  for method in $METHODS; do
    echo "SEED=$seed $here/distill.sh $method"
  done
done | xargs -P "${WORKERS:-1}" -L 1 env
"$here/evaluate.sh"
