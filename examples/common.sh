# Shared by the scripts of every recipe. Source it; it runs nothing by itself.
#   DEVICE=cpu|cuda   device of training and decoding (default: cuda if a GPU is visible)
#   BIN=DIR           folder of the commands and their Python (default: this repository's .venv/bin, if it exists)
#   RUN=DIR           folder for everything a recipe makes (default: run/ beside the recipe)
#   RAW_DIR=DIR       folder of text to use instead of a download
#   SEED=N            seed of a student (default: 1); any other than 1 becomes part of its name
#   AS=NAME           name of a student, instead of its row's; for further students of a row
#   TEACHER=NAME      a trained student that is the teacher of a student of distill.sh, in place of the teacher (a teacher assistant)
#   UPDATES=N, TEACHER_UPDATES=N   updates of a student and of the teacher, instead of the recipe's
#   PATIENCE=N        validations in a row that bring nothing better, after which a training ends, instead of the recipe's
#   TEACHER_PRECISION=bf16|fp16   precision of the teacher, in its training and beside a student (default: fp32)
#   THREADS=N         threads of evaluate.sh (default: 1); it always decodes on the CPU, so that speeds are comparable
#   OTHER_FLAGS=refuse   fail if a model was trained with other flags, instead of keeping it, or continuing it with the new ones
#   SMOKE=1           run every stage with tiny models on made-up text, in run-smoke/
#   DRY_RUN=1         print the training commands and run nothing
# shellcheck shell=bash
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RECIPE=$(cd "$(dirname "$0")" && pwd)
SEED=${SEED:-1}
RUN=${RUN:-$RECIPE/run${SMOKE:+-smoke}}
BIN=${BIN:-$REPO/.venv/bin}
[ -d "$BIN" ] && PATH=$BIN:$PATH

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "$0: bash must be 4.4 or later, but is $BASH_VERSION; install a newer one (on macOS: brew install bash coreutils)" >&2
  exit 1
fi
say() { printf '\n== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

command -v imitkd-train >/dev/null || die "imitkd-train is not on PATH; run 'make install' in $REPO first"
[[ $SEED =~ ^[0-9]+$ ]] || die "SEED must be a number, but is '$SEED'"
for variable in UPDATES TEACHER_UPDATES STUDENT_UPDATES MORE_UPDATES TASK_UPDATES PATIENCE NBEST THREADS; do # fails now, not hours later
  [[ ${!variable:-1} =~ ^[1-9][0-9]*$ ]] || die "$variable must be a whole number above 0, but is '${!variable}'"
done
[ "${OTHER_FLAGS:-refuse}" = refuse ] || die "OTHER_FLAGS must be refuse or empty, but is '$OTHER_FLAGS'"
case ${TEACHER_PRECISION:=fp32} in
  fp32 | fp16 | bf16) ;;
  *) die "TEACHER_PRECISION must be fp32, fp16 or bf16, but is '$TEACHER_PRECISION'" ;;
esac
export DEVICE=${DEVICE:-$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
case $DEVICE in
  cpu) DEVICE_FLAGS=(--cpu) ;;
  cuda) DEVICE_FLAGS=() ;;
  *) die "DEVICE must be cpu or cuda, but is '$DEVICE'" ;;
esac
mkdir -p "$RUN"
RUN=$(cd "$RUN" >/dev/null && pwd -P) # trainings.py replaces this path in the recorded commands
[ -n "${SMOKE:-}" ] && [ ! -e "$RUN/.smoke" ] && [ -d "$RUN/.done" ] && die "$RUN holds a real run; use another RUN=DIR for SMOKE=1"
[ -z "${SMOKE:-}" ] && [ -e "$RUN/.smoke" ] && die "$RUN holds a run with SMOKE=1; use another RUN=DIR"
[ -z "${SMOKE:-}" ] || touch "$RUN/.smoke"

