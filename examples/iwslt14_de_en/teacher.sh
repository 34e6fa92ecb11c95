#!/usr/bin/env bash
# The teacher: a transformer of 8+8 layers, 256 dimensions, on the references.
source "$(dirname "$0")/../common.sh"
teach "$@"
