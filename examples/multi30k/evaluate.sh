#!/usr/bin/env bash
# The table: greedy translations of test2016 by every model that is there, scored with sacreBLEU. Writes results.json.
source "$(dirname "$0")/../common.sh"

# The teacher and the student first, then everything that was trained from it.
models=()
for done in "$RUN"/.done/*; do
  name=$(basename "$done")
  case $name in raw | encode | binarise | data_* | teacher | scratch) ;; *) models+=("$name") ;; esac
done
for name in scratch teacher; do
  [ -e "$RUN/.done/$name" ] && models=("$name" "${models[@]}")
done
[ ${#models[@]} -gt 0 ] || die "no trained model in $RUN: run teacher.sh, student.sh and distill.sh first"

# fairseq drops a last batch whose size is no multiple of --required-batch-size-multiple, so that must be 1 here.
translate() {
  local name=$1
  imitkd-generate "$RUN/data-bin" "${DEVICE_FLAGS[@]}" --path "$RUN/$name/checkpoint_best.pt" --gen-subset test \
    --beam 1 --max-len-a 1.2 --max-len-b 10 --max-tokens 4096 --required-batch-size-multiple 1 \
    --remove-bpe sentencepiece >"$RUN/$name/test.out" 2>"$RUN/$name/test.err" \
    || { tail -n 5 "$RUN/$name/test.err" >&2; die "could not decode with $name"; }
  grep '^D-' "$RUN/$name/test.out" | sed 's/^D-//' | sort -n | cut -f3 >"$RUN/$name/test.hyp" \
    || die "no translations in $RUN/$name/test.out"
}

for name in "${models[@]}"; do
  [ "$RUN/$name/test.hyp" -nt "$RUN/$name/checkpoint_best.pt" ] && continue # done before
  say "translate test2016 with $name"
  translate "$name"
done
python "$REPO/examples/score.py" --run "$RUN" --reference "$RUN/raw/test2016.en" "${models[@]}"
