#!/usr/bin/env bash
# The whole idea in minutes on a CPU: two made-up languages, a teacher, a student, the student by ImitKD, a table.
#   SEED=N   other languages, other sentences, other initial weights (default 1)
source "$(dirname "$0")/../common.sh"
SEED=${SEED:-1}
TEACHER_UPDATES=2000 STUDENT_UPDATES=1000 MORE_UPDATES=400
DATA=$RUN/data-bin
[ "$(cat "$RUN/seed" 2>/dev/null || echo "$SEED")" = "$SEED" ] ||
  die "$RUN holds a run with SEED=$(cat "$RUN/seed"): give SEED=$SEED another RUN=DIR"
echo "$SEED" >"$RUN/seed"

TEACHER_MODEL=(
  --encoder-layers 2 --decoder-layers 2 --encoder-attention-heads 4 --decoder-attention-heads 4
  --encoder-embed-dim 64 --decoder-embed-dim 64 --encoder-ffn-embed-dim 128 --decoder-ffn-embed-dim 128
)
STUDENT_MODEL=(
  --encoder-layers 1 --decoder-layers 1 --encoder-attention-heads 2 --decoder-attention-heads 2
  --encoder-embed-dim 32 --decoder-embed-dim 32 --encoder-ffn-embed-dim 64 --decoder-ffn-embed-dim 64
)
# From the scratch student's weights, with a new optimiser: what both of its successors start from.
FROM_SCRATCH_STUDENT=(
  --restore-file "$RUN/scratch/checkpoint_last.pt"
  --reset-optimizer --reset-lr-scheduler --reset-dataloader --reset-meters
)

data() {
  python "$RECIPE/language.py" "$RUN/text" --seed "$SEED"
  fairseq-preprocess --source-lang src --target-lang tgt --destdir "$DATA" \
    --trainpref "$RUN/text/train" --validpref "$RUN/text/valid" --testpref "$RUN/text/test" >"$RUN/preprocess.log" 2>&1 ||
    { tail -5 "$RUN/preprocess.log" >&2; return 1; }
}

# fit NAME UPDATES FLAGS…: one training, from its beginning, in $RUN/NAME; the full log is $RUN/NAME/train.log.
fit() {
  local name=$1 updates=$2
  shift 2
  rm -rf "${RUN:?}/$name"
  mkdir -p "$RUN/$name"
  imitkd-train "$DATA" "${DEVICE_FLAGS[@]}" --save-dir "$RUN/$name" --seed "$SEED" \
    --arch transformer --dropout 0 --share-decoder-input-output-embed --max-tokens 2048 --num-workers 0 \
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 \
    --lr-scheduler polynomial_decay --warmup-updates 50 --total-num-update "$updates" --max-update "$updates" \
    --no-epoch-checkpoints --no-save-optimizer-state --save-interval 1000 --validate-interval 1000 \
    --log-format simple --log-interval 10 "$@" 2>&1 |
    python "$RECIPE/progress.py" "$RUN/$name/train.log" "$name" "$updates"
}

PLAIN=(--task translation --criterion cross_entropy)
IMITKD=(--task translation_with_teacher --teacher-path "$RUN/teacher/checkpoint_last.pt" --criterion imitkd)
STUDENT=("${STUDENT_MODEL[@]}" --lr 1e-2)

stage data data
# Models this small gain nothing from a second thread, so the teacher and the student train side by side, a core each.
export OMP_NUM_THREADS=1
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
stage teacher fit teacher "$TEACHER_UPDATES" "${PLAIN[@]}" "${TEACHER_MODEL[@]}" --lr 5e-3 &
stage scratch fit scratch "$STUDENT_UPDATES" "${PLAIN[@]}" "${STUDENT[@]}"
stage continued fit continued "$MORE_UPDATES" "${PLAIN[@]}" "${STUDENT[@]}" "${FROM_SCRATCH_STUDENT[@]}"
wait $! # the teacher
stage imitkd fit imitkd "$MORE_UPDATES" "${IMITKD[@]}" "${STUDENT[@]}" "${FROM_SCRATCH_STUDENT[@]}"
stage evaluate python "$RECIPE/evaluate.py" "$RUN" --seed "$SEED" "${DEVICE_FLAGS[@]}"
printf '\n'
cat "$RUN/table.txt"
printf 'Figure: %s\nThis call took %d s.\n' "$RUN/quickstart.png" "$SECONDS"
