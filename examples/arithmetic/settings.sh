# The settings of the recipe's trainings. ../common.sh sources this file.
# shellcheck shell=bash disable=SC2034
USES="SMOKE UPDATES MORE_UPDATES"
PROMPTS=(--task language_modeling_with_teacher --prompt-symbol "=")
# Greedy decoding of at most 50 symbols, in validation and everywhere else.
TRAINING=(
  "${PROMPTS[@]}" --tokens-per-sample 80 --max-tokens 2048 --num-workers 0 --seed "${SEED:-1}"
  --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --lr-scheduler inverse_sqrt --warmup-updates 200
  --eval-metrics exact --eval-bleu-args '{"beam": 1, "max_len_a": 0, "max_len_b": 50}' --eval-bleu-remove-bpe none
  --best-checkpoint-metric exact --maximize-best-checkpoint-metric
  --validate-interval-updates 250 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 250 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50
)
# model LAYERS WIDTH FEED_FORWARD: set MODEL to the flags of a language model; with SMOKE=1 to those of a tiny one.
model() {
  [ -z "${SMOKE:-}" ] || set -- 1 16 32
  MODEL=(
    --arch transformer_lm --share-decoder-input-output-embed --decoder-layers "$1" --decoder-attention-heads 4
    --decoder-embed-dim "$2" --decoder-input-dim "$2" --decoder-output-dim "$2" --decoder-ffn-embed-dim "$3" --dropout 0
  )
}
