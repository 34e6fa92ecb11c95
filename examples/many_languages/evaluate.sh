#!/usr/bin/env bash
# Compare every model of $RUN on the test set of each pair, write results.json and print the table.
source "$(dirname "$0")/../common.sh"

models=()
for name in teacher scratch seqkd word_kd imitkd imitkd_full; do
  for found in "$RUN/.done/$name" "$RUN/.done/$name"-seed*; do
    [ ! -e "$found" ] || models+=(--model "$(basename "$found")=$(basename "$found")/checkpoint_best.pt")
  done
done
[ ${#models[@]} -gt 0 ] || die "$RUN holds no trained model; run teacher.sh and student.sh first"
cd "$RUN"
for pair in "${PAIRS[@]}"; do
  imitkd-evaluate "${models[@]}" --data data-bin --source-lang "${pair%-*}" --target-lang "${pair#*-}" --out "evaluation/$pair" \
    --threads "${THREADS:-1}" --quick --baseline scratch "${DECODING[@]}" >"$pair.md"
done
PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/scores.py" "$RUN" "${PAIRS[@]}"
