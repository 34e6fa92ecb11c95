# Shared by every recipe's scripts. Source it; it runs nothing by itself.
#   DEVICE=cpu|cuda   where models train and decode (cuda when a GPU is visible)
#   RUN=DIR           everything a recipe makes (default: run/ beside the recipe)
# shellcheck shell=bash
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RECIPE=$(cd "$(dirname "$0")" && pwd)
RUN=${RUN:-$RECIPE/run}
[ -d "$REPO/.venv/bin" ] && PATH=$REPO/.venv/bin:$PATH
mkdir -p "$RUN"

say() { printf '\n== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

command -v imitkd-train >/dev/null || die "imitkd-train is not on PATH: run 'make install' in $REPO first"
export DEVICE=${DEVICE:-$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
case $DEVICE in
  cpu) DEVICE_FLAGS=(--cpu) ;;
  cuda) DEVICE_FLAGS=() ;;
  *) die "DEVICE must be cpu or cuda, but is '$DEVICE'" ;;
esac

# stage NAME COMMAND…: run the command once; a later call with the same NAME returns at once.
stage() {
  local name=$1
  shift
  [ -e "$RUN/.done/$name" ] && { say "$name: done before"; return; }
  say "$name"
  "$@"
  mkdir -p "$RUN/.done"
  touch "$RUN/.done/$name"
}

# train NAME FLAGS…: one training in $RUN/NAME, on $DATA (default: $RUN/data-bin). fairseq resumes it from checkpoint_last.pt after a kill.
train() {
  local name=$1
  shift
  mkdir -p "$RUN/$name"
  imitkd-train "${DATA:-$RUN/data-bin}" "${DEVICE_FLAGS[@]}" --save-dir "$RUN/$name" --log-format simple "$@" \
    2>&1 | tee -a "$RUN/$name/train.log"
}
