#!/usr/bin/env bash
# Train the teacher on the references: a transformer of 8+8 layers and 256 dimensions.
source "$(dirname "$0")/../common.sh"
teach "$@"
