#!/usr/bin/env bash
# Run recipe.yaml on the text that prepare.sh makes; a second call continues. Then write results.json and print the table.
#   run.sh [FLAG…]   flags of imitkd-distill, such as --dry-run, which make no results
source "$(dirname "$0")/../common.sh"
"$RECIPE/prepare.sh"
cp "$RECIPE/recipe.yaml" "$RUN/recipe.yaml"
imitkd-distill "$RUN/recipe.yaml" --out "$RUN/students" "$@"
[ $# -eq 0 ] || exit 0
PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/results.py" "$RUN"
