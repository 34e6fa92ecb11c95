#!/usr/bin/env bash
# Run the recipe stage by stage: run.sh [ROW…]. A second call continues where the first one stopped.
#   SEEDS="1 2"   seeds of the rows with several seeds in the table; for RAW_DIR, DEVICE, RUN, SMOKE, DRY_RUN see ../common.sh
source "$(dirname "$0")/../common.sh"
run_recipe "$@"
