#!/usr/bin/env bash
# Train a student without a teacher, on the labelled pairs: student.sh half|eighth. SEED=2 makes scratch_half-seed2.
source "$(dirname "$0")/../common.sh"
[ $# -eq 1 ] || die "usage: student.sh half|eighth"

sized "$1"
name=$(named "scratch_$1")
stage "$name" train "$name" "${STOCK[@]}" "${SCORE[@]}" "${MODEL[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}"
