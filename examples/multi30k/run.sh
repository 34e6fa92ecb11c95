#!/usr/bin/env bash
# The whole recipe, stage by stage; a second call goes on where the first one stopped. RAW_DIR=DIR, DEVICE=cpu|cuda, SEED=1.
here=$(cd "$(dirname "$0")" && pwd)
set -euo pipefail

"$here/prepare.sh"
"$here/teacher.sh"
"$here/student.sh"
for method in word_kd imitkd imitkd_full; do
  "$here/distill.sh" "$method"
done
"$here/evaluate.sh"
