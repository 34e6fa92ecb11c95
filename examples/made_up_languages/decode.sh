#!/usr/bin/env bash
# Translate the test set greedily by one model: decode.sh NAME. Write $RUN/NAME/test.txt.
source "$(dirname "$0")/../common.sh"
[ $# = 1 ] || die "usage: decode.sh NAME, NAME a trained model in $RUN"
decode "$1"
