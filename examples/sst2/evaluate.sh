#!/usr/bin/env bash
# Evaluate all models on the dev set and the labelled test set: print the table and write results.json.
source "$(dirname "$0")/../common.sh"

models=()
for done in "$RUN"/.done/*; do
  name=$(basename "$done")
  case $name in raw | encode | binarise) ;; *) models+=("$name") ;; esac
done
[ ${#models[@]} -gt 0 ] || die "$RUN holds no trained model; run teacher.sh, student.sh and distill.sh first"
PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/evaluate.py" --run "$RUN" "${DEVICE_FLAGS[@]}" "${models[@]}"
