# What the recipe's trainings share. Sourced after ../common.sh.
# shellcheck shell=bash disable=SC2034
OPTIMISER=(
  --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0
  --lr-scheduler inverse_sqrt --max-tokens 4096 --seed "${SEED:-1}"
)
# Every 250 updates: greedy sacreBLEU on the validation set chooses checkpoint_best.pt.
VALIDATION=(
  --eval-bleu --eval-bleu-args '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}' --eval-bleu-remove-bpe sentencepiece
  --best-checkpoint-metric bleu --maximize-best-checkpoint-metric
  --validate-interval-updates 250 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 250 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50
)
TEACHER_MODEL=(
  --arch transformer --share-all-embeddings
  --encoder-layers 3 --decoder-layers 3 --encoder-attention-heads 4 --decoder-attention-heads 4
  --encoder-embed-dim 256 --decoder-embed-dim 256 --encoder-ffn-embed-dim 1024 --decoder-ffn-embed-dim 1024
)
# STUDENT=sru: recurrent students of about that size, which get names of their own (scratch_sru, imitkd_sru, …).
case ${STUDENT:-transformer} in
  transformer)
    KIND=
    STUDENT_MODEL=(
      --arch transformer --share-all-embeddings
      --encoder-layers 1 --decoder-layers 1 --encoder-attention-heads 4 --decoder-attention-heads 4
      --encoder-embed-dim 64 --decoder-embed-dim 64 --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256
    ) ;;
  sru)
    KIND=_sru
    STUDENT_MODEL=(
      --arch sru_2 --share-all-embeddings --encoder-embed-dim 64 --encoder-hidden-size 64 --decoder-hidden-size 128
    ) ;;
  *) die "STUDENT must be transformer or sru, but is '$STUDENT'" ;;
esac
# Students that go on from the one trained on references. Not --restore-file: that one starts over after a kill.
CONTINUE=(
  --finetune-from-model "$RUN/scratch$KIND/checkpoint_best.pt"
  --lr "${DISTILL_LR:-2e-3}" --warmup-updates 100 --max-update "${DISTILL_UPDATES:-800}" --max-tokens "${DISTILL_TOKENS:-4096}"
  --validate-interval-updates "${DISTILL_VALIDATE:-250}" --save-interval-updates "${DISTILL_VALIDATE:-250}"
)
