#!/usr/bin/env bash
# Train a student that hears commands and writes German: student.sh ROW. The first three kinds of rows start from random weights.
#   scratch       cross-entropy on the data's translations
#   seqkd         cross-entropy on the text teacher's translations of the transcripts, by beam search (Kim & Rush 2016, section 3.2)
#   METHOD        any name of --criterion: the data's translations, and the text teacher, which reads the transcripts
#   then_METHOD   the same, from the weights of `scratch` of the same seed
#   continued     cross-entropy from the weights of `scratch`, the control of then_METHOD
#   SEED=2 makes ROW-seed2
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || die "usage: student.sh ROW [FLAGS…], ROW scratch, seqkd, continued, METHOD or then_METHOD"
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
method=${row#then_}
case $row in
  scratch | continued) ;;
  seqkd)
    stage translations translations
    DATA=$RUN/seqkd-bin
    ;;
  *)
    objective=(--criterion "$method" --teacher-path "$RUN/teacher/checkpoint_best.pt" --teacher-data "$RUN/text-bin")
    [ "$method" = word_kd ] || objective+=(--rollout-max-len-a 0 --rollout-max-len-b 30)
    ;;
esac
length=(--lr 2e-3 --max-update "${UPDATES:-600}")
if [ "$row" = continued ] || [ "$row" != "$method" ]; then
  first=$RUN/$(named scratch)/checkpoint_best.pt
  [ -e "$first" ] || die "$first does not exist; train scratch first"
  length=(--lr 1e-3 --max-update "${MORE_UPDATES:-300}" --finetune-from-model "$first")
fi
model 3 96
name=$(named "$row")
stage "$name" train "$name" "${SPEECH[@]}" "${objective[@]}" --arch s2t_transformer --conv-channels 128 "${MODEL[@]}" \
  "${OPTIMISER[@]}" "${VALIDATION[@]}" --max-tokens 5000 "${length[@]}" "$@"