# stage NAME COMMAND…: run a command once. A later call with the same NAME returns at once.
stage() {
  local name=$1
  shift
  if [ -n "${DRY_RUN:-}" ]; then
    ! trains "$1" || "$@"
    return
  fi
  local other=
  if trains "$1" && ! same_flags "$@"; then other="; to use the new flags delete $RUN/$name and $RUN/.done/$name"; fi
  if [ -n "$other" ] && [ "${OTHER_FLAGS:-}" = refuse ] && { [ -e "$RUN/.done/$name" ] || [ -e "$RUN/$2/checkpoint_last.pt" ]; }; then
    die "$name was trained with other flags$other"
  fi
  if [ -e "$RUN/.done/$name" ]; then
    say "$name: already done${other:+ with other flags, so it is not trained again$other}"
    return
  fi
  say "$name"
  "$@"
  mkdir -p "$RUN/.done"
  touch "$RUN/.done/$name"
}

# trains COMMAND: whether a command is one of the two that train a model. Their first argument is NAME; under DRY_RUN they print.
trains() { [ "$1" = train ] || [ "$1" = fit ]; }

# same_flags COMMAND NAME FLAGS…: whether NAME was last trained with these flags, in any order and on any device.
same_flags() {
  [ -e "$RUN/$2/commands" ] || return 0
  python "$REPO/examples/flags.py" "$(tail -n 1 "$RUN/$2/commands" | cut -f 2)" "$(DRY_RUN=1 "$@")"
}

# resumable NAME: delete damaged checkpoints; the newest complete one becomes checkpoint_last.pt. fairseq copies its newest
# checkpoint to checkpoint_best.pt and checkpoint_last.pt, and a kill during the copy leaves files that it can't read:
# https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/checkpoint_utils.py#L139
resumable() {
  local file newest=
  for file in "$RUN/$1"/checkpoint_*.pt; do
    if python -m zipfile -l "$file" >/dev/null 2>&1; then
      if [ -z "$newest" ] || [ "$file" -nt "$newest" ]; then newest=$file; fi
    else
      rm -f "$file"
    fi
  done
  [ -z "$newest" ] || [ -e "$RUN/$1/checkpoint_last.pt" ] || cp "$newest" "$RUN/$1/checkpoint_last.pt"
}

# train NAME FLAGS…: train a model in $RUN/NAME on $DATA (default: $RUN/data-bin). After a kill fairseq resumes from
# checkpoint_last.pt.
train() {
  local name=$1
  shift
  local command=(imitkd-train "${DATA:-$RUN/data-bin}" "${DEVICE_FLAGS[@]}" --save-dir "$RUN/$name" --log-format simple "$@")
  if [ -n "${SMOKE:-}" ]; then
    # The teacher must learn to end its sentences, because imitkd-seqkd drops translations that were cut.
    [ "$name" = teacher ] && command+=(--max-update 200 --lr 5e-2 --dropout 0) || command+=(--max-update 2)
    [[ " $* " != *" --teacher-path "* ]] || command+=(--teacher-allow-poor) # a teacher of 200 updates is poor
    command+=(--max-tokens 300 --warmup-updates 1 --validate-interval-updates 100 --save-interval-updates 100)
  fi
  if [ -n "${DRY_RUN:-}" ]; then printf '%s\n' "${command[*]@Q}"; return; fi
  mkdir -p "$RUN/$name"
  resumable "$name"
  noted "$name" "${command[@]}"
}

# noted NAME COMMAND…: run a training and record it for the results. Each call adds a line to $RUN/NAME/commands (commit,
# command, threads); $RUN/NAME/peak holds the peak memory, and $RUN/NAME/cpu the processor time.
noted() {
  local name=$1
  shift
  printf '%s\t%s\t%s\n' "$(git -C "$REPO" describe --always --dirty --exclude='*' 2>/dev/null || echo unknown)" \
    "${*@Q}" "${OMP_NUM_THREADS:-all}" >>"$RUN/$name/commands"
  python "$REPO/examples/needs.py" "$RUN/$name" "$@"
}

