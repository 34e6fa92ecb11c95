#!/usr/bin/env bash
# The training set in the teacher's words, and a student that learns from it: seqkd.sh [ROW] (default: seqkd)
#   ROW: seqkd, seq_inter, seqkd_pruned, as ../common.sh says of `learn`
#   SEQKD_FLAGS="--backend ctranslate2"   any flags of imitkd-seqkd
source "$(dirname "$0")/../common.sh"
learn "${1:-seqkd}" "${@:2}"
