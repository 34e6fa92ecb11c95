#!/usr/bin/env bash
# The table: every model that is there, on the dev set and on the labelled test set. Writes results.json.
source "$(dirname "$0")/../common.sh"

models=()
for done in "$RUN"/.done/*; do
  name=$(basename "$done")
  case $name in raw | encode | binarise) ;; *) models+=("$name") ;; esac
done
[ ${#models[@]} -gt 0 ] || die "no trained model in $RUN: run teacher.sh, student.sh and distill.sh first"
PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/evaluate.py" --run "$RUN" "${DEVICE_FLAGS[@]}" "${models[@]}"
