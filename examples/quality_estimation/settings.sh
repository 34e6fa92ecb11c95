# The settings of the recipe's trainings. ../common.sh sources this file.
# shellcheck shell=bash disable=SC2034
USES="SMOKE"
# Pairs of a source and a translation: for training with and without labels, for validation and for the test.
LABELLED=8000 UNLABELLED=13000 VALID=1000 TEST=2000
# The updates of the translator whose checkpoints translate: from hardly a word right to its best.
CHECKPOINTS=(50 100 200 300 500 1000)
SENTENCES=20000 # of the translator's training
if [ -n "${SMOKE:-}" ]; then
  LABELLED=60 UNLABELLED=60 VALID=30 TEST=30 CHECKPOINTS=(10 20) SENTENCES=200
fi

SCORE=(
  --num-classes 1 --regression-target --init-token 0 --separator-token 2 --max-positions 128
  # prepare.sh sorts the pairs by length, which fairseq's shuffle would undo. fairseq still shuffles the batches.
  --no-shuffle
)
OPTIMISER=(
  --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --lr-scheduler inverse_sqrt
  --required-batch-size-multiple 1 --num-workers 0 --seed "${SEED:-1}"
)
# The squared error on the validation pairs chooses checkpoint_best.pt.
VALIDATION=(
  --validate-interval-updates 100 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 100 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50
)
roberta() { # LAYERS WIDTH
  MODEL=(
    --arch roberta --encoder-layers "$1" --encoder-attention-heads 4 --encoder-embed-dim "$2"
    --encoder-ffn-embed-dim "$((2 * $2))" --max-tokens 2048 --warmup-updates 100
  )
}
STOCK=(--task sentence_prediction --criterion sentence_prediction)
UPDATES_EACH=${STUDENT_UPDATES:-600}
# sized half|eighth: the student's model, half or an eighth of the teacher's parameters.
sized() {
  case $1 in
    half) roberta 2 84 ;;
    eighth) roberta 1 40 ;;
    *) die "the size must be half or eighth, but is '$1'" ;;
  esac
  MODEL+=(--dropout 0.1 --lr 2e-3 --max-update "$UPDATES_EACH")
}
