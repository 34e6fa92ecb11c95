#!/usr/bin/env bash
# Run the recipe stage by stage: run.sh [ROW…] (default: scratch seqkd word_kd imitkd_full), for each of SEEDS (default: 1).
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || set -- scratch seqkd word_kd imitkd_full
run_students "$@"
