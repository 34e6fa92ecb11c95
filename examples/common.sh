# Shared by every recipe's scripts. Source it; it runs nothing by itself.
#   DEVICE=cpu|cuda   where models train and decode (cuda when a GPU is visible)
#   RUN=DIR           everything a recipe makes (default: run/ beside the recipe)
#   RAW_DIR=DIR       text that is there already, instead of a download
#   SEED=N            of a student (default 1); others than 1 are part of its name
#   UPDATES=N, TEACHER_UPDATES=N   of a student and of the teacher, instead of the recipe's
#   TEACHER_PRECISION=bf16|fp16   the teacher's, in its training and beside a student (default: fp32)
#   THREADS=N         of evaluate.sh, which decodes on the CPU whatever DEVICE is, so that speeds compare (default 1)
#   SMOKE=1           every stage with tiny models on made-up text, in run-smoke/
#   DRY_RUN=1         print the trainings, run nothing
# shellcheck shell=bash
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RECIPE=$(cd "$(dirname "$0")" && pwd)
SEED=${SEED:-1}
RUN=${RUN:-$RECIPE/run${SMOKE:+-smoke}}
[ -d "$REPO/.venv/bin" ] && PATH=$REPO/.venv/bin:$PATH

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "$0: bash must be 4.4 or later, but is $BASH_VERSION: install a newer one (on macOS: brew install bash coreutils)" >&2
  exit 1
