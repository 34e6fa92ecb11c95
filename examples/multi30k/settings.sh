# The settings: those of ../../fairseq_imitkd/pipeline/recipes/multi30k.yaml, and what only the scripts have.
# ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
from_yaml
HEADLINES=(scratch seqkd imitkd_full)
# STUDENT=sru: recurrent students of about the same size, with their own names (scratch_sru, imitkd_sru, …).
case ${STUDENT:-transformer} in
  transformer) ;;
  sru)
    KIND=_sru
    STUDENT_MODEL=(--arch sru_2 --encoder-embed-dim 64 --encoder-hidden-size 64 --decoder-hidden-size 128) ;;
  *) die "STUDENT must be transformer or sru, but is '$STUDENT'" ;;
esac
