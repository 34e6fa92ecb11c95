#!/usr/bin/env bash
# Let every model of $RUN continue the test set's prompts greedily, write results.json and print the table.
source "$(dirname "$0")/../common.sh"
evaluate_models answers.py
