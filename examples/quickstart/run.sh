#!/usr/bin/env bash
# ImitKD in minutes on a CPU: two made-up languages, a teacher, a student, the student with ImitKD, a table.
#   run.sh [FLAG…]   FLAG: added to every imitkd-train command
#   SEED=N   seed of languages, sentences and initial weights (default: 1)
source "$(dirname "$0")/../common.sh"
source "$(dirname "$0")/models.sh"
TEACHER_UPDATES=${TEACHER_UPDATES:-1600} STUDENT_UPDATES=${STUDENT_UPDATES:-1000} MORE_UPDATES=${MORE_UPDATES:-400}
DATA=$RUN/data-bin

# A further student starts from another student's weights with a new optimiser.
NEW_OPTIMISER=(--reset-optimizer --reset-lr-scheduler --reset-dataloader --reset-meters)
FROM_SCRATCH=(--restore-file "$RUN/scratch/checkpoint_last.pt" "${NEW_OPTIMISER[@]}")
FROM_SEQKD=(--restore-file "$RUN/seqkd/checkpoint_last.pt" "${NEW_OPTIMISER[@]}")

data() {
  python "$REPO/fairseq_imitkd/pipeline/made_up.py" "$RUN/text" --seed "$SEED"
  rm -rf "$DATA" # fairseq-preprocess refuses a folder that a killed call left incomplete
  fairseq-preprocess --source-lang src --target-lang tgt --destdir "$DATA" \
    --trainpref "$RUN/text/train" --validpref "$RUN/text/valid" --testpref "$RUN/text/test" >"$RUN/preprocess.log" 2>&1 ||
    { tail -5 "$RUN/preprocess.log" >&2; return 1; }
}

translations() {
  mkdir -p "$RUN/data_seqkd.needs"
  python "$REPO/examples/needs.py" "$RUN/data_seqkd.needs" \
    imitkd-seqkd "$DATA" "${DEVICE_FLAGS[@]}" --teacher-path "$RUN/teacher/checkpoint_last.pt" --out "$RUN/data_seqkd" \
    --beam 1 --max-len-a 1.2 --max-len-b 10 >"$RUN/seqkd.log" 2>&1 || { tail -5 "$RUN/seqkd.log" >&2; return 1; }
}

PLAIN=(--task translation_with_teacher --criterion cross_entropy "$@") # this task writes metrics.jsonl, which report.sh shows
TAUGHT=(--task translation_with_teacher --teacher-path "$RUN/teacher/checkpoint_last.pt" --criterion imitkd "$@")
IMITKD=("${TAUGHT[@]}") # the method's flags
STUDENT=("${STUDENT_MODEL[@]}" --lr 1e-2)

# scored NAME: print the scores of a model that is trained.
scored() {
  PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/scoring.py" "$RUN" "$1" "${DEVICE_FLAGS[@]}"
}

# on_seqkd NAME UPDATES FLAGS…: as fit, on the teacher's translations.
on_seqkd() { DATA=$RUN/data_seqkd/data-bin fit "$@"; }

# Two chains of trainings run side by side: the teacher, and the students that need no teacher.
stage data data
beside stage teacher fit teacher "$TEACHER_UPDATES" "${PLAIN[@]}" "${TEACHER_MODEL[@]}" --lr 5e-3
teacher=$BESIDE
awaited stage scratch fit scratch "$STUDENT_UPDATES" "${PLAIN[@]}" "${STUDENT[@]}"
awaited stage score_scratch scored scratch
awaited stage continued fit continued "$MORE_UPDATES" "${PLAIN[@]}" "${STUDENT[@]}" "${FROM_SCRATCH[@]}"
awaited stage score_continued scored continued
wait "$teacher"
# The teacher's translations as targets, and then the student's own prefixes or more of the translations.
others() {
  stage translations translations
  stage seqkd on_seqkd seqkd "$MORE_UPDATES" "${PLAIN[@]}" "${STUDENT[@]}" "${FROM_SCRATCH[@]}"
  stage seqkd_continued on_seqkd seqkd_continued "$MORE_UPDATES" "${PLAIN[@]}" "${STUDENT[@]}" "${FROM_SEQKD[@]}"
  stage seqkd_imitkd on_seqkd seqkd_imitkd "$MORE_UPDATES" "${IMITKD[@]}" "${STUDENT[@]}" "${FROM_SEQKD[@]}"
}
beside others
others=$BESIDE
# on_corpus learns the teacher's words on the corpus's prefixes, imitkd increasingly on the student's own prefixes.
awaited stage on_corpus fit on_corpus "$MORE_UPDATES" "${TAUGHT[@]}" --student-share constant:0 "${STUDENT[@]}" "${FROM_SCRATCH[@]}"
awaited stage imitkd fit imitkd "$MORE_UPDATES" "${IMITKD[@]}" "${STUDENT[@]}" "${FROM_SCRATCH[@]}"
wait "$others"
stage table env PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/evaluate.py" "$RUN" --seed "$SEED" "${DEVICE_FLAGS[@]}"
printf '\n'
cat "$RUN/table.md"
times >"$RUN/times" # of this shell, and of its children
printf 'Figure: %s\nThis call took %d s; processor time of its commands: %s (user, system).\n' "$RUN/quickstart.png" "$SECONDS" "$(tail -n 1 "$RUN/times")"
