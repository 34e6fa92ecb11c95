# The text of Reuters-21578, for the recipes that use it. Source it after common.sh: `news` writes $RUN/raw/{train,valid,test}.{src,tgt}.
# shellcheck shell=bash

# Reuters-21578, Distribution 1.0, from a pinned commit of a repository that holds it.
ORIGIN=https://raw.githubusercontent.com/colibri17/TextCategorization/b6c2ca3d46a2540843400890792e5165448b4516/reuters21578
# The uncut text in its original case, as headlines.py writes it.
FILES="
whole.train.src  75763b0f8bc168dd1ab37856acdc1f475bff4e904c2b44fd33f2c6c3e49053a2  train.src
whole.train.tgt  7809642ecaa815ffda78955f249e54fa6828d5b47d27c069988a3e965afee4a6  train.tgt
whole.valid.src  962382f2962437eac4a4347d7d4298372a54c3cf39378c3984ffd149a0d520f0  valid.src
whole.valid.tgt  5559ef3cbfc6742aa70021d66462b0f75a19c3128d624390ddf25b87166bb32a  valid.tgt
whole.test.src   dcdc5d1c90da91c1dca1f951fce09835ee1008998b84c03175c1209938cd55a6  test.src
whole.test.tgt   d9ddfadb863db2271c8e0479aa905e907b23e7119e26173118bc6b058adc2763  test.tgt
"

news() {
  local split side
  if [ -z "${RAW_DIR:-}" ]; then
    for number in $(seq -w 0 21); do
      download "$ORIGIN/reut2-0$number.sgm" "$RUN/raw/downloaded/reut2-0$number.sgm"
    done
    python "$REPO/examples/reuters_headlines/headlines.py" "$RUN/raw/downloaded" "$RUN/raw/whole"
    RAW_DIR=$RUN/raw/whole
  fi
  from_raw_dir <<<"$FILES"
  # Headlines are in upper case, so both sides are lower-cased. Of a body, only the beginning is kept.
  for split in train valid test; do
    # shellcheck disable=SC2018,SC2019 # the same letters in every locale
    for side in src tgt; do tr A-Z a-z <"$RUN/raw/whole.$split.$side" | cut -d' ' -f1-"$WORDS" >"$RUN/raw/$split.$side"; done
  done
}
