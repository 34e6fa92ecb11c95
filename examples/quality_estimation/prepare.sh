#!/usr/bin/env bash
# Make the pairs: two made-up languages, the checkpoints of a translator between them, their translations, and the chrF of each.
source "$(dirname "$0")/../common.sh"
# shellcheck disable=SC2153 # settings.sh sets them
POOL=$((LABELLED + UNLABELLED + VALID + TEST))

text() {
  python "$REPO/fairseq_imitkd/pipeline/made_up.py" "$RUN/text" --seed 1 --train "$SENTENCES" --valid 200 --test "$POOL"
  # Each checkpoint translates a part of the sentences.
  local parts=${#CHECKPOINTS[@]} part
  for ((part = 0; part < parts; part++)); do
    awk -v n="$parts" -v p="$part" 'NR % n == p' "$RUN/text/test.src" >"$RUN/text/part$part.src"
    awk -v n="$parts" -v p="$part" 'NR % n == p' "$RUN/text/test.tgt" >"$RUN/text/part$part.tgt"
  done
}

binary_text() {
  local tests
  tests=$(printf ",$RUN/text/part%d" $(seq 0 $((${#CHECKPOINTS[@]} - 1))))
  rm -rf "$RUN/text-bin" # fairseq-preprocess refuses a folder that a killed call left incomplete
  fairseq-preprocess --source-lang src --target-lang tgt --destdir "$RUN/text-bin" \
    --trainpref "$RUN/text/train" --validpref "$RUN/text/valid" --testpref "${tests#,}"
}

translator() {
  mkdir -p "$RUN/translator"
  local command=(
    imitkd-train "$RUN/text-bin" "${DEVICE_FLAGS[@]}" --save-dir "$RUN/translator" --log-format simple --log-interval 100
    --task translation --criterion cross_entropy --arch transformer --share-decoder-input-output-embed --dropout 0
    --encoder-layers 1 --decoder-layers 1 --encoder-attention-heads 2 --decoder-attention-heads 2
    --encoder-embed-dim 32 --decoder-embed-dim 32 --encoder-ffn-embed-dim 64 --decoder-ffn-embed-dim 64
    --max-tokens 2048 --num-workers 0 --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 --lr 1e-2
    --lr-scheduler polynomial_decay --warmup-updates 10 --total-num-update "${CHECKPOINTS[-1]}" --max-update "${CHECKPOINTS[-1]}"
    --save-interval-updates "${CHECKPOINTS[0]}" --validate-interval-updates 1000 --no-epoch-checkpoints --no-last-checkpoints
  )
  noted translator "${command[@]}"
}

translations() {
  local part
  for part in "${!CHECKPOINTS[@]}"; do
    imitkd-generate "$RUN/text-bin" "${DEVICE_FLAGS[@]}" --path "$RUN"/translator/checkpoint_*_"${CHECKPOINTS[part]}.pt" --beam 1 \
      --gen-subset "test${part/#0/}" --batch-size 200 --required-batch-size-multiple 1 >"$RUN/text/part$part.part"
    mv "$RUN/text/part$part.part" "$RUN/text/part$part.translations"
  done
}

pairs() {
  python "$RECIPE/pairs.py" "$RUN/text" "$RUN/raw" --checkpoints "${#CHECKPOINTS[@]}" \
    --labelled "$LABELLED" --unlabelled "$UNLABELLED" --valid "$VALID" --test "$TEST"
}

# binarise: $RUN/data-bin has the pairs with labels, and $RUN/more-bin those without labels too.
binarise() {
  local part data split
  rm -rf "$RUN/dictionary" "$RUN/data-bin" "$RUN/more-bin"
  cat "$RUN"/raw/train.input* >"$RUN/raw/words"
  fairseq-preprocess --only-source --dict-only --trainpref "$RUN/raw/words" --destdir "$RUN/dictionary"
  for data in data more; do
    split=$([ "$data" = data ] && echo train || echo more)
    for part in input0 input1; do
      fairseq-preprocess --only-source --workers 1 --srcdict "$RUN/dictionary/dict.txt" --destdir "$RUN/$data-bin/$part" \
        --trainpref "$RUN/raw/$split.$part" --validpref "$RUN/raw/valid.$part" --testpref "$RUN/raw/test.$part"
    done
    mkdir -p "$RUN/$data-bin/label"
    cp "$RUN/raw/$split.label" "$RUN/$data-bin/label/train.label"
    cp "$RUN/raw/valid.label" "$RUN/raw/test.label" "$RUN/$data-bin/label/"
  done
}

stage text text
stage binary_text binary_text
stage translator translator
stage translations translations
stage pairs pairs
stage binarise binarise
