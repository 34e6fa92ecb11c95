#!/usr/bin/env bash
# Train one student of all pairs: student.sh ROW.
#   scratch     cross-entropy on the references
#   seqkd       cross-entropy on the teacher's translations of each pair, by beam search (Kim & Rush 2016, section 3.2)
#   METHOD      any name of --criterion: the references and the teacher
#   SEED=2 makes ROW-seed2
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || die "usage: student.sh ROW [FLAGS…], ROW scratch, seqkd or a name of --criterion"
row=$1
shift

# Translate each pair's training set by the teacher, and join the files of all pairs in one data directory.
translations() {
  local pair data=$RUN/translations/data-bin
  mkdir -p "$RUN/translations"
  for pair in "${PAIRS[@]}"; do
    imitkd-seqkd "$RUN/data-bin" "${DEVICE_FLAGS[@]}" --source-lang "${pair%-*}" --target-lang "${pair#*-}" --beam 4 "${DECODING[@]}" \
      --teacher-path "$RUN/teacher/checkpoint_best.pt" --out "$RUN/translations/$pair" ${SMOKE:+--teacher-allow-poor}
  done
  rm -rf "$data"
  mkdir "$data"
  for pair in "${PAIRS[@]}"; do
    cp "$RUN/translations/$pair/data-bin"/{dict,train."$pair",valid."$pair"}.* "$data"
  done
}

objective=("${PLAIN[@]}")
case $row in
  scratch) ;;
  seqkd)
    stage translations translations
    DATA=$RUN/translations/data-bin
    ;;
  *) objective=(--criterion "$row" --teacher-path "$RUN/teacher/checkpoint_best.pt" --teacher-data "$RUN/data-bin") ;;
esac
small "${STUDENT_MODEL[@]}"
name=$(named "$row")
stage "$name" train "$name" "${objective[@]}" "${MODEL[@]}" --dropout 0.1 --lr 5e-3 --max-update "${UPDATES:-600}" "${TRAINING[@]}" "$@"
