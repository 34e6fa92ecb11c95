# Models of the made-up languages and their training. Source it after common.sh.
# shellcheck shell=bash disable=SC2034
SEED=${SEED:-1}
[ "$(cat "$RUN/seed" 2>/dev/null || echo "$SEED")" = "$SEED" ] ||
  die "$RUN holds a run with SEED=$(cat "$RUN/seed"); use another RUN=DIR for SEED=$SEED"
echo "$SEED" >"$RUN/seed"

TEACHER_MODEL=(
  --encoder-layers 2 --decoder-layers 2 --encoder-attention-heads 4 --decoder-attention-heads 4
  --encoder-embed-dim 64 --decoder-embed-dim 64 --encoder-ffn-embed-dim 128 --decoder-ffn-embed-dim 128
)
STUDENT_MODEL=(
  --encoder-layers 1 --decoder-layers 1 --encoder-attention-heads 2 --decoder-attention-heads 2
  --encoder-embed-dim 32 --decoder-embed-dim 32 --encoder-ffn-embed-dim 64 --decoder-ffn-embed-dim 64
)

# beside COMMAND…: run a command in the background as process BESIDE, in its own process group, which ends with the script.
beside() {
  set -m
  "$@" &
  set +m
  BESIDE=$!
}
# awaited COMMAND…: run a command and wait for it. A foreground command would survive a kill of the script.
awaited() {
  beside "$@"
  wait "$BESIDE"
}
trap end_of_all EXIT
end_of_all() {
  local group
  for group in $(jobs -p); do kill -- "-$group" 2>/dev/null || true; done
}

# fit NAME UPDATES FLAGS…: train a model on $DATA from the start in $RUN/NAME; what it prints is in $RUN/NAME/console.log.
# Such small models gain nothing from a second thread, so two of them train side by side with one core each.
export OMP_NUM_THREADS=1
fit() {
  local name=$1 updates=$2
  shift 2
  local command=(
    imitkd-train "$DATA" "${DEVICE_FLAGS[@]}" --save-dir "$RUN/$name" --seed "$SEED"
    --arch transformer --dropout 0 --share-decoder-input-output-embed --max-tokens 2048 --num-workers 0
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0
    --lr-scheduler polynomial_decay --warmup-updates 50 --total-num-update "$updates" --max-update "$updates"
    --no-epoch-checkpoints --no-save-optimizer-state --save-interval 1000 --validate-interval 1000
    --log-format simple --log-interval 10 "$@"
  )
  if [ -n "${DRY_RUN:-}" ]; then printf '%s\n' "${command[*]@Q}"; return; fi
  rm -rf "${RUN:?}/$name"
  mkdir -p "$RUN/$name"
  noted "$name" "${command[@]}" 2>&1 |
    python "$REPO/examples/quickstart/progress.py" "$RUN/$name/console.log" "$name" "$updates"
}
