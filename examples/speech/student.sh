#!/usr/bin/env bash
# Train a student that hears commands and writes German: student.sh ROW. All rows start from random weights.
#   scratch   cross-entropy on the data's translations
#   seqkd     cross-entropy on the text teacher's translations of the transcripts, by beam search (Kim & Rush 2016, section 3.2)
#   METHOD    any name of --criterion: the data's translations, and the text teacher, which reads the transcripts
#   SEED=2 makes ROW-seed2
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || die "usage: student.sh ROW [FLAGS…], ROW scratch, seqkd or a name of --criterion"
row=$1
shift

# Write manifests whose targets are the teacher's translations of the transcripts.
translations() {
  mkdir -p "$RUN/seqkd-bin"
  imitkd-generate "$RUN/text-bin" "${DEVICE_FLAGS[@]}" --path "$RUN/teacher/checkpoint_best.pt" --gen-subset test1 \
    "${DECODING[@]}" --beam 5 --max-tokens 4096 --remove-bpe none >"$RUN/seqkd-bin/train.out"
  python "$RECIPE/answers.py" join "$RUN/data-bin/train.tsv" "$RUN/seqkd-bin/train.out" "$RUN/seqkd-bin/train.tsv"
  cp "$RUN"/data-bin/{config.yaml,dict.txt,valid.tsv} "$RUN/seqkd-bin"
}

objective=(--criterion cross_entropy)
case $row in
  scratch) ;;
  seqkd)
    stage translations translations
    DATA=$RUN/seqkd-bin
    ;;
  *)
    objective=(--criterion "$row" --teacher-path "$RUN/teacher/checkpoint_best.pt" --teacher-data "$RUN/text-bin")
    [ "$row" = word_kd ] || objective+=(--rollout-max-len-a 0 --rollout-max-len-b 30)
    ;;
esac
model 3 96
name=$(named "$row")
stage "$name" train "$name" "${SPEECH[@]}" "${objective[@]}" --arch s2t_transformer --conv-channels 128 "${MODEL[@]}" \
  "${OPTIMISER[@]}" "${VALIDATION[@]}" --lr 2e-3 --max-tokens 5000 --max-update "${UPDATES:-600}" "$@"
