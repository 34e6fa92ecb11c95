#!/usr/bin/env bash
# Learn two tasks in sequence, each with its own teacher: does the student still know the first after the second?
#   SEED=N   seed of languages, sentences and initial weights (default: 1)
source "$(dirname "$0")/../common.sh"
source "$REPO/examples/quickstart/models.sh"
TEACHER_UPDATES=${TEACHER_UPDATES:-2000} STUDENT_UPDATES=${STUDENT_UPDATES:-1000} MORE_UPDATES=${MORE_UPDATES:-400} TASK_UPDATES=${TASK_UPDATES:-1000}
REPLAYED=5000 # of the first task's 20,000 sentences, in the second task's training

# first, second: a pair of languages each. both: the second with the replayed part of the first. All share one dictionary per side.
data() {
  python "$REPO/fairseq_imitkd/pipeline/made_up.py" "$RUN/text/first" --seed "$SEED"
  python "$REPO/fairseq_imitkd/pipeline/made_up.py" "$RUN/text/second" --seed "$((SEED + 1000))"
  rm -rf "$RUN/data-bin" # fairseq-preprocess refuses a folder that a killed call left incomplete
  mkdir -p "$RUN/text/both" "$RUN/text/all"
  for side in src tgt; do
    head -n "$REPLAYED" "$RUN/text/first/train.$side" | cat - "$RUN/text/second/train.$side" >"$RUN/text/both/train.$side"
    cat "$RUN"/text/{first,second}/train.$side >"$RUN/text/all/train.$side"
    cat "$RUN"/text/{first,second}/valid.$side >"$RUN/text/both/valid.$side"
  done
  binarise all
  binarise first valid test --srcdict "$RUN/data-bin/all/dict.src.txt" --tgtdict "$RUN/data-bin/all/dict.tgt.txt"
  binarise second valid test --srcdict "$RUN/data-bin/all/dict.src.txt" --tgtdict "$RUN/data-bin/all/dict.tgt.txt"
  binarise both valid --srcdict "$RUN/data-bin/all/dict.src.txt" --tgtdict "$RUN/data-bin/all/dict.tgt.txt"
}

# binarise NAME [valid] [test] [FLAGS…]: write fairseq's data directory of a task.
binarise() {
  local name=$1 splits=()
  shift
  while [[ "${1:-}" =~ ^(valid|test)$ ]]; do splits+=("--${1}pref" "$RUN/text/$name/$1"); shift; done
  fairseq-preprocess --source-lang src --target-lang tgt --destdir "$RUN/data-bin/$name" \
    --trainpref "$RUN/text/$name/train" "${splits[@]}" "$@" >"$RUN/preprocess.log" 2>&1 ||
    { tail -5 "$RUN/preprocess.log" >&2; return 1; }
}

# on TASK STAGE…: run a stage on the data of a task.
on() {
  DATA=$RUN/data-bin/$1
  shift
  stage "$@"
}

PLAIN=(--task translation --criterion cross_entropy)
STUDENT=("${STUDENT_MODEL[@]}" --lr 1e-2)
TEACHERS=("$RUN/teacher-first/checkpoint_last.pt" "$RUN/teacher-second/checkpoint_last.pt")
from() { FROM=(--restore-file "$RUN/$1/checkpoint_last.pt" --reset-optimizer --reset-lr-scheduler --reset-dataloader --reset-meters); }
imitkd() { IMITKD=(--task translation_with_teacher --criterion imitkd --teacher-path "$@"); }

stage data data
beside on first teacher-first fit teacher-first "$TEACHER_UPDATES" "${PLAIN[@]}" "${TEACHER_MODEL[@]}" --lr 5e-3
teacher_first=$BESIDE
beside on second teacher-second fit teacher-second "$TEACHER_UPDATES" "${PLAIN[@]}" "${TEACHER_MODEL[@]}" --lr 5e-3
teacher_second=$BESIDE
awaited on first scratch fit scratch "$STUDENT_UPDATES" "${PLAIN[@]}" "${STUDENT[@]}"
wait "$teacher_first"
from scratch; imitkd "${TEACHERS[0]}"
awaited on first first fit first "$MORE_UPDATES" "${IMITKD[@]}" "${STUDENT[@]}" "${FROM[@]}"
wait "$teacher_second"
# The second task with only its own teacher.
from first; imitkd "${TEACHERS[1]}"
beside on second forgetful fit forgetful "$TASK_UPDATES" "${IMITKD[@]}" "${STUDENT[@]}" "${FROM[@]}"
forgetful=$BESIDE
# The second task and a part of the first with both teachers. Each sentence uses the teacher that knows its reference better.
imitkd "${TEACHERS[0]}:${TEACHERS[1]}" --teacher-selection agreement
awaited on both lifelong fit lifelong "$TASK_UPDATES" "${IMITKD[@]}" "${STUDENT[@]}" "${FROM[@]}"
wait "$forgetful"
stage table env PYTHONPATH="$REPO/examples:$REPO/examples/quickstart${PYTHONPATH:+:$PYTHONPATH}" \
  python "$RECIPE/evaluate.py" "$RUN" --seed "$SEED" "${DEVICE_FLAGS[@]}"
cat "$RUN/table.md"
