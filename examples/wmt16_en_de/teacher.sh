#!/usr/bin/env bash
# The teacher: fairseq's published transformer (Ott et al., 2018), which prepare.sh fetched. With SMOKE=1 a tiny one is trained.
source "$(dirname "$0")/../common.sh"

published_teacher() {
  mkdir -p "$RUN/teacher"
  ln -sf ../published/model.pt "$RUN/teacher/checkpoint_best.pt"
}

if [ -n "${SMOKE:-}" ]; then teach "$@"; else stage teacher published_teacher; fi
