#!/usr/bin/env bash
# Prepare CNN/DailyMail, version 3.0.0: text, SentencePiece, fairseq's binary data in $RUN/data-bin.
# Requires pip install 'fairseq-imitkd[recipes]'.
#   RAW_DIR=DIR   folder with the five Parquet files, instead of a download
source "$(dirname "$0")/../common.sh"
ORIGIN=https://huggingface.co/datasets/abisee/cnn_dailymail/resolve/96df5e686bee6baa90b8bee7c28b81fa3fa6223d/3.0.0
PIECES="
train-00000-of-00003
train-00001-of-00003
train-00002-of-00003       ef3b5a190df25ac99592b802f070e244251553b78a5157a0c88fa19d8ef1a13b
validation-00000-of-00001  65a5ccce932b08f050114ce6e3c39355d563fa24f194052bb2f27d1c6c499c91
test-00000-of-00001        04e322d2634a96dba76bf9a6294fbbe48e0b36abeae43f13d86ba2c3bebffe4e
"

stories() {
  local piece sha
  if [ -z "${RAW_DIR:-}" ]; then
    RAW_DIR=$RUN/raw/downloaded
    while read -r piece sha; do
      [ -z "$piece" ] || download "$ORIGIN/$piece.parquet" "$RAW_DIR/$piece.parquet" "$sha"
    done <<<"$PIECES"
  fi
  python "$RECIPE/stories.py" "$RAW_DIR" "$RUN/raw"
}

prepare stories
