#!/usr/bin/env bash
# Prepare the arithmetic: problems with worked steps by problems.py, fairseq's binary data in $RUN/data-bin.
source "$(dirname "$0")/../common.sh"

problems() { python "$RECIPE/problems.py" "$RUN/raw" ${SMOKE:+--share 0.02}; }

binarise() {
  rm -rf "$RUN/data-bin" # fairseq-preprocess refuses a folder that a killed call left incomplete
  fairseq-preprocess --only-source --workers 1 --destdir "$RUN/data-bin" \
    --trainpref "$RUN/raw/train.txt" --validpref "$RUN/raw/valid.txt" --testpref "$RUN/raw/test.txt" >"$RUN/preprocess.log" 2>&1
}

stage raw problems
stage binarise binarise
