# The stages of a recipe of language models (transformer_lm). Its settings.sh sources this file and sets:
#   PROMPTS                       flags of the task, and of where a prompt ends
#   LONGEST                       most tokens of a continuation, in validation and everywhere else
#   REMOVE_BPE                    how subwords become text
#   TRAINING                      flags of every training
#   TEACHER_SIZE STUDENT_SIZE     layers, dimensions and those of the feed-forward layers
# shellcheck shell=bash disable=SC2034
USES="SMOKE DRY_RUN START UPDATES MORE_UPDATES" # of common.sh's variables

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
  stage teacher train teacher --criterion cross_entropy "${MODEL[@]}" "${TRAINING[@]}" ${PATIENCE:+--patience "$PATIENCE"} --seed 1 "$@"
}

# continuations: write the training prompts with the teacher's continuations, and binarise them with the same dictionary.
continuations() {
  local folder=$RUN/data_seqkd
  continuing teacher train --beam 5 --remove-bpe none
  mkdir -p "$folder" "$folder.needs"
  python "$REPO/examples/needs.py" "$folder.needs" "${CONTINUING[@]}" >"$folder/train.out"
  python "$REPO/examples/continuations.py" "$folder/train.out" >"$folder/train.txt"
  cp "$RUN/raw/valid.txt" "$folder"
  binarise data_seqkd data_seqkd/data-bin --srcdict "$RUN/data-bin/dict.txt"
}

# continuing NAME SPLIT FLAGS…: set CONTINUING to the command by which a model continues the prompts of a split.
continuing() {
  CONTINUING=(
    imitkd-generate "$RUN/data-bin" "${PROMPTS[@]}" "${DEVICE_FLAGS[@]}" --path "$RUN/$1/checkpoint_best.pt" --gen-subset "$2"
    --max-len-a 0 --max-len-b "$LONGEST" --max-tokens 4096 --required-batch-size-multiple 1 "${@:3}"
  )
}

# decode_model NAME: let a model continue the test set's prompts greedily; write $RUN/NAME/test.txt.
decode_model() {
  finished "$1" || die "$RUN/$1/checkpoint_best.pt of a finished training does not exist; train $1 first"
  continuing "$1" test --beam 1 --remove-bpe "$REMOVE_BPE"
  "${CONTINUING[@]}" >"$RUN/$1/test.part"
  mv "$RUN/$1/test.part" "$RUN/$1/test.txt"
}

# learn_model ROW FLAGS…: train one student. `scratch` starts from random weights, all other rows from START=NAME (default:
# `scratch` of the same seed).
#   scratch        cross-entropy on the data
#   continued      the same, the control of the rows below
#   seqkd          cross-entropy on the teacher's continuations of the same prompts, by beam search (Kim & Rush 2016, section 3.2)
#   METHOD         any name of --criterion: the data and the teacher
#   seqkd_METHOD   METHOD on seqkd's data
#   SEED=2 makes ROW-seed2
learn_model() {
  [ $# -gt 0 ] || die "usage: student.sh ROW [FLAGS…], ROW scratch, continued, seqkd or a name of --criterion"
  local row=$1 method=${1#seqkd_} data=data-bin name length start
  OBJECTIVE=(--criterion cross_entropy)
  shift
  case $row in
    scratch | continued) ;;
    seqkd) data=data_seqkd/data-bin ;;
    *)
      [ "$method" = "$row" ] || data=data_seqkd/data-bin
      objective_of "$method" "$LONGEST" --teacher-path "$RUN/teacher/checkpoint_best.pt" --teacher-data "$RUN/data-bin"
      ;;
  esac
  length=(--max-update "${UPDATES:-2000}")
  if [ "$row" != scratch ]; then # half the learning rate
    start=${START:-$(named scratch)}
    [ -n "${DRY_RUN:-}" ] || finished "$start" || die "$RUN/$start/checkpoint_best.pt of a finished training does not exist; train $start first"
    length=(--lr 2e-3 --max-update "${MORE_UPDATES:-1000}" --finetune-from-model "$RUN/$start/checkpoint_best.pt")
  fi
  [ "$data" = data-bin ] || stage data_seqkd continuations
  model "${STUDENT_SIZE[@]}"
  name=$(named "${AS:-$row}")
  DATA=$RUN/$data stage "$name" train "$name" "${OBJECTIVE[@]}" "${MODEL[@]}" "${TRAINING[@]}" ${PATIENCE:+--patience "$PATIENCE"} \
    --seed "$SEED" "${length[@]}" "$@"
}

# evaluate_models SCORES: let every model of $RUN continue the test set's prompts greedily. SCORES, a script of the recipe, writes
# results.json and prints the table.
evaluate_models() {
  local names=() name stage
  for stage in "$RUN"/.done/*; do
    name=$(basename "$stage")
    [ -e "$RUN/$name/checkpoint_best.pt" ] || continue
    names+=("$name")
    [ "$RUN/$name/test.txt" -nt "$RUN/$name/checkpoint_best.pt" ] || decode_model "$name" # another call may have decoded it
  done
  [ ${#names[@]} -gt 0 ] || die "$RUN holds no trained model; run teacher.sh and student.sh first"
  PYTHONPATH="$REPO/examples${PYTHONPATH:+:$PYTHONPATH}" python "$RECIPE/$1" "$RUN" "${names[@]}"
}
