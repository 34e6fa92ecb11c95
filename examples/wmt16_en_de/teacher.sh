#!/usr/bin/env bash
# Use fairseq's published transformer (Ott et al., 2018) as the teacher; prepare.sh downloads it. SMOKE=1 trains a tiny one.
source "$(dirname "$0")/../common.sh"

published_teacher() {
  mkdir -p "$RUN/teacher"
  ln -sf ../published/model.pt "$RUN/teacher/checkpoint_best.pt"
}

if [ -n "${SMOKE:-}" ]; then teach "$@"; else stage teacher published_teacher; fi