fi
say() { printf '\n== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

command -v imitkd-train >/dev/null || die "imitkd-train is not on PATH: run 'make install' in $REPO first"
[[ $SEED =~ ^[0-9]+$ ]] || die "SEED must be a number, but is '$SEED'"
for variable in UPDATES TEACHER_UPDATES STUDENT_UPDATES MORE_UPDATES SEQ_INTER_UPDATES TASK_UPDATES NBEST THREADS; do # found out here, not hours later
  [[ ${!variable:-1} =~ ^[1-9][0-9]*$ ]] || die "$variable must be a whole number above 0, but is '${!variable}'"
done
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
RUN=$(cd "$RUN" >/dev/null && pwd -P) # as trainings.py leaves it out of the commands that it records
[ -n "${SMOKE:-}" ] && [ ! -e "$RUN/.smoke" ] && [ -d "$RUN/.done" ] && die "$RUN holds a real run: give SMOKE=1 another RUN=DIR"
[ -z "${SMOKE:-}" ] && [ -e "$RUN/.smoke" ] && die "$RUN holds a run with SMOKE=1: give this one another RUN=DIR"
[ -z "${SMOKE:-}" ] || touch "$RUN/.smoke"

# stage NAME COMMAND…: run the command once; a later call with the same NAME returns at once.
stage() {
  local name=$1
  shift
  if [ -n "${DRY_RUN:-}" ]; then
    ! trains "$1" || "$@"
    return
  fi
  if [ -e "$RUN/.done/$name" ]; then
    if ! trains "$1" || same_flags "$@"; then
      say "$name: done before"
    else
      say "$name: done before with other flags, and left as it is; to train it by the new ones delete $RUN/$name and $RUN/.done/$name"
    fi
    return
  fi
  say "$name"
  "$@"
  mkdir -p "$RUN/.done"
  touch "$RUN/.done/$name"
}

# trains COMMAND: whether it is one of the two that train a model, NAME first among their arguments; under DRY_RUN they print.
trains() { [ "$1" = train ] || [ "$1" = fit ]; }

# same_flags COMMAND NAME FLAGS…: whether NAME's last training was by this, on whatever device, in whatever order.
same_flags() {
  [ -e "$RUN/$2/commands" ] || return 0
  python "$REPO/examples/flags.py" "$(tail -n 1 "$RUN/$2/commands" | cut -f 2)" "$(DRY_RUN=1 "$@")"
}

# resumable NAME: fairseq copies its newest checkpoint to checkpoint_best.pt and checkpoint_last.pt, and a kill in the middle
# leaves what it can't read: such files go, and the newest whole one becomes checkpoint_last.pt.
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

# train NAME FLAGS…: one training in $RUN/NAME, on $DATA (default: $RUN/data-bin). fairseq resumes it from checkpoint_last.pt
# after a kill.
train() {
  local name=$1
  shift
  local command=(imitkd-train "${DATA:-$RUN/data-bin}" "${DEVICE_FLAGS[@]}" --save-dir "$RUN/$name" --log-format simple "$@")
  if [ -n "${SMOKE:-}" ]; then
    # The teacher must have learnt to end a sentence: imitkd-seqkd leaves out what is cut off.
    [ "$name" = teacher ] && command+=(--max-update 200 --lr 5e-2 --dropout 0) || command+=(--max-update 2)
    command+=(--max-tokens 300 --warmup-updates 1 --validate-interval-updates 100 --save-interval-updates 100)
  fi
  if [ -n "${DRY_RUN:-}" ]; then printf '%s\n' "${command[*]@Q}"; return; fi
  mkdir -p "$RUN/$name"
  resumable "$name"
  noted "$name" "${command[@]}" 2>&1 | tee -a "$RUN/$name/train.log"
}

# noted NAME COMMAND…: a training's command, and what results tell of it: $RUN/NAME/commands gets the commit, the command and the
# threads, a line for each call; $RUN/NAME/peak its memory.
noted() {
  local name=$1
  shift
  printf '%s\t%s\t%s\n' "$(git -C "$REPO" describe --always --dirty --exclude='*' 2>/dev/null || echo unknown)" \
    "${*@Q}" "${OMP_NUM_THREADS:-all}" >>"$RUN/$name/commands"
  python "$REPO/examples/peak.py" "$RUN/$name/peak" "$@"
}

# ---- The stages of a recipe for translation or summarisation. What is the recipe's own stands in its settings.sh:
#   SOURCE TARGET         the languages, as files are named after them
#   VOCABULARY            size of the joint SentencePiece BPE
#   TEACHER_MODEL TEACHER_TRAINING, STUDENT_MODEL STUDENT_TRAINING, TRAINING (both's)    flags of imitkd-train
#   DISTILLATION          more of them, of a student that has a teacher beside it
#   DECODING EVALUATION   flags of imitkd-seqkd and imitkd-evaluate, and of the latter alone
#   ROWS HEADLINES        the students of its table, and those of them that are trained with two seeds
#   own ROW               sets OWN, flags that ROW gets beside its method's defaults
KIND=                                     # of student, part of its name: _sru
PLAIN=(--task translation --criterion label_smoothed_cross_entropy --label-smoothing 0.1)
SUBWORDS=(--remove-bpe sentencepiece)     # how symbols are made text
TEXT=()                                   # the same in imitkd-evaluate, where it is not SUBWORDS
TOKENISED_BLEU=                           # a language: score its text as Moses tokenises it, lower-case, as well
DICTIONARY=(--joined-dictionary)          # or files of one that is there
CHECK=()                                  # flags of check.py
DISTILLATION=()
EVALUATION=()
[ -z "${SMOKE:-}" ] || NBEST=3
NBEST=${NBEST:-35}
own() { OWN=(); }
# The models of the recipes that a CPU is enough for, and how they are trained but for what chooses checkpoint_best.pt.
# shellcheck disable=SC2034 # settings.sh has them
TRANSFORMER_3_3_256=(
  --arch transformer
  --encoder-layers 3 --decoder-layers 3 --encoder-attention-heads 4 --decoder-attention-heads 4
  --encoder-embed-dim 256 --decoder-embed-dim 256 --encoder-ffn-embed-dim 1024 --decoder-ffn-embed-dim 1024
)
# shellcheck disable=SC2034
TRANSFORMER_1_1_64=(
  --arch transformer
  --encoder-layers 1 --decoder-layers 1 --encoder-attention-heads 4 --decoder-attention-heads 4
  --encoder-embed-dim 64 --decoder-embed-dim 64 --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256
)
# shellcheck disable=SC2034
SMALL_TRAINING=(
  --share-all-embeddings --max-tokens 4096
  --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --lr-scheduler inverse_sqrt --warmup-updates 500
  --validate-interval-updates 250 --validate-interval 100000 --save-interval 100000
  --save-interval-updates 250 --keep-interval-updates 1 --no-epoch-checkpoints --log-interval 50
)

# raw_text COMMAND…: $RUN/raw/{train,valid,test}.{$SOURCE,$TARGET}, as COMMAND makes them; with SMOKE=1 out of nothing.
raw_text() {
  mkdir -p "$RUN/raw"
  if [ -n "${SMOKE:-}" ]; then made_up_text; else "$@"; fi
  python "$REPO/examples/check.py" "$RUN/raw" "$SOURCE" "$TARGET" "${CHECK[@]}"
}

made_up_text() {
  local split
  python "$REPO/examples/quickstart/language.py" "$RUN/raw/made_up" --train 160 --valid 16 --test 16
  for split in train valid test; do
    mv "$RUN/raw/made_up/$split.src" "$RUN/raw/$split.$SOURCE"
    mv "$RUN/raw/made_up/$split.tgt" "$RUN/raw/$split.$TARGET"
  done
}

# from_raw_dir: for each line "NAME SHA256 [FILE]" that it reads, $RUN/raw/NAME out of $RAW_DIR/FILE or FILE.gz (default: NAME).
from_raw_dir() {
  local name sha file
  while read -r name sha file; do
    [ -n "$name" ] || continue
    file=$RAW_DIR/${file:-$name}
    if [ -r "$file.gz" ]; then
      file+=.gz
      gzip -dc "$file" >"$RUN/raw/$name" || die "$file is no whole gzip file: delete it and fetch it again"
    elif [ -r "$file" ]; then
      cp "$file" "$RUN/raw/$name"
    else
      die "RAW_DIR must hold $(basename "$file").gz, or that unzipped, but '$RAW_DIR' does not"
    fi
    has_sha256 "$RUN/raw/$name" "$sha" "$file"
  done
}

# has_sha256 TEXT SHA256 [FILE]: or it, out of FILE, is not what the recipe's results are of.
has_sha256() {
  [ -n "${ANY_TEXT:-}" ] && return
  echo "$2  $1" | sha256sum --check --status ||
    die "${3:-$1} is not the text that this recipe was written for (sha256 $2): delete it and fetch it again, or take it as it is with ANY_TEXT=1"
}

# download URL FILE [SHA256], once: FILE is there only when it is whole.
download() {
  [ ! -e "$2" ] || return 0
  mkdir -p "$(dirname "$2")"
  curl -fL --retry 3 --progress-bar -o "$2.part" "$1" || die "could not download $1: give RAW_DIR=DIR with the text (README.md says which files)"
  [ -z "${3:-}" ] || has_sha256 "$2.part" "$3"
  mv "$2.part" "$2"
}

# One joint BPE for both sides, and every split in it.
encode() {
  local split side size=$VOCABULARY
  [ -z "${SMOKE:-}" ] || size=150
  python "$REPO/examples/subwords.py" train "$RUN/spm" "$size" "$RUN/raw/train.$SOURCE" "$RUN/raw/train.$TARGET"
  mkdir -p "$RUN/encoded"
  for split in train valid test; do
    for side in "$SOURCE" "$TARGET"; do
      python "$REPO/examples/subwords.py" encode "$RUN/spm.model" <"$RUN/raw/$split.$side" >"$RUN/encoded/$split.$side"
    done
  done
}

# fairseq's data in $RUN/data-bin.
binarise() {
  rm -rf "$RUN/data-bin" # fairseq-preprocess refuses a folder that a killed call left half done
  fairseq-preprocess --source-lang "$SOURCE" --target-lang "$TARGET" --workers 2 --destdir "$RUN/data-bin" \
    --trainpref "$RUN/encoded/train" --validpref "$RUN/encoded/valid" --testpref "$RUN/encoded/test" "${DICTIONARY[@]}" \
    >"$RUN/preprocess.log" 2>&1 || { tail -n 5 "$RUN/preprocess.log" >&2; die "fairseq-preprocess failed: see $RUN/preprocess.log"; }
}

# prepare COMMAND…: all of the above; COMMAND as of raw_text.
prepare() {
  stage raw raw_text "$@"
  stage encode encode
  stage binarise binarise
}

# small FLAGS…: sets MODEL to the flags of a model, with SMOKE=1 of a tiny one of that architecture.
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

# The teacher, on the references.
teach() {
  local precision=()
  [ "$TEACHER_PRECISION" = fp32 ] || precision=("--$TEACHER_PRECISION")
  small "${TEACHER_MODEL[@]}"
  stage teacher train teacher "${PLAIN[@]}" "${MODEL[@]}" "${TRAINING[@]}" --seed 1 "${TEACHER_TRAINING[@]}" \
    "${precision[@]}" "$@"
}

# named ROW: NAME for seed 1, NAME-seed2 and so on for others.
named() { [ "$SEED" = 1 ] && echo "$1$KIND" || echo "$1$KIND-seed$SEED"; }

# learn ROW [FLAGS…]: one student, from nothing unless START=NAME says from whom. ROW is
#   scratch         cross entropy on the references; `continued`, the same from START
#   seqkd           cross entropy on what the teacher's beam search writes (SeqKD; Kim & Rush 2016, section 3.2)
#   seq_inter       seqkd's student goes on with those of the teacher's NBEST that are most like the reference (section 3.3)
#   seqkd_pruned    seqkd's student goes on with four fifths of its weights zero (section 5.2)
#   METHOD          any name of --criterion: a teacher beside the references
#   seqkd_METHOD    METHOD on seqkd's data (the starred rows of Lin et al. 2020)
learn() {
  local row=$1 name data="" start=() objective=("${PLAIN[@]}") method=${1#seqkd_}
  shift
  name=$(named "$row")
  own "$row"
  case $method in # the data that half of f-distill's losses, and all of its KL, are of: what the teacher writes
    f_distill | f_distill_kl | f_distill_tvd) OWN+=(--teacher-samples) ;;
  esac
  [ "$row" != continued ] || [ -n "${START:-}" ] || die "continued goes on from another student: give START=NAME"
  if [ -n "${START:-}" ]; then
    local base=${START%-seed*} # of this kind of student, as the rows are
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
      objective+=(--task translation_with_teacher --prune-sparsity 0.8) # at once, so that the best checkpoint is a pruned one
      ;;
    *)
      [ "$method" = "$row" ] || data=seqkd
      objective=(--task translation_with_teacher --criterion "$method" --teacher-path "$(trained teacher)" "${DISTILLATION[@]}")
      [ "$TEACHER_PRECISION" = fp32 ] || objective+=(--teacher-dtype "$TEACHER_PRECISION")
      ;;
  esac
  if [ -n "$data" ]; then
    stage "data_$data" translate "$data"
    data=data_$data/
  fi
  small "${STUDENT_MODEL[@]}"
  DATA=$RUN/${data}data-bin stage "$name" train "$name" "${objective[@]}" "${MODEL[@]}" "${TRAINING[@]}" "${STUDENT_TRAINING[@]}" \
    --seed "$SEED" "${OWN[@]}" "${start[@]}" "$@" # so START counts also where a row has a start of its OWN
}

