#!/usr/bin/env bash
# Run the recipe stage by stage: run.sh [ROW…] (default: those of the first table), for each of SEEDS (default: 1).
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || set -- scratch word_kd seqkd imitkd_full continued then_imitkd_full
run_students "$@"
