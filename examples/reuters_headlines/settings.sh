# The settings of the recipe's trainings. ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
SOURCE=src TARGET=tgt
VOCABULARY=4000
WORDS=60 # words read of a body; its beginning holds what a headline says
DECODING=(--max-len-b 40)
CHECK=(--max-ratio 0) # summaries are shorter than their texts
EVALUATION=(--metrics rouge --probe-sentences 1000)
PLAIN=(--task translation_with_teacher --criterion label_smoothed_cross_entropy --label-smoothing 0.1)
# Greedy ROUGE-L on the validation set chooses checkpoint_best.pt.
TRAINING=(
  "${SMALL_TRAINING[@]}"
  --eval-metrics rouge-l --eval-bleu-args '{"beam": 1, "max_len_b": 40}' --eval-bleu-remove-bpe sentencepiece
  --best-checkpoint-metric rougeL --maximize-best-checkpoint-metric
)
# With PATIENCE=N, as evidence.toml sets it, a training ends when N validations in a row bring no better score.
[ -z "${PATIENCE:-}" ] || TRAINING+=(--patience "$PATIENCE")
TEACHER_MODEL=("${TRANSFORMER_3_3_256[@]}")
TEACHER_TRAINING=(--dropout 0.1 --lr 7e-4 --max-update "${TEACHER_UPDATES:-2500}")
# STUDENT=transformer (1+1 layers, 64 dimensions) or wide (2+2 layers, 128 dimensions; part of the students' names)
case ${STUDENT:-transformer} in
  transformer) STUDENT_MODEL=("${TRANSFORMER_1_1_64[@]}") ;;
  wide)
    STUDENT_MODEL=("${TRANSFORMER_2_2_128[@]}")
    [ -n "${AS:-}" ] || KIND=_wide
    ;;
  *) die "STUDENT must be transformer or wide, but is '$STUDENT'" ;;
esac
DISTILLATION=(--teacher-encoder-cache 2GB) # holds all batches of an epoch, so the teacher encodes each once
STUDENT_TRAINING=(--dropout 0.1 --lr 4e-3 --max-update "${UPDATES:-2500}")

ROWS=(scratch seqkd imitkd imitkd_full)
HEADLINES=(scratch seqkd imitkd_full)
