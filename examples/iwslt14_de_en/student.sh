#!/usr/bin/env bash
# The student without a teacher, on the references.
source "$(dirname "$0")/../common.sh"
learn scratch "$@"
