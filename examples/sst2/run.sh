#!/usr/bin/env bash
# Run the recipe stage by stage: run.sh [METHOD…] (default: word_kd annealing_kd continuation_kd), two seeds of each student.
# A second call continues where the first one stopped. RAW_DIR=DIR, DEVICE=cpu|cuda, SEEDS="1 2".
here=$(cd "$(dirname "$0")" && pwd)
set -euo pipefail
[ $# -gt 0 ] || set -- word_kd annealing_kd continuation_kd

"$here/prepare.sh"
"$here/teacher.sh"
for seed in ${SEEDS:-1 2}; do
  SEED=$seed "$here/student.sh"
  for method in "$@"; do
    SEED=$seed "$here/distill.sh" "$method"
  done
done
"$here/evaluate.sh"
