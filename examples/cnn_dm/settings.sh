# The settings of the ImitKD paper (Lin et al., EMNLP 2020) and its code. ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
SOURCE=source TARGET=target
VOCABULARY=32000
DECODING=(--max-len-b 99 --no-repeat-ngram-size 3)
CHECK=(--max-ratio 0) # summaries are shorter than their texts
EVALUATION=(--metrics rouge --no-ter)
PLAIN=(--task translation_with_teacher --criterion label_smoothed_cross_entropy --label-smoothing 0.1)
# Greedy ROUGE-1 on the validation set chooses checkpoint_best.pt.
TRAINING=(
  --share-all-embeddings --optimizer adam --adam-betas '(0.9, 0.98)' --lr-scheduler inverse_sqrt
  --eval-metrics rouge-1 --eval-bleu-args '{"beam": 1, "max_len_b": 99}' --eval-bleu-remove-bpe sentencepiece
  --best-checkpoint-metric rouge1 --maximize-best-checkpoint-metric
  --validate-interval-updates 10000 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 10000 --keep-interval-updates 1 --no-epoch-checkpoints
)
TEACHER_MODEL=(
  --arch transformer
  --encoder-layers 6 --decoder-layers 6 --encoder-attention-heads 8 --decoder-attention-heads 8
  --encoder-embed-dim 512 --decoder-embed-dim 512 --encoder-ffn-embed-dim 2048 --decoder-ffn-embed-dim 2048
)
# The size is the paper's.
TEACHER_TRAINING=(
  --max-tokens 8192 --lr 7e-4 --warmup-updates 4000 --dropout 0.2 --max-update "${TEACHER_UPDATES:-100000}"
)
# STUDENT=sru (the paper's) or transformer (2+2 layers of 256); part of the students' names.
STUDENT=${STUDENT:-sru}
case $STUDENT in
  sru) STUDENT_MODEL=(--arch sru_cnn_dm) ;;
  transformer) STUDENT_MODEL=(--arch transformer_imitkd_2_2) ;;
  *) die "STUDENT must be sru or transformer, but is '$STUDENT'" ;;
esac
KIND=_$STUDENT
# The paper's code uses torch's default for Adam's second beta: https://github.com/asappresearch/imitkd/blob/8b9fadded0e9eed7e16bf6ce6c3235f3ad5132e8/configs/cnndm/vanilla.yaml#L76-L78
STUDENT_TRAINING=(
  --batch-size 32 --lr 2.2e-3 --warmup-updates 2000 --clip-norm 5 --dropout 0.1 --adam-betas '(0.9, 0.999)'
  --max-update "${UPDATES:-200000}"
)

ROWS=(scratch seqkd imitkd imitkd_full seqkd_imitkd_full)
HEADLINES=(scratch seqkd imitkd_full)
own() {
  case $1 in
    *imitkd*) OWN=(--student-share exponential:0.1 --rollout-pool-updates 4 --rollout-max-len-a 0 --rollout-max-len-b 99) ;;
    *) OWN=() ;;
  esac
}
