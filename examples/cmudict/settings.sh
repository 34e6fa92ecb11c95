# The settings: those of ../../fairseq_imitkd/pipeline/recipes/cmudict.yaml, and what only the scripts have.
# ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
from_yaml
CHECK=(--max-ratio 0) # a phoneme is written with up to two characters
HEADLINES=(scratch seqkd imitkd_full)
# This recipe has one kind of student.
[ "${STUDENT:-transformer}" = transformer ] || die "STUDENT must be transformer, but is '$STUDENT'"
