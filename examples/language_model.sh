# The stages of a recipe of language models (transformer_lm). Its settings.sh sources this file and sets:
#   PROMPTS                       flags of the task, and of where a prompt ends
#   LONGEST                       most tokens of a continuation, in validation and everywhere else
#   REMOVE_BPE                    how subwords become text
#   TRAINING                      flags of every training
#   TEACHER_SIZE STUDENT_SIZE     layers, dimensions and those of the feed-forward layers
# shellcheck shell=bash disable=SC2034
USES="SMOKE UPDATES MORE_UPDATES" # of common.sh's variables

# model LAYERS WIDTH FEED_FORWARD: set MODEL to the flags of a language model; with SMOKE=1 to those of a tiny one.
model() {
  [ -z "${SMOKE:-}" ] || set -- 1 16 32
  MODEL=(
    --arch transformer_lm --share-decoder-input-output-embed --decoder-layers "$1" --decoder-attention-heads 4
    --decoder-embed-dim "$2" --decoder-input-dim "$2" --decoder-output-dim "$2" --decoder-ffn-embed-dim "$3" --dropout 0
  )
}

# binarise TEXT DATA [FLAGS…]: write fairseq's data directory of the splits in $RUN/TEXT.
binarise() {
  local split splits=()
  for split in train valid test; do
    [ ! -e "$RUN/$1/$split.txt" ] || splits+=("--${split}pref" "$RUN/$1/$split.txt")
  done
  rm -rf "${RUN:?}/$2" # fairseq-preprocess refuses a folder that a killed call left incomplete
  mkdir -p "$RUN/$2"
  fairseq-preprocess --only-source --workers 1 --destdir "$RUN/$2" "${splits[@]}" "${@:3}" >"$RUN/preprocess.log" 2>&1 ||
    { tail -n 5 "$RUN/preprocess.log" >&2; die "fairseq-preprocess failed; see $RUN/preprocess.log"; }
}

# teach_model FLAGS…: train the teacher on the data. All seeds share it.
teach_model() {
  model "${TEACHER_SIZE[@]}"
  stage teacher train teacher --criterion cross_entropy "${MODEL[@]}" "${TRAINING[@]}" --seed 1 "$@"
}

# continuations: write the training prompts with the teacher's continuations, and binarise them with the same dictionary.
continuations() {
  mkdir -p "$RUN/teachers"
  continue_prompts teacher train --beam 5 --remove-bpe none >"$RUN/teachers/train.out"
  python "$REPO/examples/continuations.py" "$RUN/teachers/train.out" >"$RUN/teachers/train.txt"
  cp "$RUN/raw/valid.txt" "$RUN/teachers"
  binarise teachers teachers/data-bin --srcdict "$RUN/data-bin/dict.txt"
}

# continue_prompts NAME SPLIT FLAGS…: let a model continue the prompts of a split.
continue_prompts() {
  imitkd-generate "$RUN/data-bin" "${PROMPTS[@]}" "${DEVICE_FLAGS[@]}" --path "$RUN/$1/checkpoint_best.pt" --gen-subset "$2" \
    --max-len-a 0 --max-len-b "$LONGEST" --max-tokens 4096 --required-batch-size-multiple 1 "${@:3}"
}

# learn_model ROW FLAGS…: train one student. `scratch` starts from random weights, all other rows from `scratch` of the same seed.
#   scratch     cross-entropy on the data
#   continued   the same, the control of the rows below
#   seqkd       cross-entropy on the teacher's continuations of the same prompts, by beam search (Kim & Rush 2016, section 3.2)
#   METHOD      any name of --criterion: the data and the teacher
#   SEED=2 makes ROW-seed2
learn_model() {
  [ $# -gt 0 ] || die "usage: student.sh ROW [FLAGS…], ROW scratch, continued, seqkd or a name of --criterion"
  local row=$1 name length first objective=(--criterion cross_entropy)
  shift
  case $row in
    scratch | continued) ;;
    seqkd)
      stage teachers continuations
      local DATA=$RUN/teachers/data-bin
      ;;
    *)
      objective=(--criterion "$row" --teacher-path "$RUN/teacher/checkpoint_best.pt" --teacher-data "$RUN/data-bin")
      [ "$row" = word_kd ] || objective+=(--rollout-max-len-a 0 --rollout-max-len-b "$LONGEST")
      ;;
  esac
  length=(--max-update "${UPDATES:-2000}")
  if [ "$row" != scratch ]; then # half the learning rate
    first=$(checkpoint_of scratch checkpoint_best.pt)
    length=(--lr 2e-3 --max-update "${MORE_UPDATES:-1000}" --finetune-from-model "$first")
  fi
  model "${STUDENT_SIZE[@]}"
  name=$(named "$row")
  stage "$name" train "$name" "${objective[@]}" "${MODEL[@]}" "${TRAINING[@]}" --seed "$SEED" "${length[@]}" "$@"
}

# evaluate_models SCORES: let every model of $RUN continue the test set's prompts greedily. SCORES, a script of the recipe, writes
# results.json and prints the table.
evaluate_models() {
  local names=() name stage
  for stage in "$RUN"/.done/*; do
    name=$(basename "$stage")
    [ -e "$RUN/$name/checkpoint_best.pt" ] || continue
    names+=("$name")
    [ ! "$RUN/$name/test.out" -nt "$RUN/$name/checkpoint_best.pt" ] || continue # another call has decoded it
    continue_prompts "$name" test --beam 1 --remove-bpe "$REMOVE_BPE" >"$RUN/$name/test.part"
    mv "$RUN/$name/test.part" "$RUN/$name/test.out"
  done
  [ ${#names[@]} -gt 0 ] || die "$RUN holds no trained model; run teacher.sh and student.sh first"
  PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/$1" "$RUN" "${names[@]}"
}