# trained NAME: its checkpoint, of this SEED if it is a student.
trained() {
  local name=$1
  [ "$name" = teacher ] || name=$(named "$name")
  [ -n "${DRY_RUN:-}" ] || finished "$name" || die "no $RUN/$name/checkpoint_best.pt of a training that has ended: train $name first"
  echo "$RUN/$name/checkpoint_best.pt"
}

# finished NAME: whether it can be learnt from and be in a table. What was trained elsewhere and put there has no `commands`.
finished() { [ -e "$RUN/$1/checkpoint_best.pt" ] && { [ -e "$RUN/.done/$1" ] || [ ! -e "$RUN/$1/commands" ]; }; }

# translate seqkd|seq_inter: the training set with the teacher's translations, in $RUN/data_NAME. It goes on after a kill.
#   SEQKD_FLAGS="--backend ctranslate2 --workers 2"   how to decode; any flags of imitkd-seqkd
translate() {
  local name=$1 how=() flags teacher
  teacher=$(trained teacher)
  read -ra flags <<<"${SEQKD_FLAGS:-}"
  case $name in
    seqkd) how=(--beam 5) ;;
    seq_inter) how=(--select best --metric sentence-bleu --nbest "$NBEST") ;;
  esac
  imitkd-seqkd "$RUN/data-bin" "${DEVICE_FLAGS[@]}" --teacher-path "$teacher" --out "$RUN/data_$name" \
    "${SUBWORDS[@]}" "${DECODING[@]}" "${how[@]}" "${flags[@]}"
}

