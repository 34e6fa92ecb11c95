#!/usr/bin/env bash
# Prepare the text in $RUN/text: the pairs of a tenth of Tatoeba's training set, and the sources of the others; the teacher beside it.
#   TATOEBA=DIR   a run of ../tatoeba whose teacher is trained (default: ../tatoeba/run)
source "$(dirname "$0")/../common.sh"
TATOEBA=${TATOEBA:-$REPO/examples/tatoeba/run}
for file in spm.model subwords.model; do [ ! -e "$TATOEBA/$file" ] || model=$TATOEBA/$file; done
[ -n "${model:-}" ] && [ -e "$TATOEBA/teacher/checkpoint_best.pt" ] ||
  die "TATOEBA must be a run of examples/tatoeba with a teacher, but is '$TATOEBA'; run its prepare.sh and teacher.sh first"

tenth() {
  local side
  mkdir -p "$RUN/text"
  for side in de en; do
    awk 'NR % 10 == 1' "$TATOEBA/raw/train.$side" >"$RUN/text/train.$side"
    cp "$TATOEBA/raw/valid.$side" "$TATOEBA/raw/test.$side" "$RUN/text"
  done
  awk 'NR % 10 != 1' "$TATOEBA/raw/train.de" >"$RUN/text/mono.de"
  mkdir -p "$RUN/teacher"
  cp "$model" "$RUN/subwords.model"
  cp "$TATOEBA/teacher/checkpoint_best.pt" "$TATOEBA/data-bin/dict.de.txt" "$TATOEBA/data-bin/dict.en.txt" "$RUN/teacher"
}

stage tenth tenth