# ---- The stages of a recipe for translation or summarisation, whose settings.sh calls `from_yaml`. It sets:
#   SOURCE TARGET         the languages in the file names
#   VOCABULARY            size of the joint SentencePiece BPE; empty if the text is already symbols with blanks between them
#   TRAINING              flags of every training
#   TEACHER_MODEL STUDENT_MODEL   the models, and further flags of their trainings
#   DISTILLATION          further flags of a student that is trained with a teacher
#   SUBWORDS DECODING     flags of imitkd-seqkd and imitkd-generate: how subwords become text, and the longest translation
#   EVALUATION            flags of imitkd-evaluate
#   ROWS                  the students of the table
#   own ROW               a function that sets OWN, the flags of ROW beside its method's defaults
# settings.sh itself sets HEADLINES, the rows that are trained with two seeds, and what follows:
KIND=                                     # kind of student, part of its name: _sru
TOKENISED_BLEU=                           # language; if set, also score lower-case text tokenised by Moses
DICTIONARY=(--joined-dictionary)          # or the files of an existing dictionary
CHECK=()                                  # flags of check.py
[ -z "${SMOKE:-}" ] || NBEST=3
NBEST=${NBEST:-35}
# shellcheck disable=SC2034 # settings.sh reads them
TRANSFORMER_1_1_64=(
  --arch transformer
  --encoder-layers 1 --decoder-layers 1 --encoder-attention-heads 4 --decoder-attention-heads 4
  --encoder-embed-dim 64 --decoder-embed-dim 64 --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256
)
# shellcheck disable=SC2034
TRANSFORMER_2_2_128=(
  --arch transformer
  --encoder-layers 2 --decoder-layers 2 --encoder-attention-heads 4 --decoder-attention-heads 4
  --encoder-embed-dim 128 --decoder-embed-dim 128 --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512
)

# from_yaml: take the settings from the recipe in YAML, which imitkd-distill trains too: recipe.yaml in this folder, or the one of
# this folder's name that comes with the package.
from_yaml() {
  local file=$RECIPE/recipe.yaml settings
  [ -e "$file" ] || file=$REPO/fairseq_imitkd/pipeline/recipes/$(basename "$RECIPE").yaml
  settings=$(python "$REPO/examples/recipe_settings.py" "$file" "$RUN")
  eval "$settings"
  [ -z "${PATIENCE:-}" ] || TRAINING+=(--patience "$PATIENCE")
}

# plain FLAGS…: set PLAIN to the flags of a loss without a teacher, unless FLAGS name another one.
plain() {
  PLAIN=()
  [[ " $* " == *" --criterion "* ]] || PLAIN=(--criterion label_smoothed_cross_entropy --label-smoothing 0.1)
}

# raw_text COMMAND…: make $RUN/raw/{train,valid,test}.{$SOURCE,$TARGET} by COMMAND; with SMOKE=1 from made-up text.
raw_text() {
  mkdir -p "$RUN/raw"
  if [ -n "${SMOKE:-}" ]; then made_up_text; else "$@"; fi
  python "$REPO/examples/check.py" "$RUN/raw" "$SOURCE" "$TARGET" "${CHECK[@]}"
}

made_up_text() {
  local split
  python "$REPO/fairseq_imitkd/pipeline/made_up.py" "$RUN/raw/made_up" --train 160 --valid 16 --test 16
  for split in train valid test; do
    mv "$RUN/raw/made_up/$split.src" "$RUN/raw/$split.$SOURCE"
    mv "$RUN/raw/made_up/$split.tgt" "$RUN/raw/$split.$TARGET"
  done
  mv "$RUN/raw/made_up/test.all" "$RUN/raw/test.all"
}

# from_raw_dir: read lines "NAME SHA256 [FILE]"; copy $RAW_DIR/FILE or FILE.gz (default: NAME) to $RUN/raw/NAME for each.
from_raw_dir() {
  local name sha file
  while read -r name sha file; do
    [ -n "$name" ] || continue
    file=$RAW_DIR/${file:-$name}
    if [ -r "$file.gz" ]; then
      file+=.gz
      gzip -dc "$file" >"$RUN/raw/$name" || die "$file is not a complete gzip file; delete it and fetch it again"
    elif [ -r "$file" ]; then
      cp "$file" "$RUN/raw/$name"
    else
      die "RAW_DIR must hold $(basename "$file").gz or $(basename "$file"), but '$RAW_DIR' does not"
    fi
    has_sha256 "$RUN/raw/$name" "$sha" "$file"
  done
}

