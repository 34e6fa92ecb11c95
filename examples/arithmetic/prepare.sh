#!/usr/bin/env bash
# Prepare the arithmetic: problems with worked steps by problems.py, fairseq's binary data in $RUN/data-bin.
source "$(dirname "$0")/../common.sh"
stage raw python "$RECIPE/problems.py" "$RUN/raw" ${SMOKE:+--share 0.02}
stage binarise binarise raw data-bin
