#!/usr/bin/env bash
# Write run/report.html, a page that compares the quickstart's models and trainings. Run run.sh first.
source "$(dirname "$0")/../common.sh"
NAMES=(teacher scratch continued on_corpus imitkd seqkd seqkd_continued seqkd_imitkd)

models=()
for name in "${NAMES[@]}"; do
  [ -e "$RUN/$name/checkpoint_last.pt" ] || die "$RUN/$name/checkpoint_last.pt does not exist; run run.sh first"
  models+=(--model "$name=$RUN/$name/checkpoint_last.pt")
done
imitkd-evaluate "${models[@]}" --data "$RUN/data-bin" --teacher teacher --baseline scratch --bleu-tokenize none \
  --max-len-a 1.2 --max-len-b 10 --threads 1 --out "$RUN/evaluation"
imitkd-report "${NAMES[@]/#/$RUN/}" --evaluation "$RUN/evaluation" --out "$RUN/report.html"
