#!/usr/bin/env bash
# Measures the cost of distillation on a GPU, with a student and a teacher of transformer_iwslt_de_en's size on Multi30k.
# A call takes less than ten minutes and resumes an interrupted one. It prints its tables at the end; $RUN has all figures as JSON.
#   RUN=DIR       folder for everything it makes (default: benchmarks/run-gpu)
#   RAW_DIR=DIR   folder with Multi30k's text for examples/multi30k/prepare.sh (default: download it)
#   DEVICE=cpu    run every step with small models on made-up text, to test the script; its figures mean nothing
RUN=${RUN:-$(dirname "$0")/run-gpu}
[ "${DEVICE:-}" != cpu ] || export SMOKE=1
source "$(dirname "$0")/../examples/common.sh"

PRECISIONS=(fp32 fp16 amp bf16)
ROUNDS=20 SENTENCES=2000 MAX_TOKENS=4096
[ -z "${SMOKE:-}" ] || PRECISIONS=(fp32 bf16) ROUNDS=2 SENTENCES=160 MAX_TOKENS=300

measure() {
  python "$REPO/benchmarks/$1.py" "$RUN/data-bin" --device "$DEVICE" --student "$MODEL_FILE" --json "$RUN/$1.json" "${@:2}" >"$RUN/$1.part"
  mv "$RUN/$1.part" "$RUN/$1.md"
}

# Before any measurement: rollouts with CUDA graphs must write the same tokens as those without.
check_graphs() {
  python -c 'import torch; torch.zeros(1, device="cuda")' # without a device, pytest would skip all tests
  (cd "$REPO" && python -m pytest -q -k real tests/rollout/test_cuda_graphs.py)
}
[ "$DEVICE" != cuda ] || stage graphs check_graphs

RUN=$RUN "$REPO/examples/multi30k/prepare.sh"
small --arch transformer_iwslt_de_en --share-all-embeddings
TRAINING=(
  "${MODEL[@]}" --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1 --lr 1e-3 --lr-scheduler inverse_sqrt --warmup-updates 500
  --max-tokens 8192 --dropout 0.3 --disable-validation --save-interval 100000 --save-interval-updates 500 --keep-interval-updates 1
)
stage teacher train teacher "${PLAIN[@]}" "${TRAINING[@]}" --max-update 1500
MODEL_FILE=$RUN/teacher/checkpoint_last.pt
stage update_cost measure update_cost --teacher "$MODEL_FILE" --max-tokens "$MAX_TOKENS" --rounds "$ROUNDS"
stage rollout_speed measure rollout_speed --sentences "$SENTENCES" --rounds 1
stage memory measure memory --teacher "$MODEL_FILE" --max-tokens "$MAX_TOKENS" --rounds 2 --updates 4
# Every precision that fairseq offers on a GPU must train, with rollouts in that precision and with CUDA graphs.
for precision in "${PRECISIONS[@]}"; do
  flags=()
  [ "$precision" = fp32 ] || flags=("--$precision")
  stage "imitkd_$precision" train "imitkd_$precision" --task translation_with_teacher --criterion imitkd --teacher-path "$MODEL_FILE" \
    --student-share constant:1 --finetune-from-model "$MODEL_FILE" "${TRAINING[@]}" "${flags[@]}" --max-update 50 --log-interval 10
done

python -m fairseq_imitkd --version
cat "$RUN"/{update_cost,rollout_speed,memory}.md
grep -H " | train | " "$RUN"/imitkd_*/train.log | sed "s|$RUN/||; s,/train.log.* . train . ,: ,"
