# The settings of the recipe's trainings. ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
SOURCE=de TARGET=en
VOCABULARY=4000
DECODING=(--max-len-a 1.2 --max-len-b 10)
EVALUATION=(--probe-sentences 1000)
# This task writes metrics.jsonl, which evidence.py reads.
PLAIN=(--task translation_with_teacher --criterion label_smoothed_cross_entropy --label-smoothing 0.1)
# Greedy sacreBLEU on the validation set chooses checkpoint_best.pt.
TRAINING=(
  "${SMALL_TRAINING[@]}"
  --eval-bleu --eval-bleu-args '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}' --eval-bleu-remove-bpe sentencepiece
  --best-checkpoint-metric bleu --maximize-best-checkpoint-metric
)
# With PATIENCE=N, as evidence.toml sets it, a training ends when N validations in a row bring no better score.
[ -z "${PATIENCE:-}" ] || TRAINING+=(--patience "$PATIENCE")
TEACHER_MODEL=("${TRANSFORMER_3_3_256[@]}")
TEACHER_TRAINING=(--dropout 0.2 --lr 2e-3 --max-update "${TEACHER_UPDATES:-2000}")
# STUDENT=transformer (1+1 layers, 64 dimensions) or wide (2+2 layers, 128 dimensions; part of the students' names)
case ${STUDENT:-transformer} in
  transformer) STUDENT_MODEL=("${TRANSFORMER_1_1_64[@]}") ;;
  wide)
    STUDENT_MODEL=("${TRANSFORMER_2_2_128[@]}")
    [ -n "${AS:-}" ] || KIND=_wide
    ;;
  *) die "STUDENT must be transformer or wide, but is '$STUDENT'" ;;
esac
STUDENT_TRAINING=(--dropout 0.1 --lr 4e-3 --max-update "${UPDATES:-1500}")

ROWS=(scratch seqkd word_kd imitkd imitkd_full gkd seqkd_imitkd_full)
HEADLINES=(scratch seqkd imitkd_full)
own() {
  case $1 in
    # Its paper starts from a trained student. Here the student learns from the references first.
    gkd) OWN=(--student-share "constant:1,warmup=0.4") ;;
    *) OWN=() ;;
  esac
}
