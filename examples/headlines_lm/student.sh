#!/usr/bin/env bash
# Train one student: student.sh ROW [FLAGS…]. ROW: scratch, continued, seqkd or a name of --criterion; see ../language_model.sh
#   SEED=2 makes ROW-seed2
source "$(dirname "$0")/../common.sh"
learn_model "$@"
