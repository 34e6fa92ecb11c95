#!/usr/bin/env bash
# Prepare three languages from Multi30k: text by languages.py, one SentencePiece model and one dictionary of all, fairseq's binary
# data of the pairs in $RUN/data-bin.
#   RAW_DIR=DIR   folder with {train,valid,test2016}.{de,en}.gz, instead of a download
source "$(dirname "$0")/../common.sh"
# shellcheck source=../multi30k/captions.sh
source "$REPO/examples/multi30k/captions.sh"

raw() {
  mkdir -p "$RUN/raw"
  if [ -n "${SMOKE:-}" ]; then SOURCE=de TARGET=en made_up_text; else captions; fi
}

encode() {
  local file name size=2000
  [ -z "${SMOKE:-}" ] || size=100
  python "$RECIPE/languages.py" "$RUN/raw" "$RUN/text"
  python "$REPO/examples/subwords.py" train "$RUN/subwords" "$size" "$RUN"/text/train.de-{en.de,en.en,xx.xx}
  mkdir -p "$RUN/encoded"
  for file in "$RUN"/text/*; do
    name=$(basename "$file")
    python "$REPO/examples/subwords.py" encode "$RUN/subwords.model" <"$RUN/text/$name" >"$RUN/encoded/$name"
  done
}

# One dictionary of all languages, with their tags. Without the tags in the file, fairseq's task would add them itself, and commands that
# read the data for one pair would not know them.
binarise() {
  local pair
  rm -rf "$RUN/dictionary" "$RUN/data-bin" # fairseq-preprocess refuses a folder that a killed call left incomplete
  cat "$RUN"/encoded/train.de-{en.de,en.en,xx.xx} >"$RUN/encoded/all"
  fairseq-preprocess --only-source --dict-only --workers 1 --trainpref "$RUN/encoded/all" --destdir "$RUN/dictionary" >"$RUN/preprocess.log" 2>&1
  printf '__%s__ 0\n' de en xx >>"$RUN/dictionary/dict.txt"
  for pair in de-en de-xx; do # en-de is read from the files of de-en
    fairseq-preprocess --source-lang "${pair%-*}" --target-lang "${pair#*-}" --workers 1 --destdir "$RUN/data-bin" \
      --trainpref "$RUN/encoded/train.$pair" --validpref "$RUN/encoded/valid.$pair" --testpref "$RUN/encoded/test.$pair" \
      --srcdict "$RUN/dictionary/dict.txt" --tgtdict "$RUN/dictionary/dict.txt" >>"$RUN/preprocess.log" 2>&1
  done
}

stage raw raw
stage encode encode
stage binarise binarise
