#!/usr/bin/env bash
# A trained student as a folder that translates raw text: export.sh [NAME] (default: imitkd), in $RUN/NAME/exported.
#   QUANTIZATION=int8|float32|…; STUDENT=sru and SEED=N as of distill.sh
source "$(dirname "$0")/../common.sh"
source "$(dirname "$0")/settings.sh"
name=${1:-imitkd}$KIND
[ "${SEED:-1}" = 1 ] || name=$name-seed$SEED

[ -e "$RUN/$name/exported" ] || imitkd-export "$RUN/$name/checkpoint_best.pt" --data "$RUN/data-bin" \
  --out "$RUN/$name/exported" --quantization "${QUANTIZATION:-int8}" \
  --bpe sentencepiece --sentencepiece-model "$RUN/spm.model" --max-len-a 1.2 --max-len-b 10
say "to try it in a browser, and to serve it: imitkd-serve $RUN/$name/exported"
