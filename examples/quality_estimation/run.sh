#!/usr/bin/env bash
# Run the recipe stage by stage, two seeds of each student. A second call continues where the first one stopped.
#   DEVICE=cpu|cuda, SEEDS="1 2", SIZES="half eighth"
here=$(cd "$(dirname "$0")" && pwd)
set -euo pipefail

"$here/prepare.sh"
"$here/teacher.sh"
for size in ${SIZES:-half eighth}; do
  for seed in ${SEEDS:-1 2}; do
    SEED=$seed "$here/student.sh" "$size"
    SEED=$seed "$here/distill.sh" "$size"
    SEED=$seed "$here/distill.sh" "$size" more
  done
done
"$here/evaluate.sh"
