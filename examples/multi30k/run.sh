#!/usr/bin/env bash
# The recipe, stage by stage: run.sh [METHOD…] (default: imitkd word_kd imitkd_full); any names of --criterion.
# The first of them is exported in the end. A second call goes on where the first one stopped. RAW_DIR=DIR, DEVICE=cpu|cuda, SEED=1.
here=$(cd "$(dirname "$0")" && pwd)
set -euo pipefail
[ $# -gt 0 ] || set -- imitkd word_kd imitkd_full

"$here/prepare.sh"
"$here/teacher.sh"
"$here/student.sh"
for method in continued "$@"; do
  "$here/distill.sh" "$method"
done
"$here/evaluate.sh"
"$here/export.sh" "$1"
