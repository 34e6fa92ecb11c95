# The settings: those of ../../fairseq_imitkd/pipeline/recipes/iwslt14_de_en.yaml, and what only the scripts have.
# ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
from_yaml
TOKENISED_BLEU=en
HEADLINES=(scratch seqkd imitkd_full)
STUDENT=${STUDENT:-sru}
KIND=_$STUDENT
case $STUDENT in # the first two words of STUDENT_MODEL are --arch sru_2
  sru) ;;
  sru_3) STUDENT_MODEL[1]=sru_3 ;;
  transformer) STUDENT_MODEL[1]=transformer_imitkd_2_2 ;;
  *) die "STUDENT must be sru, sru_3 or transformer, but is '$STUDENT'" ;;
esac
