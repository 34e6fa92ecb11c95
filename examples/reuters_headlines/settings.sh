# What the recipe's trainings are. Sourced by ../common.sh, which says what each name means.
# shellcheck shell=bash disable=SC2034
SOURCE=src TARGET=tgt
VOCABULARY=4000
WORDS=60 # of a body that are read: its beginning says what a headline says
DECODING=(--max-len-b 40)
CHECK=(--max-ratio 0) # a summary is shorter than its text
EVALUATION=(--metrics rouge)
PLAIN=(--task translation_with_teacher --criterion label_smoothed_cross_entropy --label-smoothing 0.1)
# Greedy ROUGE-L on the validation set chooses checkpoint_best.pt.
TRAINING=(
  --share-all-embeddings --max-tokens 4096
  --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --lr-scheduler inverse_sqrt --warmup-updates 500
  --eval-metrics rouge-l --eval-bleu-args '{"beam": 1, "max_len_b": 40}' --eval-bleu-remove-bpe sentencepiece
  --best-checkpoint-metric rougeL --maximize-best-checkpoint-metric
  --validate-interval-updates 250 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 250 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50
)
TEACHER_MODEL=("${TRANSFORMER_3_3_256[@]}")
TEACHER_TRAINING=(--dropout 0.3 --lr 2e-3 --max-update "${TEACHER_UPDATES:-2000}")
# The one kind of student here.
[ "${STUDENT:-transformer}" = transformer ] || die "STUDENT must be transformer, but is '$STUDENT'"
STUDENT_MODEL=("${TRANSFORMER_1_1_64[@]}")
STUDENT_TRAINING=(--dropout 0.1 --lr 4e-3 --max-update "${UPDATES:-1500}")

ROWS=(scratch seqkd imitkd imitkd_full)
HEADLINES=(scratch seqkd imitkd_full)