# has_sha256 TEXT SHA256 [FILE]: refuse text that is not the text of the recipe's results. FILE names its origin.
has_sha256() {
  [ -n "${ANY_TEXT:-}" ] && return
  echo "$2  $1" | sha256sum --check --status ||
    die "${3:-$1} is not the text that this recipe was written for (sha256 $2); delete it and fetch it again, or accept it with ANY_TEXT=1"
}

# download URL FILE [SHA256]: download a file once. FILE exists only when it is complete.
download() {
  [ ! -e "$2" ] || return 0
  mkdir -p "$(dirname "$2")"
  curl -fL --retry 3 --progress-bar -o "$2.part" "$1" || die "could not download $1; use RAW_DIR=DIR with the text (README.md names the files)"
  [ -z "${3:-}" ] || has_sha256 "$2.part" "$3"
  mv "$2.part" "$2"
}

# Train one joint BPE for both sides, and encode every split with it. Without a VOCABULARY the text is already symbols.
encode() {
  local split side size=$VOCABULARY
  if [ -z "$size" ]; then
    mkdir -p "$RUN/encoded"
    for split in train valid test; do cp "$RUN/raw/$split.$SOURCE" "$RUN/raw/$split.$TARGET" "$RUN/encoded"; done
    return
  fi
  [ -z "${SMOKE:-}" ] || size=150
  python "$REPO/examples/subwords.py" train "$RUN/subwords" "$size" "$RUN/raw/train.$SOURCE" "$RUN/raw/train.$TARGET"
  mkdir -p "$RUN/encoded"
  for split in train valid test; do
    for side in "$SOURCE" "$TARGET"; do
      python "$REPO/examples/subwords.py" encode "$RUN/subwords.model" <"$RUN/raw/$split.$side" >"$RUN/encoded/$split.$side"
    done
  done
}

# Write fairseq's data directory $RUN/data-bin.
binarise() {
  rm -rf "$RUN/data-bin" # fairseq-preprocess refuses a folder that a killed call left incomplete
  fairseq-preprocess --source-lang "$SOURCE" --target-lang "$TARGET" --workers 2 --destdir "$RUN/data-bin" \
    --trainpref "$RUN/encoded/train" --validpref "$RUN/encoded/valid" --testpref "$RUN/encoded/test" "${DICTIONARY[@]}" \
    >"$RUN/preprocess.log" 2>&1 || { tail -n 5 "$RUN/preprocess.log" >&2; die "fairseq-preprocess failed; see $RUN/preprocess.log"; }
}

# prepare COMMAND…: run all of the above; see raw_text for COMMAND.
prepare() {
  stage raw raw_text "$@"
  stage encode encode
  stage binarise binarise
}

# small FLAGS…: set MODEL to the flags of a model; with SMOKE=1 to those of a tiny one of the same architecture.
small() {
  MODEL=("$@")
  [ -n "${SMOKE:-}" ] || return 0
  MODEL+=(--encoder-embed-dim 16 --encoder-layers 1 --decoder-layers 1)
  case "$*" in
    *--arch\ sru*) MODEL+=(--encoder-hidden-size 8 --decoder-hidden-size 16) ;;
    *)
      MODEL+=(--decoder-embed-dim 16 --encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32)
      MODEL+=(--encoder-attention-heads 2 --decoder-attention-heads 2)
      ;;
  esac
}

# teach [FLAGS…]: train the teacher on the references.
teach() {
  local precision=()
  [ "$TEACHER_PRECISION" = fp32 ] || precision=("--$TEACHER_PRECISION")
  plain "${TEACHER_MODEL[@]}"
  small "${TEACHER_MODEL[@]}"
  stage teacher train teacher "${PLAIN[@]}" "${TRAINING[@]}" "${MODEL[@]}" ${TEACHER_UPDATES:+--max-update "$TEACHER_UPDATES"} \
    --seed 1 "${precision[@]}" "$@"
}

