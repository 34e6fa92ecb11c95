#!/usr/bin/env bash
# Prepare Reuters-21578's news and their headlines: text, SentencePiece, fairseq's binary data in $RUN/data-bin.
#   RAW_DIR=DIR   folder with {train,valid,test}.{src,tgt}.gz, instead of a download
source "$(dirname "$0")/../common.sh"

# shellcheck source=news.sh
source "$RECIPE/news.sh"

prepare news
