#!/usr/bin/env bash
# Run the recipe stage by stage: run.sh [ROW…] (default: scratch continued seqkd word_kd imitkd gkd), for each of SEEDS (default: 1).
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || set -- scratch continued seqkd word_kd imitkd gkd
run_students "$@"
