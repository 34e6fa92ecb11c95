# The text of Multi30k, for the recipes that use it. Source it after common.sh: `captions` writes $RUN/raw/{train,valid,test}.{de,en}.
# shellcheck shell=bash

# Train, valid and test 2016 of task 1, from a pinned commit of the data set's repository; sha256 of the text, not of its gzip.
ORIGIN=https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw
FILES="
train.de  2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72  train.de
train.en  460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6  train.en
valid.de  660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660  valid.de
valid.en  1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227  valid.en
test.de   4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16  test2016.de
test.en   399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182  test2016.en
"

captions() {
  if [ -z "${RAW_DIR:-}" ]; then
    RAW_DIR=$RUN/raw/downloaded
    for side in de en; do
      download "$ORIGIN/train.$side.gz" "$RAW_DIR/train.$side.gz"
      download "$ORIGIN/val.$side.gz" "$RAW_DIR/valid.$side.gz"
      download "$ORIGIN/test_2016_flickr.$side.gz" "$RAW_DIR/test2016.$side.gz"
    done
  fi
  from_raw_dir <<<"$FILES"
}
