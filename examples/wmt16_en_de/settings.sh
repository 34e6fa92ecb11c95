# The settings: those of ../../fairseq_imitkd/pipeline/recipes/wmt16_en_de.yaml, and what only the scripts have.
# ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
from_yaml
[ -n "${SMOKE:-}" ] || DICTIONARY=(--srcdict "$RUN/published/dict.en.txt" --tgtdict "$RUN/published/dict.de.txt")
TOKENISED_BLEU=de
TEACHER_MODEL=(--arch transformer --max-tokens 4096 --lr 5e-4) # with SMOKE=1; the real one is published
HEADLINES=(scratch seqkd imitkd_full)
STUDENT=${STUDENT:-sru}
KIND=_$STUDENT
case $STUDENT in # the first two words of STUDENT_MODEL are --arch sru_wmt
  sru) ;;
  transformer) STUDENT_MODEL[1]=transformer_imitkd_2_2 ;;
  *) die "STUDENT must be sru or transformer, but is '$STUDENT'" ;;
esac
