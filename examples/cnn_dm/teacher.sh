#!/usr/bin/env bash
# The teacher: a transformer of 6+6 layers, 512 dimensions, on the references.
source "$(dirname "$0")/../common.sh"
teach "$@"
