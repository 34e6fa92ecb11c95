# The settings of the recipe's trainings. ../common.sh sources this file, and ../language_model.sh explains the names.
# shellcheck shell=bash disable=SC2034
# shellcheck source=../language_model.sh
source "$REPO/examples/language_model.sh"
PROMPTS=(--task language_modeling_with_teacher --prompt-symbol "=")
LONGEST=50
REMOVE_BPE=none
TRAINING=(
  "${PROMPTS[@]}" --tokens-per-sample 80 --max-tokens 2048 --num-workers 0
  --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --lr-scheduler inverse_sqrt --warmup-updates 200 --lr 4e-3
  --eval-metrics exact --eval-bleu-args '{"beam": 1, "max_len_a": 0, "max_len_b": 50}' --eval-bleu-remove-bpe none
  --best-checkpoint-metric exact --maximize-best-checkpoint-metric
  --validate-interval-updates 250 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 250 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50
)
TEACHER_SIZE=(2 96 384)
STUDENT_SIZE=(2 48 96)
