#!/usr/bin/env bash
# Multi30k German to English: raw text, SentencePiece, fairseq's binary data in $RUN/data-bin.
#   RAW_DIR=DIR   a folder with {train,valid,test2016}.{de,en}.gz instead of the download
source "$(dirname "$0")/../common.sh"
RAW_DIR=${RAW_DIR:-}
VOCABULARY=${VOCABULARY:-4000}

# Task 1 of the data set's own repository, pinned: the train, valid and test 2016 files and their sha256.
ORIGIN=https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw
FILES="
train.de      train              726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6
train.en      train              d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f
valid.de      val                f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a
valid.en      val                14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28
test2016.de   test_2016_flickr   9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8
test2016.en   test_2016_flickr   611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9
"

fetch_raw() {
  local name origin sha # `stage` has a name of its own
  mkdir -p "$RUN/raw"
  while read -r name origin sha; do
    [ -n "$name" ] || continue
    local gz=$RUN/raw/$name.gz
    if [ -n "$RAW_DIR" ]; then
      [ -r "$RAW_DIR/$name.gz" ] || die "RAW_DIR must hold $name.gz, but $RAW_DIR does not"
      cp "$RAW_DIR/$name.gz" "$gz"
    else
      curl -fsSL --retry 3 -o "$gz" "$ORIGIN/$origin.${name##*.}.gz" || die "could not download $name.gz; give RAW_DIR=DIR with the six files"
    fi
    echo "$sha  $gz" | sha256sum --check --quiet || die "$gz is not the file this recipe was written for (sha256)"
    gzip -dc "$gz" >"$RUN/raw/$name"
  done <<<"$FILES"
}

encode() {
  python "$REPO/examples/subwords.py" train "$RUN/spm" "$VOCABULARY" "$RUN/raw/train.de" "$RUN/raw/train.en"
  mkdir -p "$RUN/encoded"
  for split in train valid test2016; do
    for side in de en; do
      python "$REPO/examples/subwords.py" encode "$RUN/spm.model" <"$RUN/raw/$split.$side" >"$RUN/encoded/$split.$side"
    done
  done
}

binarise() {
  rm -rf "$RUN/data-bin" # fairseq-preprocess refuses a folder that a killed call left half done
  fairseq-preprocess --source-lang de --target-lang en --joined-dictionary --workers 2 --destdir "$RUN/data-bin" \
    --trainpref "$RUN/encoded/train" --validpref "$RUN/encoded/valid" --testpref "$RUN/encoded/test2016"
}

stage raw fetch_raw
stage encode encode
stage binarise binarise
