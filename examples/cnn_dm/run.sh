#!/usr/bin/env bash
# The recipe, stage by stage: run.sh [ROW…]; a second call goes on where the first one stopped.
#   SEEDS="1 2"   of the rows that the table gives with more than one; RAW_DIR, DEVICE, RUN, SMOKE, DRY_RUN: see ../common.sh
source "$(dirname "$0")/../common.sh"
run_recipe "$@"
