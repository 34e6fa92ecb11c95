#!/usr/bin/env bash
# Run the recipe stage by stage: run.sh [ROW…] (default: those of the table), for each of SEEDS (default: 1).
# A second call continues where the first one stopped.
here=$(cd "$(dirname "$0")" && pwd)
set -euo pipefail
[ $# -gt 0 ] || set -- scratch word_kd seqkd imitkd_full continued then_imitkd_full

"$here/prepare.sh"
"$here/teacher.sh"
for seed in ${SEEDS:-1}; do
  for row in "$@"; do SEED=$seed "$here/student.sh" "$row"; done
done
"$here/evaluate.sh"
