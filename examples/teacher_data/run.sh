#!/usr/bin/env bash
# What can be done with a teacher's translations as data: one for each source, several, those where the student is worst, the
# easiest or the hardest first, and students that write all words at once.
#   SEED=N   seed of languages, sentences and initial weights (default: 1)
USES="SMOKE"
source "$(dirname "$0")/../common.sh"
source "$REPO/examples/quickstart/models.sh"
TEACHER_UPDATES=${TEACHER_UPDATES:-1600} STUDENT_UPDATES=${STUDENT_UPDATES:-1000} MORE_UPDATES=${MORE_UPDATES:-400}
NAT_UPDATES=$((4 * STUDENT_UPDATES))
SIZES=()
if [ -n "${SMOKE:-}" ]; then SIZES=(--train 300 --valid 16 --test 200) TEACHER_UPDATES=300 STUDENT_UPDATES=3 MORE_UPDATES=3 NAT_UPDATES=3; fi
TEACHER=$RUN/teacher/checkpoint_last.pt

data() {
  python "$REPO/fairseq_imitkd/pipeline/made_up.py" "$RUN/text" --seed "$SEED" "${SIZES[@]}"
  rm -rf "$RUN/data-bin" # fairseq-preprocess refuses a folder that a killed call left incomplete
  binarise text data-bin --validpref "$RUN/text/valid" --testpref "$RUN/text/test"
}

# binarise TEXT DATA [FLAGS…]: write fairseq's data directory of $RUN/TEXT/train.
binarise() {
  fairseq-preprocess --source-lang src --target-lang tgt --trainpref "$RUN/$1/train" --destdir "$RUN/$2" "${@:3}" \
    >"$RUN/preprocess.log" 2>&1 || { tail -5 "$RUN/preprocess.log" >&2; return 1; }
}

# translated NAME FLAGS…: the teacher's translations of the training sentences, in $RUN/data_NAME.
translated() {
  imitkd-seqkd "$RUN/data-bin" "${DEVICE_FLAGS[@]}" --teacher-path "$TEACHER" --out "$RUN/data_$1" "${@:2}"
}

# The half of the training sentences where the student's translation differs most from the teacher's.
worst() {
  imitkd-generate "$RUN/data_seqkd/data-bin" "${DEVICE_FLAGS[@]}" --path "$RUN/seqkd/checkpoint_last.pt" --gen-subset train --beam 1 \
    --batch-size 200 >"$RUN/seqkd/train.txt"
  python "$RECIPE/worst.py" "$RUN/seqkd/train.txt" "$RUN/data_worst" --share 0.5
  rm -rf "$RUN/data_worst/data-bin"
  binarise data_worst data_worst/data-bin --srcdict "$RUN/data-bin/dict.src.txt" --tgtdict "$RUN/data-bin/dict.tgt.txt" \
    --validpref "$RUN/text/valid"
}

# How well the student predicts each of the teacher's translations: the mean log-probability of its words.
scores() {
  imitkd-generate "$RUN/data_seqkd/data-bin" "${DEVICE_FLAGS[@]}" --path "$RUN/seqkd/checkpoint_last.pt" --gen-subset train \
    --score-reference --batch-size 200 --required-batch-size-multiple 1 >"$RUN/seqkd/reference.txt"
  grep '^H-' "$RUN/seqkd/reference.txt" | cut -c 3- | sort -n | cut -f 2 >"$RUN/seqkd/easy.txt"
  sed 's/^-//' "$RUN/seqkd/easy.txt" >"$RUN/seqkd/hard.txt"
}

# on NAME fit …: train on the teacher's translations in $RUN/data_NAME.
on() { DATA=$RUN/data_$1/data-bin stage "${@:2}"; }

PLAIN=(--task translation_with_teacher --criterion cross_entropy) # as in the quickstart
STUDENT=("${PLAIN[@]}" "${STUDENT_MODEL[@]}" --lr 1e-2)
FROM_SEQKD=(
  --restore-file "$RUN/seqkd/checkpoint_last.pt"
  --reset-optimizer --reset-lr-scheduler --reset-dataloader --reset-meters
)
DATA=$RUN/data-bin
stage data data
stage teacher fit teacher "$TEACHER_UPDATES" "${PLAIN[@]}" "${TEACHER_MODEL[@]}" --lr 5e-3
stage data_seqkd translated seqkd --beam 5
stage data_several translated several --beam 8 --diverse-beam-groups 4 --keep 4
stage scratch fit scratch "$STUDENT_UPDATES" "${STUDENT[@]}"
on seqkd seqkd fit seqkd "$STUDENT_UPDATES" "${STUDENT[@]}"
on several several fit several "$STUDENT_UPDATES" "${STUDENT[@]}"
stage data_worst worst
on seqkd continued fit continued "$MORE_UPDATES" "${STUDENT[@]}" "${FROM_SEQKD[@]}"
on worst feedback fit feedback "$MORE_UPDATES" "${STUDENT[@]}" "${FROM_SEQKD[@]}"
# The same updates in another order: in the first epoch the sentences that the student predicts best, or worst, come first.
stage scores scores
for order in easy hard; do
  on seqkd "${order}_first" fit "${order}_first" "$MORE_UPDATES" "${STUDENT[@]}" "${FROM_SEQKD[@]}" \
    --curriculum 1 --curriculum-scores "$RUN/seqkd/$order.txt"
done
# A student that writes all words at once, on the references and on the teacher's translations.
NAT=(
  --task translation_lev --criterion nat_loss --noise full_mask "${STUDENT_MODEL[@]}" --arch nonautoregressive_transformer
  --encoder-learned-pos --decoder-learned-pos --pred-length-offset --length-loss-factor 0.1 --lr 1e-2
)
stage nat fit nat "$NAT_UPDATES" "${NAT[@]}"
on seqkd nat_seqkd fit nat_seqkd "$NAT_UPDATES" "${NAT[@]}"
stage table env PYTHONPATH="$REPO/examples:$REPO/examples/quickstart${PYTHONPATH:+:$PYTHONPATH}" \
  python "$RECIPE/evaluate.py" "$RUN" --seed "$SEED" "${DEVICE_FLAGS[@]}"
cat "$RUN/table.md"
