#!/usr/bin/env bash
# Prepare SST-2: raw text, SentencePiece, fairseq's binary data in $RUN/data-bin.
#   RAW_DIR=DIR   folder with {train,dev,test_labeled}.tsv.gz, instead of a download
source "$(dirname "$0")/../common.sh"
RAW_DIR=${RAW_DIR:-}
VOCABULARY=${VOCABULARY:-4000}

# GLUE's files and the labelled test set, from a pinned commit of a repository that holds them; sha256 of the text, not of its gzip.
ORIGIN=https://raw.githubusercontent.com/eyalbd2/Reproducing-AutoPrompt/6288fb5bec9c572f2492875ae0111df5b6daed11/glue_data/SST-2
FILES="
train         train_full    48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1
dev           dev           54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0
test_labeled  test-labeled  c0efc56ade6e0598d0f8daca1976e232aee0bcabca8e599341cad290d9d10b3c
"

fetch_raw() {
  local name origin sha
  mkdir -p "$RUN/raw"
  while read -r name origin sha; do
    [ -n "$name" ] || continue
    local tsv=$RUN/raw/$name.tsv
    if [ -n "$RAW_DIR" ]; then
      [ -r "$RAW_DIR/$name.tsv.gz" ] || die "RAW_DIR must hold $name.tsv.gz, but '$RAW_DIR' does not"
      gzip -dc "$RAW_DIR/$name.tsv.gz" >"$tsv" || die "$RAW_DIR/$name.tsv.gz is not a complete gzip file; fetch it again"
    else
      curl -fsSL --retry 3 -o "$tsv" "$ORIGIN/$origin.tsv" ||
        die "could not download $ORIGIN/$origin.tsv; fetch it, gzip it as $name.tsv.gz, and use RAW_DIR=DIR with the three files"
    fi
    echo "$sha  $tsv" | sha256sum --check --quiet || die "$tsv is not the file that this recipe was written for (sha256 $sha); fetch it again"
  done <<<"$FILES"
}

# A .tsv has a header and lines of SENTENCE TAB LABEL. Those of the test set end with CR.
sentences() { tail -n +2 "$RUN/raw/$1.tsv" | tr -d '\r' | cut -f1 | sed 's/ *$//'; }
labels() { tail -n +2 "$RUN/raw/$1.tsv" | tr -d '\r' | cut -f2; }

encode() {
  sentences train >"$RUN/raw/train.txt"
  python "$REPO/examples/subwords.py" train "$RUN/subwords" "$VOCABULARY" "$RUN/raw/train.txt"
  mkdir -p "$RUN/encoded"
  for split in train dev test_labeled; do
    # Sort by length: fairseq batches this task's sentences in the order of the file, so most of a batch would be padding.
    paste <(labels "$split") <(sentences "$split" | python "$REPO/examples/subwords.py" encode "$RUN/subwords.model") |
      awk '{print NF "\t" $0}' | LC_ALL=C sort -s -n -k1,1 | cut -f2- >"$RUN/encoded/$split.tsv"
    cut -f1 "$RUN/encoded/$split.tsv" >"$RUN/encoded/$split.label"
    cut -f2 "$RUN/encoded/$split.tsv" >"$RUN/encoded/$split.input0"
  done
}

binarise() {
  rm -rf "$RUN/data-bin" # fairseq-preprocess refuses a folder that a killed call left incomplete
  for part in input0 label; do
    fairseq-preprocess --only-source --workers 1 --destdir "$RUN/data-bin/$part" \
      --trainpref "$RUN/encoded/train.$part" --validpref "$RUN/encoded/dev.$part" --testpref "$RUN/encoded/test_labeled.$part"
  done
}

stage raw fetch_raw
stage encode encode
stage binarise binarise
