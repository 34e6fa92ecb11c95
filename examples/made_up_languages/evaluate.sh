#!/usr/bin/env bash
# Evaluate all models on the test set: write $RUN/evaluation and $RUN/results.json, and print the table.
source "$(dirname "$0")/../common.sh"
evaluate
