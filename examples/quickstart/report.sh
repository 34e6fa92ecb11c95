#!/usr/bin/env bash
# The quickstart's models side by side on its test set, and its trainings, as a page: run/report.html. After run.sh.
source "$(dirname "$0")/../common.sh"
NAMES=(teacher scratch continued on_corpus imitkd)

models=()
for name in "${NAMES[@]}"; do
  [ -e "$RUN/$name/checkpoint_last.pt" ] || die "no $name in $RUN: run run.sh first"
  models+=(--model "$name=$RUN/$name/checkpoint_last.pt")
done
imitkd-evaluate "${models[@]}" --data "$RUN/data-bin" --teacher teacher --baseline scratch --bleu-tokenize none \
  --max-len-a 1.2 --max-len-b 10 --threads 1 --out "$RUN/evaluation"
imitkd-report "${NAMES[@]/#/$RUN/}" --evaluation "$RUN/evaluation" --out "$RUN/report.html"
