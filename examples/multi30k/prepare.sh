#!/usr/bin/env bash
# Prepare Multi30k German to English: raw text, SentencePiece, fairseq's binary data in $RUN/data-bin.
#   RAW_DIR=DIR   folder with {train,valid,test2016}.{de,en}.gz, instead of a download
source "$(dirname "$0")/../common.sh"

# shellcheck source=captions.sh
source "$RECIPE/captions.sh"

prepare captions
