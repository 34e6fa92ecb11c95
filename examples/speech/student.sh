#!/usr/bin/env bash
# Train a student that hears commands and writes TARGET: student.sh ROW. The first three kinds of rows start from random weights.
#   scratch       cross-entropy on the data's translations
#   seqkd         cross-entropy on the text teacher's translations of the transcripts, by beam search (Kim & Rush 2016, section 3.2)
#   METHOD        any name of --criterion: the data's translations, and the text teacher, which reads the transcripts
#   then_METHOD   the same, from the weights of `scratch` of the same seed
#   continued     cross-entropy from the weights of `scratch`, the control of then_METHOD
#   matched       no targets, so all speech counts: the encoder's mean outputs learn those of the text teacher (Kim et al. 2021, first stage)
#   after_METHOD  the method, from the weights of `matched` (second stage)
#   ctc, ctc_seqkd   with TARGET=en: a student without a decoder, on the data's texts, or on those of the teacher
#   ctc_kd           on the teacher's texts, and with the teacher's distribution at the frames of each token (Gong et al. 2022)
#   SEED=2 makes ROW-seed2
source "$(dirname "$0")/../common.sh"
[ $# -gt 0 ] || die "usage: student.sh ROW [FLAGS…], ROW scratch, seqkd, continued, matched, METHOD, then_METHOD or after_METHOD"
row=$1
shift

# Write manifests whose targets are the teacher's translations of the transcripts, or what it hears.
translations() {
  mkdir -p "$RUN/seqkd-bin"
  local asked=("$RUN/text-bin" --gen-subset test1)
  [ "$TARGET" != en ] || asked=("$RUN/data-bin" "${SPEECH[@]}" --gen-subset train)
  imitkd-generate "${asked[@]}" "${DEVICE_FLAGS[@]}" --path "$RUN/teacher/checkpoint_best.pt" \
    "${DECODING[@]}" --beam 5 --max-tokens 4096 --remove-bpe none >"$RUN/seqkd-bin/train.out"
  python "$RECIPE/answers.py" join "$RUN/data-bin/train.tsv" "$RUN/seqkd-bin/train.out" "$RUN/seqkd-bin/train.tsv"
  cp "$RUN"/data-bin/{config.yaml,dict.txt,valid.tsv} "$RUN/seqkd-bin"
}

OBJECTIVE=(--criterion cross_entropy)
model 3 96
architecture=(--arch s2t_transformer "${MODEL[@]}")
first=scratch from=best method=${row#then_}
[ "$row" = "${row#after_}" ] || first=matched from=last method=${row#after_}
teacher=(--teacher-path "$RUN/teacher/checkpoint_best.pt" --teacher-data "$RUN/text-bin")
[ "$TARGET" != en ] || teacher=(--teacher-path "$RUN/teacher/checkpoint_best.pt" --teacher-data "$RUN/data-bin")
[ "$row" = "${row#ctc}" ] || architecture=(--arch s2t_ctc "${ENCODER[@]}") OBJECTIVE=(--criterion speech_ctc)
[ "$row" != ctc_kd ] || OBJECTIVE=(--criterion ctc_kd "${teacher[@]}")
[ ! -d "$RUN/labelled-bin" ] || [ "$row" = matched ] || DATA=$RUN/labelled-bin
case $row in
  scratch | continued | ctc) ;;
  seqkd | ctc_seqkd | ctc_kd)
    stage translations translations
    DATA=$RUN/seqkd-bin
    ;;
  matched) OBJECTIVE=(--criterion word_kd "${teacher[@]}" --hidden-match 1 --hidden-match-only --loss-average sentence) ;;
  *) objective_of "$method" 30 "${teacher[@]}" ;;
esac
length=(--lr 2e-3 --max-update "${UPDATES:-600}")
if [ "$row" = continued ] || [ "$row" != "$method" ]; then
  weights=$(checkpoint_of "$first" "checkpoint_$from.pt")
  length=(--lr 1e-3 --max-update "${MORE_UPDATES:-300}" --finetune-from-model "$weights")
  [ "$first" != matched ] || length+=(--lr 2e-3) # its decoder is still random
fi
name=$(named "$row")
stage "$name" train "$name" "${SPEECH[@]}" "${OBJECTIVE[@]}" "${architecture[@]}" --conv-channels 128 \
  "${OPTIMISER[@]}" "${VALIDATION[@]}" --max-tokens 5000 "${length[@]}" "$@"