# Evaluates on the test set every model whose training has ended, and its NAME/exported, side by side: $RUN/evaluation,
# $RUN/results.json, and the table. examples/tables.py $RUN puts that into the READMEs.
evaluate() {
  local models=() row seeds name own=() failed=""
  [ -z "${DRY_RUN:-}" ] || return 0
  [ ${#TEXT[@]} -gt 0 ] || TEXT=("${SUBWORDS[@]}")
  trained teacher >/dev/null
  SEED=1 trained scratch >/dev/null
  # In the order of the table; whatever else was trained comes last.
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
          say "$name: its training has not ended, so it is left out"
        fi
      done
    done
  done
  [ -z "${SMOKE:-}" ] || own=(--quick --max-len-b 5 --batch-sizes 8)
  touch "$RUN/.evaluating"
  ( # in the run: the command that is recorded then holds no path of this machine
    cd "$RUN" && imitkd-evaluate "${models[@]}" --data data-bin --out evaluation --teacher teacher --baseline "scratch$KIND" \
      --threads "${THREADS:-1}" "${TEXT[@]}" "${DECODING[@]}" "${EVALUATION[@]}" "${own[@]}" >evaluation.md
  ) || failed=1 # where one model can't be evaluated, the others still are
  [ "$RUN/evaluation/evaluation.json" -nt "$RUN/.evaluating" ] || die "nothing was evaluated: see above"
  rm "$RUN/.evaluating"
  python "$REPO/examples/results.py" "$RUN" --recipe "$(basename "$RECIPE")" ${TOKENISED_BLEU:+--tokenised-bleu "$TOKENISED_BLEU"}
  [ -z "$failed" ] || die "not every model was evaluated: see above"
}

# The whole recipe: run.sh [ROW…] (default: ROWS). A second call goes on where the first one stopped. SEEDS are HEADLINES' (default:
# 1 2); the other rows have the first of them alone.
run_recipe() {
  local row seed first=""
  [ "$SEED" = 1 ] || die "SEED is of one student: run.sh takes SEEDS=\"1 $SEED\", but SEED is '$SEED'"
  for seed in ${SEEDS:-1 2}; do [[ $seed =~ ^[0-9]+$ ]] || die "SEEDS must be numbers, but has '$seed'"; done
  if [ $# -gt 0 ]; then python "$REPO/examples/rows.py" "$@"; else set -- "${ROWS[@]}"; fi
  # Found out here, not when all else is trained: the table's differences are from it.
  [[ " $* " == *" scratch "* && " ${SEEDS:-1 2} " == *" 1 "* ]] || finished "scratch$KIND" ||
    die "the rows must have scratch with seed 1, which the others are compared with, but are '$*' with SEEDS '${SEEDS:-1 2}'"
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

# shellcheck source=/dev/null
[ ! -e "$RECIPE/settings.sh" ] || source "$RECIPE/settings.sh"
# What the stages above mind; a recipe without rows has stages of its own. (benchmarks/gpu.sh, which is none, has SMOKE.)
if [ -z "${ROWS:-}" ] && [ "${RECIPE%/*}" = "$REPO/examples" ]; then
  for variable in SMOKE DRY_RUN START UPDATES; do
    [ -z "${!variable:-}" ] || die "$variable is nothing that this recipe minds, but is '${!variable}': leave it out"
  done
  [ "$TEACHER_PRECISION" = fp32 ] || die "TEACHER_PRECISION must be fp32 in this recipe, but is '$TEACHER_PRECISION'"
fi
