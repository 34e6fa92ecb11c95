#!/usr/bin/env bash
# Let every model of $RUN translate the test commands, the teacher from their text; write results.json and print the table.
source "$(dirname "$0")/../common.sh"

names=()
for done in "$RUN"/.done/*; do
  name=$(basename "$done")
  case $name in commands | binarise | speech | translations | matched*) continue ;; esac
  names+=("$name")
  [ ! "$RUN/$name/test.out" -nt "$RUN/$name/checkpoint_best.pt" ] || continue # another call has decoded it
  data=("$RUN/data-bin" "${SPEECH[@]}")
  [ "$name" != teacher ] || data=("$RUN/text-bin")
  imitkd-generate "${data[@]}" "${DEVICE_FLAGS[@]}" --path "$RUN/$name/checkpoint_best.pt" "${DECODING[@]}" --max-tokens 5000 \
    --remove-bpe none >"$RUN/$name/test.part"
  mv "$RUN/$name/test.part" "$RUN/$name/test.out"
done
[ ${#names[@]} -gt 0 ] || die "$RUN holds no trained model; run teacher.sh and student.sh first"
PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/answers.py" score "$RUN" "$TARGET" "${names[@]}"