# named ROW: print the name of a student: NAME for seed 1, NAME-seed2 for seed 2, and so on.
named() { [ "$SEED" = 1 ] && echo "$1$KIND" || echo "$1$KIND-seed$SEED"; }

# learn ROW [FLAGS…]: train one student, from random weights or from the student START=NAME. ROW is
#   scratch         cross-entropy on the references; `continued` is the same from START
#   seqkd           cross-entropy on the teacher's beam search output (SeqKD; Kim & Rush 2016, section 3.2)
#   seq_inter       seqkd's student continues on the most reference-like of the teacher's NBEST outputs (section 3.3)
#   seqkd_pruned    seqkd's student continues with four fifths of its weights set to zero (section 5.2)
#   METHOD          any name of --criterion: the references and a teacher
#   seqkd_METHOD    METHOD on seqkd's data (the starred rows of Lin et al. 2020)
learn() {
  local row=$1 name data="" start=() objective taught=() method=${1#seqkd_}
  shift
  name=$(named "${AS:-$row}")
  own "$row"
  plain "${OWN[@]}"
  objective=("${PLAIN[@]}")
  ! teacher_writes "$method" || OWN+=(--teacher-samples)
  [ "$row" != continued ] || [ -n "${START:-}" ] || die "continued needs another student to start from; use START=NAME"
  if [ -n "${START:-}" ]; then
    local base=${START%-seed*} # START gets the KIND of the rows
    [[ $base == *"$KIND" ]] || local START=$base$KIND${START#"$base"}
    [ -n "${DRY_RUN:-}" ] || finished "$START" || die "START must name a model in $RUN whose training has ended, but is '$START'"
    start=(--finetune-from-model "$RUN/$START/checkpoint_best.pt")
  fi
  case $row in
    scratch | continued) ;;
    seqkd) data=seqkd ;;
    seq_inter)
      data=seq_inter
      start=(--finetune-from-model "$(trained seqkd)")
      ;;
    seqkd_pruned)
      data=seqkd
      start=(--finetune-from-model "$(trained seqkd)")
      objective+=(--prune-sparsity 0.8) # pruned from the start, so the best checkpoint is a pruned one
      ;;
    *)
      [ "$method" = "$row" ] || data=seqkd
      objective=(--criterion "$method" --teacher-path "$(assistant)")
      taught=("${DISTILLATION[@]}")
      [ "$TEACHER_PRECISION" = fp32 ] || taught+=(--teacher-dtype "$TEACHER_PRECISION")
      ;;
  esac
  if [ -n "$data" ]; then
    stage "data_$data" translate "$data"
    data=data_$data/
  fi
  small "${STUDENT_MODEL[@]}"
  DATA=$RUN/${data}data-bin stage "$name" train "$name" "${objective[@]}" "${TRAINING[@]}" "${MODEL[@]}" "${taught[@]}" \
    --seed "$SEED" "${OWN[@]}" ${UPDATES:+--max-update "$UPDATES"} "${start[@]}" "$@" # START overrides a start in OWN
}

# trained NAME: print the path of a model's checkpoint; for a student that of this SEED.
trained() {
  local name=$1
  [ "$name" = teacher ] || name=$(named "$name")
  [ -n "${DRY_RUN:-}" ] || finished "$name" || die "$RUN/$name/checkpoint_best.pt of a finished training does not exist; train $name first"
  echo "$RUN/$name/checkpoint_best.pt"
}

# teacher_writes METHOD: whether the teacher writes targets: those of half of f-distill's losses, and all of its KL's.
teacher_writes() { [[ $1 = f_distill || $1 = f_distill_kl || $1 = f_distill_tvd ]]; }

