#!/usr/bin/env bash
# Prepare Tatoeba's German and English pairs: raw text, SentencePiece, fairseq's binary data in $RUN/data-bin.
#   RAW_DIR=DIR   folder with {train,valid,test}.{de,en}.gz, instead of a download
source "$(dirname "$0")/../common.sh"

# The list of manythings.org/anki of 2018-05-13, from a pinned commit of a repository that holds it.
ORIGIN=https://raw.githubusercontent.com/rioyshky/translation/de48b7027f7318d77010a6e08ed928c10748c23d/deu-eng.zip
FILES="
train.de  453acd2dc2ce7c03ba632d389a99c816035f33d9f4a04d74f3733abf2ffdbd0b
train.en  5768b458872bdf405d6a820b04e553cf3829fd771c770c7104928debfafc05ae
valid.de  89b63f036fc15f7efea24b932d7366279a73cac73bd652a9efa75bad0adf0869
valid.en  52731a9b13acfeb002686d645b466665481ebd79fa53b8fdeafaf473f224a1d4
test.de   aea2672344d6390b1ab71657a55f6d11fc58d7e0041197ace47e3ba31360a4d9
test.en   22034bc32d43171964b77cb06feef882fc2453c780541aae29e4bf26ae74b31d
"

pairs() {
  if [ -n "${RAW_DIR:-}" ]; then
    from_raw_dir <<<"$FILES"
  else
    download "$ORIGIN" "$RUN/raw/deu-eng.zip" b7688f84f99fa33c17397c14d8bd9cef1fdeb2ee0bf50074767023aee8926e28
    python "$RECIPE/split.py" "$RUN/raw/deu-eng.zip" "$RUN/raw"
    while read -r name sha; do [ -z "$name" ] || has_sha256 "$RUN/raw/$name" "$sha"; done <<<"$FILES"
  fi
}

prepare pairs
