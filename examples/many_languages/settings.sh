# The settings of the recipe's trainings. ../common.sh sources this file.
# shellcheck shell=bash disable=SC2034
USES="SMOKE UPDATES"
PAIRS=(de-en en-de de-xx)
# The tag of the target language stands before the source, and the decoder reads it first.
LANGUAGES=(
  --task translation_multi_simple_epoch_with_teacher --lang-pairs "$(IFS=,; echo "${PAIRS[*]}")" --langs "de,en,xx"
  --encoder-langtok tgt --decoder-langtok
)
TRAINING=(
  "${LANGUAGES[@]}" --sampling-method temperature --sampling-temperature 2 --seed "${SEED:-1}" --num-workers 0
  --share-all-embeddings --max-tokens 2000 --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0
  --lr-scheduler inverse_sqrt --warmup-updates 200
  --eval-bleu --eval-bleu-args '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}' --eval-bleu-remove-bpe sentencepiece
  --best-checkpoint-metric bleu --maximize-best-checkpoint-metric
  --validate-interval-updates 200 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 200 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50
)
PLAIN=(--criterion label_smoothed_cross_entropy --label-smoothing 0.1)
TEACHER_MODEL=("${TRANSFORMER_2_2_128[@]}")
STUDENT_MODEL=("${TRANSFORMER_1_1_64[@]}")
DECODING=(--max-len-a 1.2 --max-len-b 10 --remove-bpe sentencepiece)
