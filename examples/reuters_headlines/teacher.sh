#!/usr/bin/env bash
# The teacher: a transformer of 3+3 layers, 256 dimensions, on the references.
source "$(dirname "$0")/../common.sh"
teach "$@"
