#!/usr/bin/env bash
# Train one student with a teacher: distill.sh METHOD [FLAGS…]. METHOD is a name of --criterion; seqkd_METHOD uses seqkd.sh's data.
#   SEED=2 makes METHOD-seed2; START=scratch starts from another student instead of random weights
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || die "usage: distill.sh METHOD [FLAGS…], METHOD a name of --criterion"
learn "$@"
