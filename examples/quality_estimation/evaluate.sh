#!/usr/bin/env bash
# Compare the scores of all models with the test pairs' chrF: print the table and write results.json.
source "$(dirname "$0")/../common.sh"

models=()
for done in "$RUN"/.done/*; do
  name=$(basename "$done")
  case $name in text | binary_text | translator | translations | pairs | binarise) ;; *) models+=("$name") ;; esac
done
[ ${#models[@]} -gt 0 ] || die "$RUN holds no trained model; run teacher.sh, student.sh and distill.sh first"
PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/evaluate.py" --run "$RUN" "${DEVICE_FLAGS[@]}" "${models[@]}"
