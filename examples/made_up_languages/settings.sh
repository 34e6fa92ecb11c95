# The settings: those of ../../fairseq_imitkd/pipeline/recipes/made_up_languages.yaml, and what only the scripts have.
# ../common.sh sources this file and explains the names.
# shellcheck shell=bash disable=SC2034
from_yaml
HEADLINES=(scratch seqkd imitkd_full)
# This recipe has one kind of student.
[ "${STUDENT:-transformer}" = transformer ] || die "STUDENT must be transformer, but is '$STUDENT'"
