#!/usr/bin/env bash
# Translate the training set by the teacher, and train a student on it: seqkd.sh [ROW] (default: seqkd)
#   ROW: seqkd, seq_inter or seqkd_pruned; see `learn` in ../common.sh
#   SEQKD_FLAGS="--backend ctranslate2"   further flags of imitkd-seqkd
source "$(dirname "$0")/../common.sh"
learn "${1:-seqkd}" "${@:2}"
