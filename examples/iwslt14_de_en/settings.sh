# The settings of the ImitKD paper (Lin et al., EMNLP 2020) and its code. ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
SOURCE=de TARGET=en
VOCABULARY=10000
DECODING=(--max-len-a 1 --max-len-b 50)
# Text is lower-case and tokenised by Moses, as in fairseq's preparation (see ted.py). sacreBLEU scores detokenised text.
TEXT=(--bpe sentencepiece --sentencepiece-model spm.model --tokenizer moses)
TOKENISED_BLEU=en
# Greedy BLEU on the validation set chooses checkpoint_best.pt.
TRAINING=(
  --share-all-embeddings --optimizer adam --adam-betas '(0.9, 0.98)' --lr-scheduler inverse_sqrt
  --eval-bleu --eval-bleu-args '{"beam": 1, "max_len_a": 1, "max_len_b": 50}' --eval-bleu-detok moses
  --eval-bleu-remove-bpe sentencepiece --best-checkpoint-metric bleu --maximize-best-checkpoint-metric
  --validate-interval-updates 2000 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 2000 --keep-interval-updates 1 --no-epoch-checkpoints
)
TEACHER_MODEL=(
  --arch transformer
  --encoder-layers 8 --decoder-layers 8 --encoder-attention-heads 4 --decoder-attention-heads 4
  --encoder-embed-dim 256 --decoder-embed-dim 256 --encoder-ffn-embed-dim 1024 --decoder-ffn-embed-dim 1024
)
# The size is the paper's; the training is fairseq's for this data:
# https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/examples/translation/README.md#L127-L130
TEACHER_TRAINING=(
  --max-tokens 4096 --lr 5e-4 --warmup-updates 4000 --dropout 0.3 --weight-decay 0.0001
  --max-update "${TEACHER_UPDATES:-80000}"
)
# STUDENT=sru (the paper's SRU-2), sru_3 or transformer (2+2 layers of 256); part of the students' names.
STUDENT=${STUDENT:-sru}
case $STUDENT in
  sru) STUDENT_MODEL=(--arch sru_2) ;;
  sru_3) STUDENT_MODEL=(--arch sru_3) ;;
  transformer) STUDENT_MODEL=(--arch transformer_imitkd_2_2) ;;
  *) die "STUDENT must be sru, sru_3 or transformer, but is '$STUDENT'" ;;
esac
KIND=_$STUDENT
# The paper's code uses no label smoothing, and torch's default for Adam's second beta:
# https://github.com/asappresearch/imitkd/blob/8b9fadded0e9eed7e16bf6ce6c3235f3ad5132e8/configs/iwslt/rnn/vanilla.yaml#L81-L85
STUDENT_TRAINING=(
  --batch-size 128 --lr 1.4e-3 --warmup-updates 5000 --clip-norm 5 --dropout 0.1 --adam-betas '(0.9, 0.999)'
  --label-smoothing 0 --max-update "${UPDATES:-80000}"
)

ROWS=(
  scratch word_kd seqkd seq_inter imitkd imitkd_full seqkd_imitkd seqkd_imitkd_full gkd f_distill f_distill_tvd annealing_kd distillm
)
HEADLINES=(scratch seqkd imitkd_full)
own() {
  # Four batches are decoded together (the paper's pooling), and rollouts have at most 125 tokens.
  local rollouts=(--rollout-pool-updates 4 --rollout-max-len-a 0 --rollout-max-len-b 125)
  case $1 in
    imitkd | seqkd_imitkd) OWN=("${rollouts[@]}" --rollout-policy sampling --rollout-topk 5) ;;
    imitkd_full | seqkd_imitkd_full) OWN=("${rollouts[@]}") ;;
    # Its paper fine-tunes for a short time at a small learning rate.
    seq_inter) OWN=(--lr 1e-4 --warmup-updates 500 --max-update "${SEQ_INTER_UPDATES:-5000}") ;;
    # Both start from a trained student.
    gkd | distillm) OWN=(--finetune-from-model "$(trained scratch)") ;;
    *) OWN=() ;;
  esac
}
