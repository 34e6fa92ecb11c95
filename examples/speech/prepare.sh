#!/usr/bin/env bash
# Make the commands, speak them, and binarise their text: $RUN/raw, $RUN/data-bin (manifests and filterbanks), $RUN/text-bin.
source "$(dirname "$0")/../common.sh"

commands() { python "$RECIPE/commands.py" "$RUN/raw" ${SMOKE:+--text 200 --train 40 --held-out 20}; }

# The dictionary of the targets is that of the text teacher (TARGET=en has none, and needs the dictionary alone). text-bin's second test set is the text of what is spoken for training.
binarise() {
  rm -rf "$RUN/text-bin" # fairseq-preprocess refuses a folder that a killed call left incomplete
  local source=en
  [ "$TARGET" != en ] || source=de
  fairseq-preprocess --source-lang "$source" --target-lang "$TARGET" --workers 1 --destdir "$RUN/text-bin" --trainpref "$RUN/raw/text" \
    --validpref "$RUN/raw/valid" --testpref "$RUN/raw/test,$RUN/raw/train" >"$RUN/preprocess.log" 2>&1
}

speech() {
  python "$RECIPE/speak.py" "$RUN/raw" "$RUN/data-bin" --targets "$TARGET" ${SMOKE:+--tones}
  cp "$RUN/text-bin/dict.$TARGET.txt" "$RUN/data-bin/dict.txt"
}

echo "$TARGET" >"$RUN/target"
# With TARGET=frame, the intents of a tenth of the speech are known.
labelled() {
  mkdir -p "$RUN/labelled-bin"
  cp "$RUN"/data-bin/{config.yaml,dict.txt,valid.tsv} "$RUN/labelled-bin"
  head -n "$((1 + ($(wc -l <"$RUN/data-bin/train.tsv") - 1) / 10))" "$RUN/data-bin/train.tsv" >"$RUN/labelled-bin/train.tsv"
}

stage commands commands
stage binarise binarise
stage speech speech
[ "$TARGET" != frame ] || stage labelled labelled
