#!/usr/bin/env bash
# Let every model of $RUN continue the test set's prompts greedily, write results.json and print the table.
source "$(dirname "$0")/../common.sh"

names=()
for done in "$RUN"/.done/*; do
  name=$(basename "$done")
  case $name in raw | binarise | teachers) continue ;; esac
  names+=("$name")
  [ ! "$RUN/$name/test.out" -nt "$RUN/$name/checkpoint_best.pt" ] || continue # another call has decoded it
  imitkd-generate "$RUN/data-bin" "${PROMPTS[@]}" "${DEVICE_FLAGS[@]}" --path "$RUN/$name/checkpoint_best.pt" --beam 1 \
    --max-len-a 0 --max-len-b 50 --max-tokens 4096 --required-batch-size-multiple 1 --remove-bpe none >"$RUN/$name/test.part"
  mv "$RUN/$name/test.part" "$RUN/$name/test.out"
done
[ ${#names[@]} -gt 0 ] || die "$RUN holds no trained model; run teacher.sh and student.sh first"
PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/answers.py" score "$RUN" "${names[@]}"
