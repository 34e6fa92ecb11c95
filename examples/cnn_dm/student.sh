#!/usr/bin/env bash
# Train the student without a teacher, on the references.
source "$(dirname "$0")/../common.sh"
learn scratch "$@"
