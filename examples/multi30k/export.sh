#!/usr/bin/env bash
# A trained student as a folder that translates raw text: export.sh [NAME] (default: imitkd_full), in $RUN/NAME/exported.
#   QUANTIZATION=int8|float32|…; STUDENT=sru and SEED=N as of distill.sh
source "$(dirname "$0")/../common.sh"
student=$(named "${1:-imitkd_full}")

[ -z "${DRY_RUN:-}" ] || exit 0
checkpoint=$(SEED=1 KIND='' trained "$student")
exported() {
  rm -rf "$RUN/$student/exported" "$RUN/.done/export-$student-"*
  imitkd-export "$checkpoint" --data "$RUN/data-bin" --out "$RUN/$student/exported" --quantization "${QUANTIZATION:-int8}" \
    --bpe sentencepiece --sentencepiece-model "$RUN/spm.model" "${DECODING[@]}"
}
stage "export-$student-${QUANTIZATION:-int8}-$(sha256sum <"$checkpoint" | cut -c 1-16)" exported
say "to try it in a browser, and to serve it: imitkd-serve $RUN/$student/exported"
