#!/usr/bin/env bash
# Prepare WMT'16 English to German for fairseq's published model: its subwords and dictionary, binary data in $RUN/data-bin.
# Requires pip install 'fairseq-imitkd[recipes]'.
#   RAW_DIR=DIR     folder with europarl-v7-de-en.tgz, training-parallel-commoncrawl.tgz, training-parallel-nc-v11.tgz and
#                   newstest201{3,4}.{en,de}, or with Google's unpacked wmt16_en_de.tar.gz, instead of the downloads
#   PUBLISHED=DIR   folder with fairseq's unpacked wmt16.en-de.joined-dict.transformer, instead of a download
source "$(dirname "$0")/../common.sh"
MODEL_URL=https://dl.fbaipublicfiles.com/fairseq/models/wmt16.en-de.joined-dict.transformer.tar.bz2
CPUS=$(nproc)

published() {
  local file
  if [ -n "${SMOKE:-}" ]; then
    cat "$RUN/raw/train.$SOURCE" "$RUN/raw/train.$TARGET" | subword-nmt learn-bpe -s 100 >"$RUN/published/bpecodes"
  elif [ -n "${PUBLISHED:-}" ]; then
    for file in model.pt dict.en.txt dict.de.txt bpecodes; do
      cp "$PUBLISHED/$file" "$RUN/published/" || die "PUBLISHED must hold $file, but '$PUBLISHED' does not"
    done
  else
    download "$MODEL_URL" "$RUN/published/model.tar.bz2"
    tar -xjf "$RUN/published/model.tar.bz2" -C "$RUN/published" --strip-components=1
  fi
}

news() {
  local raw=${RAW_DIR:-$RUN/raw/downloaded} side year set
  if [ -r "$raw/train.tok.clean.bpe.32000.en" ]; then
    for side in en de; do # join the subwords; `encode` splits the words again
      sed -E 's/@@( |$)//g' "$raw/train.tok.clean.bpe.32000.$side" >"$RUN/raw/train.$side"
      sed -E 's/@@( |$)//g' "$raw/newstest2013.tok.bpe.32000.$side" >"$RUN/raw/valid.$side"
      sed -E 's/@@( |$)//g' "$raw/newstest2014.tok.bpe.32000.$side" >"$RUN/raw/test.$side"
    done
    return
  fi
  if [ -z "${RAW_DIR:-}" ]; then
    download http://www.statmt.org/europarl/v7/de-en.tgz "$raw/europarl-v7-de-en.tgz"
    download http://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz "$raw/training-parallel-commoncrawl.tgz"
    download http://data.statmt.org/wmt16/translation-task/training-parallel-nc-v11.tgz "$raw/training-parallel-nc-v11.tgz"
    for year in 2013 2014; do
      [ "$year" = 2013 ] && set=wmt13 || set=wmt14/full
      sacrebleu --test-set "$set" --language-pair en-de --echo src >"$raw/newstest$year.en"
      sacrebleu --test-set "$set" --language-pair en-de --echo ref >"$raw/newstest$year.de"
    done
  fi
  python "$RECIPE/wmt.py" "$raw" "$RUN/raw" --workers "$CPUS"
}

# The published model's embeddings need its own merges and dictionary.
encode() {
  local split side
  mkdir -p "$RUN/encoded" "$RUN/published"
  published
  for split in train valid test; do
    for side in "$SOURCE" "$TARGET"; do
      subword-nmt apply-bpe -c "$RUN/published/bpecodes" --num-workers "$CPUS" \
        --input "$RUN/raw/$split.$side" --output "$RUN/encoded/$split.$side"
    done
  done
}

prepare news
