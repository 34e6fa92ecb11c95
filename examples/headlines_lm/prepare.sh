#!/usr/bin/env bash
# Prepare Reuters-21578's news for language models: each line is the beginning of a body, "TL;DR", and its headline.
#   RAW_DIR=DIR   folder with {train,valid,test}.{src,tgt}.gz, instead of a download
source "$(dirname "$0")/../common.sh"
# shellcheck source=../reuters_headlines/news.sh
source "$REPO/examples/reuters_headlines/news.sh"

# A prompt ends with TL;DR, which is a symbol of its own.
joined() {
  local split
  for split in train valid test; do
    paste -d' ' "$RUN/encoded/$split.src" <(sed 's/.*/TL;DR/' "$RUN/encoded/$split.src") "$RUN/encoded/$split.tgt" >"$RUN/raw/$split.txt"
  done
}

stage raw raw_text news
stage encode encode
stage join joined
stage binarise binarise raw data-bin
