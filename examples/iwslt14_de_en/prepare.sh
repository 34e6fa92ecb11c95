#!/usr/bin/env bash
# Prepare IWSLT'14's German and English talks: tokenised, lower-case text, SentencePiece, fairseq's binary data in $RUN/data-bin.
#   RAW_DIR=DIR   folder with de-en.tgz or with the prepared {train,valid,test}.{de,en}.gz, instead of a download
source "$(dirname "$0")/../common.sh"
ORIGIN=http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz
PAIRS=174272 # all three splits

talks() {
  local archive=${RAW_DIR:-$RUN/raw/downloaded}/de-en.tgz split side
  if [ -n "${RAW_DIR:-}" ] && [ ! -e "$archive" ]; then
    # Checksums of fairseq's own preparation. Those of the training set are not known.
    from_raw_dir <<'FILES'
valid.de  3f051579c9d8c7281a6ea8c72ad4ae09dbaa9bb24dfd41166f2c3a3df7cd940a
valid.en  e6d7317a9772cd1ed970910c611e9e7dada1f34439269b44a9d801334bff948d
test.de   e718c783e33160b7d72af8f733756a466e0d0c016eff8ab624c1b0d1d01cbbdf
test.en   4b127beb9050511a3e6209cd837ff36f623a3a423666b32aba6e208b7330cf4c
FILES
    ANY_TEXT=1 from_raw_dir <<<$'train.de -\ntrain.en -'
  else
    [ -e "$archive" ] || download "$ORIGIN" "$archive"
    python "$RECIPE/ted.py" "$archive" "$RUN/raw"
  fi
  [ -n "${ANY_TEXT:-}" ] || [ "$(cat "$RUN"/raw/{train,valid,test}.de | wc -l)" = "$PAIRS" ] ||
    die "$RUN/raw must hold $PAIRS pairs in total; fetch the data again, or accept it with ANY_TEXT=1"
}

prepare talks
