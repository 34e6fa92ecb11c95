#!/usr/bin/env bash
# Train the student without a teacher: 1 layer, 64 dimensions, cross-entropy on the labels. SEED=2 makes scratch-seed2.
source "$(dirname "$0")/../common.sh"

name=$(named scratch)
stage "$name" train "$name" "${STOCK[@]}" "${CLASSES[@]}" "${STUDENT[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}"
