#!/usr/bin/env bash
# Train the teacher on the references: a transformer of 2+2 layers and 64 dimensions.
source "$(dirname "$0")/../common.sh"
teach "$@"
