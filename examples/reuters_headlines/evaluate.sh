#!/usr/bin/env bash
# Every model that is there on the test set: $RUN/evaluation, $RUN/results.json, and the table.
source "$(dirname "$0")/../common.sh"
evaluate
