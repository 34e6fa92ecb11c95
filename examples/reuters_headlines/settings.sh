# The settings: those of ../../fairseq_imitkd/pipeline/recipes/reuters_headlines.yaml, and what only the scripts have.
# ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
from_yaml
WORDS=60 # words read of a body; its beginning holds what a headline says
CHECK=(--max-ratio 0) # summaries are shorter than their texts
HEADLINES=(scratch seqkd imitkd_full)
case ${STUDENT:-transformer} in
  transformer) ;;
  wide)
    STUDENT_MODEL=("${TRANSFORMER_2_2_128[@]}")
    [ -n "${AS:-}" ] || KIND=_wide
    ;;
  *) die "STUDENT must be transformer or wide, but is '$STUDENT'" ;;
esac
