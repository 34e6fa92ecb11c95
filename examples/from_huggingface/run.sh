#!/usr/bin/env bash
# From a model in Hugging Face's format to a student in int8: import, trim, distil, export.
#   ORIGIN=DIR       folder of the model (OPUS-MT, NLLB, M2M-100, mBART, BART, Pegasus, FSMT)
#   CORPUS=PREFIX    text: PREFIX.train.LANG, PREFIX.valid.LANG, PREFIX.test.LANG, one sentence per line, as people write it
#   SRC=de TGT=en    languages, which the model must know
#   METHOD=word_kd   the criterion
#   UPDATES=20000    updates of the student
#   SMOKE=1          a model with random weights, made-up text and two updates
USES="SMOKE UPDATES"
source "$(dirname "$0")/../common.sh"
SRC=${SRC:-de} TGT=${TGT:-en} METHOD=${METHOD:-word_kd} UPDATES=${UPDATES:-20000}
STUDENT=(
  --arch transformer --share-decoder-input-output-embed --encoder-layers 6 --decoder-layers 1
  --encoder-embed-dim 256 --decoder-embed-dim 256 --encoder-ffn-embed-dim 1024 --decoder-ffn-embed-dim 1024
  --encoder-attention-heads 4 --decoder-attention-heads 4
)
MORE=()
if [ -n "${SMOKE:-}" ]; then
  ORIGIN=$RUN/model CORPUS=$RUN/raw UPDATES=2
  STUDENT=(
    --arch transformer --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 32 --decoder-embed-dim 32
    --encoder-ffn-embed-dim 64 --decoder-ffn-embed-dim 64 --encoder-attention-heads 2 --decoder-attention-heads 2
  )
  MORE=(--teacher-allow-poor) # random weights know nothing
fi
[ -n "${ORIGIN:-}" ] || die "ORIGIN is not given; name the folder of a model in Hugging Face's format"
[ -n "${CORPUS:-}" ] || die "CORPUS is not given; name the part of your text's files before .train.$SRC"

# encode: split the text into the subwords of the teacher.
encode() {
  local split
  mkdir -p "$RUN/subwords"
  for split in train valid test; do
    imitkd-encode "$RUN/teacher" --side source <"$CORPUS.$split.$SRC" >"$RUN/subwords/$split.$SRC"
    imitkd-encode "$RUN/teacher" --side target <"$CORPUS.$split.$TGT" >"$RUN/subwords/$split.$TGT"
  done
}

data() {
  rm -rf "$RUN/data-bin" # fairseq-preprocess refuses a folder that a killed call left incomplete
  fairseq-preprocess --source-lang "$SRC" --target-lang "$TGT" --destdir "$RUN/data-bin" \
    --trainpref "$RUN/subwords/train" --validpref "$RUN/subwords/valid" --testpref "$RUN/subwords/test" \
    --srcdict "$RUN/teacher/dict.$SRC.txt" --tgtdict "$RUN/teacher/dict.$TGT.txt" >"$RUN/preprocess.log" 2>&1 ||
    { tail -5 "$RUN/preprocess.log" >&2; return 1; }
}

distil() {
  imitkd-train "$RUN/data-bin" --save-dir "$RUN/student" --teacher-path "$RUN/teacher/model.pt" --criterion "$METHOD" \
    "${STUDENT[@]}" --optimizer adam --adam-betas '(0.9, 0.98)' --lr 1e-3 --lr-scheduler inverse_sqrt --warmup-updates 2000 \
    --dropout 0.1 --max-tokens 4096 --max-update "$UPDATES" --no-epoch-checkpoints "${MORE[@]}" "${DEVICE_FLAGS[@]}"
}

# exported: translates raw text with CTranslate2.
exported() {
  imitkd-export "$RUN/student/checkpoint_best.pt" --data "$RUN/data-bin" --out "$RUN/exported" --subwords "$RUN/teacher"
}

[ -z "${SMOKE:-}" ] || stage model python "$RECIPE/random_model.py" "$RUN"
stage import imitkd-import "$ORIGIN" --out "$RUN/teacher" --source-lang "$SRC" --target-lang "$TGT" --trim-to "$CORPUS.train"
stage subwords encode
stage data data
stage student distil
stage export exported
