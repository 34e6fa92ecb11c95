#!/usr/bin/env bash
# Train a student that hears commands and writes German: student.sh ROW. The first three kinds of rows start from random weights.
#   scratch       cross-entropy on the data's translations
#   seqkd         cross-entropy on the text teacher's translations of the transcripts, by beam search (Kim & Rush 2016, section 3.2)
#   METHOD        any name of --criterion: the data's translations, and the text teacher, which reads the transcripts
#   then_METHOD   the same, from the weights of `scratch` of the same seed
#   continued     cross-entropy from the weights of `scratch`, the control of then_METHOD
#   matched       no targets: the encoder's mean outputs learn those of the text teacher (Kim et al. 2021, first stage)
#   after_METHOD  the method, from the weights of `matched` (second stage)
#   SEED=2 makes ROW-seed2
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || die "usage: student.sh ROW [FLAGS…], ROW scratch, seqkd, continued, matched, METHOD, then_METHOD or after_METHOD"
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
first=scratch from=best method=${row#then_}
[ "$row" = "${row#after_}" ] || first=matched from=last method=${row#after_}
teacher=(--teacher-path "$RUN/teacher/checkpoint_best.pt" --teacher-data "$RUN/text-bin")
case $row in
  scratch | continued) ;;
  seqkd)
    stage translations translations
    DATA=$RUN/seqkd-bin
    ;;
  matched) objective=(--criterion word_kd "${teacher[@]}" --hidden-match 1 --hidden-match-only --loss-average sentence) ;;
  *)
    objective=(--criterion "$method" "${teacher[@]}")
    [ "$method" = word_kd ] || objective+=(--rollout-max-len-a 0 --rollout-max-len-b 30)
    ;;
esac
length=(--lr 2e-3 --max-update "${UPDATES:-600}")
if [ "$row" = continued ] || [ "$row" != "$method" ]; then
  start=$RUN/$(named "$first")/checkpoint_$from.pt
  [ -e "$start" ] || die "$start does not exist; train $first first"
  length=(--lr 1e-3 --max-update "${MORE_UPDATES:-300}" --finetune-from-model "$start")
fi
model 3 96
name=$(named "$row")
stage "$name" train "$name" "${SPEECH[@]}" "${objective[@]}" --arch s2t_transformer --conv-channels 128 "${MODEL[@]}" \
  "${OPTIMISER[@]}" "${VALIDATION[@]}" --max-tokens 5000 "${length[@]}" "$@"
