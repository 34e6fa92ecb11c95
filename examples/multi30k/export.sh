#!/usr/bin/env bash
# Export a trained student to a folder that translates raw text: export.sh [NAME] (default: imitkd_full) writes $RUN/NAME/exported.
#   QUANTIZATION=int8|float32|…; STUDENT=sru and SEED=N as in distill.sh
source "$(dirname "$0")/../common.sh"
student=$(named "${1:-imitkd_full}")

[ -z "${DRY_RUN:-}" ] || exit 0
checkpoint=$(SEED=1 KIND='' trained "$student")
exported() {
  rm -rf "$RUN/$student/exported" "$RUN/.done/export-$student-"*
  imitkd-export "$checkpoint" --data "$RUN/data-bin" --out "$RUN/$student/exported" --quantization "${QUANTIZATION:-int8}" --strict \
    --bpe sentencepiece --sentencepiece-model "$RUN/subwords.model" "${DECODING[@]}"
}
stage "export-$student-${QUANTIZATION:-int8}-$(sha256sum <"$checkpoint" | cut -c 1-16)" exported
say "serve it, with a page to try it in a browser: imitkd-serve $RUN/$student/exported"
