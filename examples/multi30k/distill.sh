#!/usr/bin/env bash
# One student with a teacher: distill.sh METHOD [FLAGS…], any name of --criterion; seqkd_METHOD is METHOD on seqkd.sh's data.
#   SEED=2 makes METHOD-seed2; START=scratch goes on from another student instead of from nothing
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || die "usage: distill.sh METHOD [FLAGS…], METHOD a name of --criterion"
learn "$@"
