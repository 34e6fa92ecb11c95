# The settings of the recipe's trainings. ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
SOURCE=src TARGET=tgt
VOCABULARY= # the text is words
SUBWORDS=(--remove-bpe none)
DECODING=(--max-len-a 1.2 --max-len-b 10)
EVALUATION=(--bleu-tokenize none --probe-sentences 1000)
# This task writes metrics.jsonl, which evidence.py reads.
PLAIN=(--task translation_with_teacher --criterion cross_entropy)
# BLEU of the validation set, with greedy decoding, chooses checkpoint_best.pt. A training ends when PATIENCE validations in a
# row bring no better one.
TRAINING=(
  "${SMALL_TRAINING[@]}" --max-tokens 2048 --num-workers 0 --warmup-updates 100
  --validate-interval-updates 500 --save-interval-updates 500 --patience "${PATIENCE:-8}"
  --eval-metrics bleu --eval-bleu-args '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}'
  --eval-bleu-remove-bpe none --eval-tokenized-bleu
  --best-checkpoint-metric bleu --maximize-best-checkpoint-metric
)
TEACHER_MODEL=(
  --arch transformer
  --encoder-layers 2 --decoder-layers 2 --encoder-attention-heads 4 --decoder-attention-heads 4
  --encoder-embed-dim 64 --decoder-embed-dim 64 --encoder-ffn-embed-dim 128 --decoder-ffn-embed-dim 128
)
TEACHER_TRAINING=(--dropout 0.1 --lr 5e-3 --max-update "${TEACHER_UPDATES:-12000}")
# This recipe has one kind of student.
[ "${STUDENT:-transformer}" = transformer ] || die "STUDENT must be transformer, but is '$STUDENT'"
STUDENT_MODEL=(
  --arch transformer
  --encoder-layers 1 --decoder-layers 1 --encoder-attention-heads 2 --decoder-attention-heads 2
  --encoder-embed-dim 32 --decoder-embed-dim 32 --encoder-ffn-embed-dim 64 --decoder-ffn-embed-dim 64
)
STUDENT_TRAINING=(--dropout 0 --lr 1e-2 --max-update "${UPDATES:-60000}")

ROWS=(scratch seqkd word_kd imitkd imitkd_full)
HEADLINES=(scratch seqkd imitkd_full)
