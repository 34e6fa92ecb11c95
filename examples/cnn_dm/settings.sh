# The settings: those of ../../fairseq_imitkd/pipeline/recipes/cnn_dm.yaml, and what only the scripts have.
# ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
from_yaml
CHECK=(--max-ratio 0) # summaries are shorter than their texts
HEADLINES=(scratch seqkd imitkd_full)
STUDENT=${STUDENT:-sru}
KIND=_$STUDENT
case $STUDENT in # the first two words of STUDENT_MODEL are --arch sru_cnn_dm
  sru) ;;
  transformer) STUDENT_MODEL[1]=transformer_imitkd_2_2 ;;
  *) die "STUDENT must be sru or transformer, but is '$STUDENT'" ;;
esac
