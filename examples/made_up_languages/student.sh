#!/usr/bin/env bash
# Train the student without a teacher: 1+1 layers, 32 dimensions, on the references.
source "$(dirname "$0")/../common.sh"
learn scratch "$@"
