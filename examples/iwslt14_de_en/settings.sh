# The settings of the ImitKD paper (Lin et al., EMNLP 2020) and its code. Sourced by ../common.sh, which says what each name means.
# shellcheck shell=bash disable=SC2034
SOURCE=de TARGET=en
VOCABULARY=10000
DECODING=(--max-len-a 1 --max-len-b 50)
# Text is tokenised by Moses and lower-case, as fairseq's own preparation has it; sacreBLEU scores it detokenised.
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
# Of the paper is its size; its training is fairseq's for this data.
TEACHER_TRAINING=(
  --max-tokens 4096 --lr 5e-4 --warmup-updates 4000 --dropout 0.3 --weight-decay 0.0001
  --max-update "${TEACHER_UPDATES:-80000}"
)
# STUDENT=sru (the paper's SRU-2), sru_3, or transformer (its 2+2 layers of 256), part of the students' names.
STUDENT=${STUDENT:-sru}
case $STUDENT in
  sru) STUDENT_MODEL=(--arch sru_2) ;;
  sru_3) STUDENT_MODEL=(--arch sru_3) ;;
  transformer) STUDENT_MODEL=(--arch transformer_imitkd_2_2) ;;
  *) die "STUDENT must be sru, sru_3 or transformer, but is '$STUDENT'" ;;
esac
KIND=_$STUDENT
# As in the paper's code there is no label smoothing, and Adam's second beta is torch's.
STUDENT_TRAINING=(
  --batch-size 128 --lr 1.4e-3 --warmup-updates 5000 --clip-norm 5 --dropout 0.1 --adam-betas '(0.9, 0.999)'
  --label-smoothing 0 --max-update "${UPDATES:-80000}"
)

ROWS=(
  scratch word_kd seqkd seq_inter imitkd imitkd_full seqkd_imitkd seqkd_imitkd_full gkd f_distill f_distill_tvd annealing_kd distillm
)
HEADLINES=(scratch seqkd imitkd_full)
own() {
  # Rollouts of four batches are decoded at once (the paper's pooling) and end at 125 tokens.
  local rollouts=(--rollout-pool-updates 4 --rollout-max-len-a 0 --rollout-max-len-b 125)
  case $1 in
    imitkd | seqkd_imitkd) OWN=("${rollouts[@]}" --rollout-policy sampling --rollout-topk 5) ;;
    imitkd_full | seqkd_imitkd_full) OWN=("${rollouts[@]}") ;;
    # Its paper fine-tunes a little, at a small rate.
    seq_inter) OWN=(--lr 1e-4 --warmup-updates 500 --max-update "${SEQ_INTER_UPDATES:-5000}") ;;
    # Both go on from a student that can write.
    gkd | distillm) OWN=(--finetune-from-model "$(trained scratch)") ;;
    *) OWN=() ;;
  esac
}