# objective_of METHOD LONGEST FLAGS…: set OBJECTIVE to a method of --criterion with FLAGS, whose student and teacher write at most
# LONGEST tokens. In the methods that are named below neither of them writes, so these refuse flags of rollouts.
objective_of() {
  OBJECTIVE=(--criterion "$1" "${@:3}")
  ! teacher_writes "$1" || OBJECTIVE+=(--teacher-samples)
  case $1 in
    word_kd | annealing_kd | continuation_kd | atkd | tie_kd | selective_kd) ;;
    *) OBJECTIVE+=(--rollout-max-len-a 0 --rollout-max-len-b "$2") ;;
  esac
}

# assistant: print the path of the checkpoint that teaches: of the student TEACHER=NAME, or of the teacher.
assistant() {
  [ -n "${TEACHER:-}" ] || { trained teacher; return; }
  [ -n "${DRY_RUN:-}" ] || finished "$TEACHER" || die "TEACHER must name a model in $RUN whose training has ended, but is '$TEACHER'"
  echo "$RUN/$TEACHER/checkpoint_best.pt"
}

# finished NAME: whether a model's training has ended. A model that was trained elsewhere has no `commands` and counts as finished.
finished() { [ -e "$RUN/$1/checkpoint_best.pt" ] && { [ -e "$RUN/.done/$1" ] || [ ! -e "$RUN/$1/commands" ]; }; }

# translate seqkd|seq_inter: translate the training set by the teacher into $RUN/data_NAME. A call after a kill resumes.
#   SEQKD_FLAGS="--backend ctranslate2 --workers 2"   further flags of imitkd-seqkd
translate() {
  local name=$1 how=() flags teacher
  teacher=$(trained teacher)
  read -ra flags <<<"${SEQKD_FLAGS:-}"
  case $name in
    seqkd) how=(--beam 5) ;;
    seq_inter) how=(--select best --metric sentence-bleu --nbest "$NBEST") ;;
  esac
  mkdir -p "$RUN/data_$name.needs" # what it takes is not in the data's own folder, which imitkd-seqkd makes
  python "$REPO/examples/needs.py" "$RUN/data_$name.needs" \
    imitkd-seqkd "$RUN/data-bin" "${DEVICE_FLAGS[@]}" --teacher-path "$teacher" --out "$RUN/data_$name" \
    "${SUBWORDS[@]}" "${DECODING[@]}" "${how[@]}" "${flags[@]}" ${SMOKE:+--teacher-allow-poor}
}

# decode NAME: translate the test set greedily by a model into $RUN/NAME/test.txt. evidence.py scores it.
decode() {
  finished "$1" || die "$RUN/$1/checkpoint_best.pt of a finished training does not exist; train $1 first"
  imitkd-generate "$RUN/data-bin" "${DEVICE_FLAGS[@]}" --path "$RUN/$1/checkpoint_best.pt" --beam 1 "${DECODING[@]}" \
    --required-batch-size-multiple 1 --batch-size 64 "${SUBWORDS[@]}" >"$RUN/$1/test.part"
  mv "$RUN/$1/test.part" "$RUN/$1/test.txt"
}

