#!/usr/bin/env bash
# Train one student: student.sh ROW. `scratch` starts from random weights, all other rows from `scratch` of the same seed.
#   scratch     cross-entropy on the worked steps
#   continued   the same, the control of the rows below
#   seqkd       cross-entropy on the teacher's continuations of the same prompts, by beam search (Kim & Rush 2016, section 3.2)
#   METHOD      any name of --criterion: the worked steps and the teacher
#   SEED=2 makes ROW-seed2
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || die "usage: student.sh ROW [FLAGS…], ROW scratch, continued, seqkd or a name of --criterion"
row=$1
shift

# Write the problems with the teacher's continuations, and binarise them with the same dictionary.
continuations() {
  mkdir -p "$RUN/teachers"
  imitkd-generate "$RUN/data-bin" "${PROMPTS[@]}" "${DEVICE_FLAGS[@]}" --path "$RUN/teacher/checkpoint_best.pt" --gen-subset train \
    --beam 5 --max-len-a 0 --max-len-b 50 --max-tokens 4096 --required-batch-size-multiple 1 --remove-bpe none \
    >"$RUN/teachers/train.out"
  python "$RECIPE/answers.py" join "$RUN/teachers/train.out" >"$RUN/teachers/train.txt"
  rm -rf "$RUN/teachers/data-bin"
  fairseq-preprocess --only-source --workers 1 --destdir "$RUN/teachers/data-bin" --srcdict "$RUN/data-bin/dict.txt" \
    --trainpref "$RUN/teachers/train.txt" --validpref "$RUN/raw/valid.txt" >"$RUN/teachers/preprocess.log" 2>&1
}

objective=(--criterion cross_entropy)
case $row in
  scratch | continued) ;;
  seqkd)
    stage teachers continuations
    DATA=$RUN/teachers/data-bin
    ;;
  *)
    objective=(--criterion "$row" --teacher-path "$RUN/teacher/checkpoint_best.pt" --teacher-data "$RUN/data-bin")
    [ "$row" = word_kd ] || objective+=(--rollout-max-len-a 0 --rollout-max-len-b 50)
    ;;
esac
length=(--lr 4e-3 --max-update "${UPDATES:-2000}")
if [ "$row" != scratch ]; then
  first=$(checkpoint_of scratch checkpoint_best.pt)
  length=(--lr 2e-3 --max-update "${MORE_UPDATES:-1000}" --finetune-from-model "$first")
fi
model 2 48 96
name=$(named "$row")
stage "$name" train "$name" "${objective[@]}" "${MODEL[@]}" "${TRAINING[@]}" "${length[@]}" "$@"
