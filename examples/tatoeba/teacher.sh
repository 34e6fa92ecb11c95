#!/usr/bin/env bash
# Train the teacher on the references: a transformer of 3+3 layers and 256 dimensions.
source "$(dirname "$0")/../common.sh"
teach "$@"
