# The settings of the recipe's trainings. ../common.sh sources this file.
# shellcheck shell=bash disable=SC2034
CLASSES=(
  --num-classes 2 --init-token 0 --max-positions 128 --shorten-method truncate
  # prepare.sh sorts the sentences by length, which fairseq's shuffle would undo. fairseq still shuffles the batches:
  # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/tasks/sentence_prediction.py#L261-L267
  --no-shuffle
)
OPTIMISER=(
  --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --lr-scheduler inverse_sqrt
  --required-batch-size-multiple 1 --num-workers 0 --seed "${SEED:-1}"
)
# Accuracy on the dev set chooses checkpoint_best.pt.
VALIDATION=(
  --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric
  --validate-interval-updates 200 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 200 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50
)
TEACHER_MODEL=(
  --arch roberta --encoder-layers 2 --encoder-attention-heads 4 --encoder-embed-dim 256 --encoder-ffn-embed-dim 1024
)
STUDENT_MODEL=(
  --arch roberta --encoder-layers 1 --encoder-attention-heads 4 --encoder-embed-dim 64 --encoder-ffn-embed-dim 256
)
# The same for all students.
STUDENT=(
  "${STUDENT_MODEL[@]}" --dropout 0.1 --max-tokens 1024 --lr 2e-3 --warmup-updates 200
  --max-update "${STUDENT_UPDATES:-1200}"
)
STOCK=(--task sentence_prediction --criterion sentence_prediction)
