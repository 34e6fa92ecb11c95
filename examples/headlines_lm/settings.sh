# The settings of the recipe's trainings. ../common.sh sources this file, and ../language_model.sh explains the names.
# shellcheck shell=bash disable=SC2034
# shellcheck source=../language_model.sh
source "$REPO/examples/language_model.sh"
# The text of ../reuters_headlines: the first WORDS words of a body, and its headline.
SOURCE=src TARGET=tgt WORDS=60 VOCABULARY=4000 CHECK=(--max-ratio 0)
PROMPTS=(--task language_modeling_with_teacher --prompt-symbol "TL;DR")
LONGEST=40
REMOVE_BPE=sentencepiece
TRAINING=(
  "${PROMPTS[@]}" --tokens-per-sample 200 --max-tokens 4096 --num-workers 0
  --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --lr-scheduler inverse_sqrt --warmup-updates 200 --lr 4e-3
  --eval-metrics rouge-l --eval-bleu-args '{"beam": 1, "max_len_a": 0, "max_len_b": 40}' --eval-bleu-remove-bpe sentencepiece
  --best-checkpoint-metric rougeL --maximize-best-checkpoint-metric
  --validate-interval-updates 250 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 250 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50
)
TEACHER_SIZE=(2 192 768)
STUDENT_SIZE=(1 64 256)
