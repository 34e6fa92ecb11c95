#!/usr/bin/env bash
# The teacher's translations in the place of the references, and students trained on them: seqkd.sh [NAME…] (default: all)
#   seqkd         cross entropy on the beam's best translations (SeqKD; Kim & Rush 2016, section 3.2)
#   seq_inter     cross entropy on those of NBEST=35 that are most like the reference (Seq-Inter; section 3.3)
#   seqkd_imitkd  ImitKD on the beam's best (the starred rows of Lin et al. 2020)
#   seqkd_pruned  seqkd's student with four fifths of its weights made zero and retrained (Kim & Rush 2016, section 5.2)
# The first three start from student.sh's `scratch` and get as many updates as distill.sh's. A second call goes on.
#   SEQKD_FLAGS="--backend ctranslate2 --workers 2"   how to decode; any flags of imitkd-seqkd
source "$(dirname "$0")/../common.sh"
source "$(dirname "$0")/settings.sh"
[ $# -gt 0 ] || set -- seqkd seq_inter seqkd_imitkd seqkd_pruned
read -ra seqkd_flags <<<"${SEQKD_FLAGS:-}"

translate() { # NAME FLAGS…: a data set in $RUN/data_NAME
  imitkd-seqkd "$RUN/data-bin" "${DEVICE_FLAGS[@]}" --teacher-path "$RUN/teacher/checkpoint_best.pt" --out "$RUN/data_$1" \
    --remove-bpe sentencepiece --max-len-a 1.2 --max-len-b 10 "${@:2}" "${seqkd_flags[@]}"
}

suffix=$KIND
[ "${SEED:-1}" = 1 ] || suffix=$KIND-seed$SEED
for name in "$@"; do
  data=seqkd
  start=()
  own=(--task translation --criterion label_smoothed_cross_entropy --label-smoothing 0.1)
  case $name in
    seqkd) ;;
    seq_inter) data=seq_inter ;;
    seqkd_imitkd)
      own=(--teacher-path "$RUN/teacher/checkpoint_best.pt" --criterion imitkd --student-share exponential:0.1)
      ;;
    seqkd_pruned)
      [ -e "$RUN/seqkd$suffix/checkpoint_best.pt" ] || die "seqkd_pruned starts from seqkd: name it before"
      # At once, so that the best checkpoint is a pruned one; the task that knows how to prune needs no teacher here.
      own=(--task translation_with_teacher --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --prune-sparsity 0.8)
      start=(--finetune-from-model "$RUN/seqkd$suffix/checkpoint_best.pt")
      ;;
    *) die "NAME must be one of seqkd, seq_inter, seqkd_imitkd, seqkd_pruned, but is '$name'" ;;
  esac
  case $data in
    seqkd) stage data_seqkd translate seqkd --beam 5 ;;
    seq_inter) stage data_seq_inter translate seq_inter --select best --metric sentence-bleu --nbest "${NBEST:-35}" ;;
  esac
  DATA=$RUN/data_$data/data-bin stage "$name$suffix" train "$name$suffix" \
    "${own[@]}" "${STUDENT_MODEL[@]}" "${OPTIMISER[@]}" "${VALIDATION[@]}" "${CONTINUE[@]}" "${start[@]}" --dropout 0.1
done
