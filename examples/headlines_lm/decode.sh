#!/usr/bin/env bash
# Let one model continue the test set's prompts greedily: decode.sh NAME. Write $RUN/NAME/test.txt.
source "$(dirname "$0")/../common.sh"
[ $# = 1 ] || die "usage: decode.sh NAME, NAME a trained model in $RUN"
decode_model "$1"
