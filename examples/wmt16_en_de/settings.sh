# The settings of the ImitKD paper (Lin et al., EMNLP 2020) and its code. ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
SOURCE=en TARGET=de
DECODING=(--max-len-a 1.2 --max-len-b 10)
# Text is tokenised by Moses and split by the published model's merges. sacreBLEU scores detokenised text.
SUBWORDS=(--remove-bpe '@@ ')
TEXT=(--bpe subword_nmt --bpe-codes published/bpecodes --tokenizer moses)
TOKENISED_BLEU=de
[ -n "${SMOKE:-}" ] || DICTIONARY=(--srcdict "$RUN/published/dict.en.txt" --tgtdict "$RUN/published/dict.de.txt")
TRAINING=(
  --share-all-embeddings --optimizer adam --adam-betas '(0.9, 0.98)' --lr-scheduler inverse_sqrt
  --eval-bleu --eval-bleu-args '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}' --eval-bleu-detok moses
  --eval-bleu-remove-bpe '@@ ' --best-checkpoint-metric bleu --maximize-best-checkpoint-metric
  --validate-interval-updates 4000 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 4000 --keep-interval-updates 1 --no-epoch-checkpoints
)
# Only SMOKE=1 trains this teacher. Otherwise the teacher is fairseq's published model.
TEACHER_MODEL=(--arch transformer)
TEACHER_TRAINING=(--max-tokens 4096 --lr 5e-4)
# STUDENT=sru (the paper's 4 layers) or transformer (2+2 layers of 256); part of the students' names.
STUDENT=${STUDENT:-sru}
case $STUDENT in
  sru) STUDENT_MODEL=(--arch sru_wmt) ;;
  transformer) STUDENT_MODEL=(--arch transformer_imitkd_2_2) ;;
  *) die "STUDENT must be sru or transformer, but is '$STUDENT'" ;;
esac
KIND=_$STUDENT
# 15 epochs of 4.5 million pairs, 512 per batch. The paper's code uses no label smoothing, and torch's default for Adam's second
# beta: https://github.com/asappresearch/imitkd/blob/8b9fadded0e9eed7e16bf6ce6c3235f3ad5132e8/configs/wmt/vanilla.yaml#L79-L83
STUDENT_TRAINING=(
  --batch-size 512 --lr 8e-4 --warmup-updates 4000 --clip-norm 2 --dropout 0.1 --adam-betas '(0.9, 0.999)'
  --label-smoothing 0 --max-epoch 15 --max-update "${UPDATES:-132000}"
)

ROWS=(scratch seqkd imitkd imitkd_full seqkd_imitkd_full)
HEADLINES=(scratch seqkd imitkd_full)
own() {
  local rollouts=(--rollout-max-len-a 0 --rollout-max-len-b 100)
  case $1 in
    imitkd | imitkd_full) OWN=("${rollouts[@]}") ;;
    seqkd_imitkd | seqkd_imitkd_full) OWN=("${rollouts[@]}" --student-share exponential:0.5) ;;
    *) OWN=() ;;
  esac
}