# evaluate: compare all models whose training has ended, and their NAME/exported, on the test set. Write $RUN/evaluation and
# $RUN/results.json, and print the table. examples/tables.py $RUN copies the results into the READMEs.
evaluate() {
  local models=() row seeds name own=() failed=""
  [ -z "${DRY_RUN:-}" ] || return 0
  trained teacher >/dev/null
  SEED=1 trained scratch >/dev/null
  # The order of the table; other models come last.
  for row in teacher "${ROWS[@]/%/$KIND}" '*'; do
    for seeds in "$row" "$row-seed*"; do
      for name in "$RUN"/*/checkpoint_best.pt; do
        name=$(basename "$(dirname "$name")")
        # shellcheck disable=SC2053 # a pattern
        [[ $name == $seeds && " ${models[*]} " != *" $name=$name/"* ]] || continue
        if finished "$name"; then
          models+=(--model "$name=$name/checkpoint_best.pt")
          [ ! -e "$RUN/$name/exported" ] || models+=(--model "${name/%-seed*}_exported${name#"${name/%-seed*}"}=$name/exported")
        elif [ "$row" = '*' ] && [ "$seeds" = '*' ]; then
          say "$name is left out: its training has not ended"
        fi
      done
    done
  done
  [ -z "${SMOKE:-}" ] || own=(--quick --max-len-b 5 --batch-sizes 8)
  touch "$RUN/.evaluating"
  ( # inside the run, so that the recorded command holds no absolute path
    cd "$RUN" && imitkd-evaluate "${models[@]}" --data data-bin --out evaluation --teacher teacher --baseline "scratch$KIND" \
      --threads "${THREADS:-1}" "${EVALUATION[@]}" "${own[@]}" >evaluation.md
  ) || failed=1 # if one model can't be evaluated, the others still are
  [ "$RUN/evaluation/evaluation.json" -nt "$RUN/.evaluating" ] || die "nothing was evaluated; see above"
  rm "$RUN/.evaluating"
  python "$REPO/examples/results.py" "$RUN" --recipe "$(basename "$RECIPE")" ${TOKENISED_BLEU:+--tokenised-bleu "$TOKENISED_BLEU"}
  [ -z "$failed" ] || die "not every model was evaluated; see above"
}

# run_recipe [ROW…]: run the complete recipe for these rows (default: ROWS). A second call continues where the first one stopped.
# SEEDS are the seeds of HEADLINES (default: 1 2); the other rows use only the first of them.
run_recipe() {
  local row seed first=""
  [ "$SEED" = 1 ] || die "run.sh takes SEEDS instead of SEED, but SEED is '$SEED'; use SEEDS=\"1 $SEED\""
  for seed in ${SEEDS:-1 2}; do [[ $seed =~ ^[0-9]+$ ]] || die "SEEDS must be numbers, but has '$seed'"; done
  if [ $# -gt 0 ]; then python "$REPO/examples/rows.py" "$@"; else set -- "${ROWS[@]}"; fi
  # The table compares with scratch. Fail now, not after everything else is trained.
  [[ " $* " == *" scratch "* && " ${SEEDS:-1 2} " == *" 1 "* ]] || finished "scratch$KIND" ||
    die "the rows must include scratch with seed 1, the baseline of the others, but are '$*' with SEEDS '${SEEDS:-1 2}'"
  "$RECIPE/prepare.sh"
  "$RECIPE/teacher.sh"
  for row in "$@"; do
    for seed in ${SEEDS:-1 2}; do
      [ "$seed" = "${first:=$seed}" ] || [[ " ${HEADLINES[*]} " == *" $row "* ]] || continue
      SEED=$seed learn "$row"
    done
  done
  "$RECIPE/evaluate.sh"
}

# run_students ROW…: run a recipe whose student.sh trains every row, for each of SEEDS (default: 1). A second call continues where
# the first one stopped.
run_students() {
  local row seed
  "$RECIPE/prepare.sh"
  "$RECIPE/teacher.sh"
  for seed in ${SEEDS:-1}; do
    for row in "$@"; do SEED=$seed "$RECIPE/student.sh" "$row"; done
  done
  "$RECIPE/evaluate.sh"
}

# checkpoint_of MODEL FILE: print the path of a model's checkpoint FILE, of this SEED.
checkpoint_of() {
  local checkpoint
  checkpoint=$RUN/$(named "$1")/$2
  [ -e "$checkpoint" ] || die "$checkpoint does not exist; train $1 first"
  echo "$checkpoint"
}

# shellcheck source=/dev/null
[ ! -e "$RECIPE/settings.sh" ] || source "$RECIPE/settings.sh"
# Only the stages above read these variables; a recipe without rows has its own stages, and names those that it reads in USES.
if [ -z "${ROWS:-}" ] && [ "${RECIPE%/*}" = "$REPO/examples" ]; then
  for variable in SMOKE DRY_RUN START UPDATES; do
    [ -z "${!variable:-}" ] || [[ " ${USES:-} " == *" $variable "* ]] || die "$variable is not used by this recipe, but is '${!variable}'; leave it out"
  done
  [ "$TEACHER_PRECISION" = fp32 ] || die "TEACHER_PRECISION must be fp32 in this recipe, but is '$TEACHER_PRECISION'"
fi
