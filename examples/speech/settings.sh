# The settings of the recipe's trainings. ../common.sh sources this file.
# shellcheck shell=bash disable=SC2034
USES="SMOKE UPDATES MORE_UPDATES"
# What the students write: de (a German translation), frame (the command's intent and slots) or en (the words that they hear, and
# the teacher hears them too). Each needs a RUN of its own.
TARGET=${TARGET:-de}
case $TARGET in de | frame | en) ;; *) die "TARGET must be de, frame or en, but is '$TARGET'" ;; esac
[ "$(cat "$RUN/target" 2>/dev/null || echo "$TARGET")" = "$TARGET" ] || die "$RUN is of TARGET=$(cat "$RUN/target"); use another RUN=DIR"
SPEECH=(--task speech_to_text_with_teacher)
# Greedy decoding of at most 30 words, in validation and everywhere else.
DECODING=(--beam 1 --max-len-a 0 --max-len-b 30 --required-batch-size-multiple 1)
OPTIMISER=(
  --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --lr-scheduler inverse_sqrt --warmup-updates 100
  --num-workers 0 --validate-interval-updates 200 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 200 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50 --seed "${SEED:-1}"
)
VALIDATION=(
  --eval-metrics chrf --eval-bleu-args '{"beam": 1, "max_len_a": 0, "max_len_b": 30}' --eval-bleu-remove-bpe none
  --best-checkpoint-metric chrf --maximize-best-checkpoint-metric
)
# model ENCODER_LAYERS WIDTH: set ENCODER and MODEL to the sizes of a transformer; with SMOKE=1 to those of a tiny one.
model() {
  [ -z "${SMOKE:-}" ] || set -- 1 16
  ENCODER=(--encoder-layers "$1" --encoder-attention-heads 4 --encoder-embed-dim "$2" --encoder-ffn-embed-dim "$((2 * $2))" --dropout 0.1)
  MODEL=(
    "${ENCODER[@]}" --decoder-layers 2 --decoder-attention-heads 4 --decoder-embed-dim "$2" --decoder-ffn-embed-dim "$((2 * $2))"
    --share-decoder-input-output-embed
  )
}
