#!/usr/bin/env bash
# Make up the languages and their sentences, and fairseq's binary data in $RUN/data-bin.
source "$(dirname "$0")/../common.sh"
prepare python "$REPO/fairseq_imitkd/pipeline/made_up.py" "$RUN/raw" --train 20000 --valid 2000 --test 5000
