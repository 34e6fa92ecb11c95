#!/usr/bin/env bash
# Let every model of $RUN decode the test commands, a teacher of text from their text; write results.json and print the table.
# With TARGET=en each one decodes them three times, and its highest speed counts.
source "$(dirname "$0")/../common.sh"

names=()
for done in "$RUN"/.done/*; do
  name=$(basename "$done")
  case $name in commands | binarise | speech | labelled | translations | matched*) continue ;; esac
  names+=("$name")
  [ ! "$RUN/$name/test.out" -nt "$RUN/$name/checkpoint_best.pt" ] || continue # another call has decoded it
  data=("$RUN/data-bin" "${SPEECH[@]}")
  rounds=3
  if [ "$TARGET" != en ]; then
    rounds=1
    [ "$name" != teacher ] || data=("$RUN/text-bin")
  fi
  for ((round = 0; round < rounds; round++)); do
    imitkd-generate "${data[@]}" "${DEVICE_FLAGS[@]}" --path "$RUN/$name/checkpoint_best.pt" "${DECODING[@]}" --max-tokens 5000 \
      --remove-bpe none >"$RUN/$name/test.part" 2>>"$RUN/$name/test.log"
  done
  mv "$RUN/$name/test.part" "$RUN/$name/test.out"
done
[ ${#names[@]} -gt 0 ] || die "$RUN holds no trained model; run teacher.sh and student.sh first"
PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/answers.py" score "$RUN" "$TARGET" "${names[@]}"
