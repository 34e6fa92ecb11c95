#!/usr/bin/env bash
# Measures distillation on a GPU, with a student and a teacher of transformer_iwslt_de_en's size on Multi30k, in less than ten
# minutes. benchmarks/gpu_run.py has the stages. After each stage the results so far are in $OUT.
#   benchmarks/gpu.sh prepare   make the data in $RUN, once, where there is a network or RAW_DIR. Carry $RUN along to the GPU.
#   benchmarks/gpu.sh           measure
#   RUN=DIR       folder for everything it makes (default: benchmarks/run-gpu)
#   OUT=DIR       folder of the results (default: $RUN/results)
#   RAW_DIR=DIR   for `prepare`: folder with Multi30k's text (default: download it)
#   WHEELS=DIR    without an installation: wheels of what the machine lacks (default: .whl)
#   SITE=DIR      without an installation: folder to install into, without a network (default: ~/site)
#   BIN=DIR       folder of the commands and their Python (default: this repository's .venv/bin, if it exists)
#   MINUTES=N     for all stages on a GPU (default: 9)
#   DEVICE=cpu    run every stage with small models on made-up text, to try the script; its figures mean nothing
set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RUN=${RUN:-$REPO/benchmarks/run-gpu}
OUT=${OUT:-$RUN/results}
WHEELS=${WHEELS:-$REPO/.whl} SITE=${SITE:-$HOME/site} BIN=${BIN:-$REPO/.venv/bin}
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

case ${1:-} in
  prepare) RUN=$RUN exec "$REPO/examples/multi30k/prepare.sh" ;;
  "") ;;
  *) die "the argument must be prepare or nothing, but is '$1'" ;;
esac
[ ! -d "$BIN" ] || PATH=$BIN:$PATH
PYTHON=$(command -v python || command -v python3) || die "neither python nor python3 is on PATH"
if ! command -v imitkd-train >/dev/null; then
  compgen -G "$WHEELS/fairseq_fixed-*.whl" >/dev/null ||
    die "imitkd-train is not on PATH, and WHEELS '$WHEELS' has no wheel of fairseq-fixed; run 'make install', or fill it"
  into=(-m pip install -q --no-index --no-deps --no-compile --disable-pip-version-check --upgrade --target "$SITE")
  "$PYTHON" "${into[@]}" "$WHEELS"/*.whl
  "$PYTHON" "${into[@]}" --no-build-isolation "$REPO"
  export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}" PATH="$SITE/bin:$PATH"
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" "$REPO/benchmarks/gpu_run.py" "$RUN" "$OUT" --device "${DEVICE:-cuda}" --minutes "${MINUTES:-9}"
