#!/usr/bin/env bash
# Train the teacher on the references: a transformer of 6+6 layers and 512 dimensions.
source "$(dirname "$0")/../common.sh"
teach "$@"
