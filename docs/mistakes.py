"""Types wrong commands and shows what comes: one line each, with the remedy.

    python docs/mistakes.py            print the page
    python docs/mistakes.py --write    write it to mistakes.md

Each command runs in this process, in a folder with data, models and a file of text.
"""

import contextlib
import gzip
import io
import logging
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fairseq_imitkd.cli import door

REPO = Path(__file__).parents[1]
sys.path.insert(0, str(REPO))
from tests.helpers.exports import make_students  # noqa: E402
from tests.helpers.teacher_checkpoints import saved, untrained  # noqa: E402

PAGE = Path(__file__).with_name("mistakes.md")
LONGEST = 200  # characters of a line
INTRODUCTION = """# Wrong commands

{count} wrong commands, and the line that each of them ends with after `error: `. Every line has at most
{longest} characters. `python docs/mistakes.py --write` makes this page, and a test compares it.

DATA is a data directory of letters; teacher.pt and student.pt are models of it,
and nat.pt is one that writes all tokens at once. half is DATA without one index, and text.gz a compressed
text. small is the folder of a run of
imitkd-distill. … stands for the rest of a command that works, such as
`--optimizer adam --lr 0.001 --max-tokens 400`."""
ARCH = (
    "--arch transformer --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 32 --decoder-embed-dim 32 "
    "--encoder-ffn-embed-dim 64 --decoder-ffn-embed-dim 64 --encoder-attention-heads 2 "
    "--decoder-attention-heads 2"
)
# What the commands below leave out of a command that works.
BASE = {
    "train": f"--teacher-path teacher.pt --criterion imitkd --optimizer adam --lr 0.001 --max-tokens 400 "
    f"--max-update 10 --cpu --source-lang src --target-lang tgt {ARCH}",
    "generate": "--path student.pt --cpu",
    "interactive": "--path student.pt --cpu",
    "seqkd": "--teacher-path teacher.pt --cpu --out out",
    "cache": "--teacher-path teacher.pt --cpu --keep hidden --out out",
    "evaluate": "--model student=student.pt --data DATA --out out",
    "export": "--data DATA --out out",
    "report": "--out out.html",
}
# A line is typed as it stands; what follows … is that command's entry in BASE, without flags typed before.
MISTAKES = {
    "The command": """
imitkd trian
imitkd distil
imitkd shrink
imitkd --lr 3
imitkd --print-completion fish
imitkd TRAIN
imitkd DATA
imitkd help trian
imitkd --versoin
imitkd --list
""",
    "What is missing": """
imitkd-train …
imitkd-train DATA --teacher-path teacher.pt
imitkd-train DATA --teacher-path teacher.pt --arch transformer --criterion imitkd
imitkd-train DATA --teacher-path teacher.pt --arch transformer --criterion imitkd --optimizer adam
imitkd-train DATA --arch transformer --criterion imitkd --optimizer adam --max-tokens 400
imitkd-train DATA --teacher-path teacher.pt --arch transformer --optimizer adam --max-tokens 400
imitkd-train DATA --arch transformer --optimizer adam --max-tokens 400 --criterion
imitkd-generate DATA
imitkd-generate --path student.pt
imitkd-interactive DATA
imitkd-seqkd DATA --out out
imitkd-seqkd DATA --teacher-path teacher.pt
imitkd-cache DATA --teacher-path teacher.pt --out out
imitkd-evaluate --data DATA --out out
imitkd-evaluate --model student=student.pt --out out
imitkd-export student.pt --out out
imitkd-prune
imitkd-report
imitkd-serve
imitkd-evaluate
""",
    "A word too many": """
imitkd-train DATA … text.txt
imitkd-train DATA … --teacher-path teacher.pt student.pt
imitkd-cache DATA --teacher-path teacher.pt student.pt --out out --keep hidden
imitkd-evaluate DATA --model student=student.pt --out out
imitkd-evaluate --model student=student.pt other=teacher.pt --data DATA --out out
imitkd-export student.pt DATA --out out
imitkd-export --checkpoint student.pt --data DATA --out out
imitkd-seqkd --data DATA --teacher-path teacher.pt --out out
imitkd-serve --dir out
imitkd-train DATA … --save-dir s2 ' '
imitkd-train DATA … ' --seed' 2
imitkd-distill --teacher t.pt --method imitkd gkd
imitkd-distill --teacher t.pt --method imitkd,gkd
imitkd-interactive DATA --path student.pt text.txt
imitkd-distill --teacher t.pt --sentencepiece my data/my model.model
imitkd-distill quickstart --out new -- --lr 0.1
""",
    "Names that do not exist": """
imitkd-train DATA … --criterion imitkd_ful
imitkd-train DATA … --criterion seqkd
imitkd-train DATA … --criterion sequence_kd
imitkd-train DATA … --criterion kd
imitkd-train DATA … --criterion imit-kd
imitkd-train DATA … --task translation_with_teachers
imitkd-train DATA … --task translation
imitkd-train DATA … --arch transfomer
imitkd-train DATA … --arch tranformer_iwslt_de_en
imitkd-train DATA … --arch tiny
imitkd-train DATA … --arch transformer_tyny
imitkd-train DATA … --optimizer adamw
imitkd-train DATA … --lr-scheduler invers_sqrt
imitkd-train DATA … --divergence kl
imitkd-train DATA … --divergence forward_kl
imitkd-train DATA … --rollout-policy beam
imitkd-train DATA … --criterion gkd --reward bleu
imitkd-train DATA … --teacher-selection best
imitkd-train DATA … --teacher-dtype float16
imitkd-train DATA … --eval-metrics blue
imitkd-train DATA … --best-checkpoint-metric blue
imitkd-train DATA … --init-from-teacher embedding
imitkd-train DATA … --eval-bleu --eval-bleu-detok mose
imitkd-train DATA … --activation-fn swish2
imitkd-train DATA … --user-dir nowhere
imitkd-train DATA … --user-dir text.txt
imitkd-evaluate … --user-dir text.txt
imitkd-seqkd DATA … --select random
imitkd-seqkd DATA … --backend onnx
imitkd-evaluate … --metrics comet2
imitkd-evaluate … --bleu-tokenize 14a
imitkd-export student.pt … --quantization int4
imitkd-generate DATA … --scoring blue
""",
    "Flags that do not exist": """
imitkd-train DATA … --teacher teacher.pt
imitkd-train DATA … --teacher-temp 2
imitkd-train DATA … --temperature 2
imitkd-train DATA … --kd-weight 0.5
imitkd-train DATA … --alpha 0.5
imitkd-train DATA … --student-shares 0.5
imitkd-train DATA … --max-updates 10
imitkd-train DATA … --learning-rate 0.1
imitkd-train DATA … --num_train_epochs 3
imitkd-train DATA … --per_device_train_batch_size 16
imitkd-generate DATA … --num_beams 4
imitkd-train DATA … --warmup 10
imitkd-distill --spm subwords.model
imitkd-distill --lr 0.1
imitkd-distill --cpu
imitkd-distill --seed 1
imitkd-distill --source-lang de
imitkd-distill --max-update 10
imitkd-distill --max_steps 10
imitkd-distill quickstart --epochs 3
imitkd-distill small/recipe.yaml --updates 300
imitkd-train DATA … --batchsize 10
imitkd-train DATA … --beam 5
imitkd-train DATA … --path student.pt
imitkd-train DATA … --gpu
imitkd-train DATA … --device cuda
imitkd-train DATA … --max_update 10
imitkd-train DATA … -lr 0.1
imitkd-train DATA … --label-smothing 0.1
imitkd-train DATA --teacher-pth teacher.pt
imitkd-train --jsd-wieght 0.1
imitkd-generate DATA … --beams 3
imitkd-generate DATA … --teacher-share 1
imitkd-generate DATA … --lr 0.1
imitkd-generate DATA … --student-share 1
imitkd-evaluate --modle student=student.pt --data DATA --out out
imitkd-seqkd DATA --teacher_path teacher.pt --out out
imitkd-seqkd DATA … --beamsize 3
imitkd-evaluate … --models a=b
imitkd-export student.pt … --quantisation int8
imitkd-serve DIR --ports 80
""",
    "Values that can't be": """
imitkd-train DATA … --student-share 1.5
imitkd-train DATA … --student-share half
imitkd-train DATA … --student-share linear
imitkd-train DATA … --student-share exponential:0
imitkd-train DATA … --gold-weight 2
imitkd-train DATA … --gold-weight -1
imitkd-train DATA … --divergence jsd --jsd-weight 2
imitkd-train DATA … --jsd-weight 0.2
imitkd-train DATA … --rollout-topk 5
imitkd-train DATA … --rollout-policy sampling --rollout-temperature 0
imitkd-train DATA … --rollout-policy sampling --rollout-topp 2
imitkd-train DATA … --rollout-max-len-a -1
imitkd-train DATA … --teacher-topk -1
imitkd-train DATA … --teacher-topk 1000
imitkd-train DATA … --teacher-weights 1:2
imitkd-train DATA … --teacher-encoder-cache lots
imitkd-train DATA … --loss-chunk -2
imitkd-train DATA … --max-update 0 --max-epoch 1
imitkd-train DATA … --max-epoch -1
imitkd-train DATA … --lr x
imitkd-train DATA … --lr -1
imitkd-train DATA … --dropout 2
imitkd-train DATA … --dropout 30
imitkd-train DATA … --student-share constant:50
imitkd-train DATA … --prune-sparsity 40
imitkd-train DATA … --dropout nan
imitkd-train DATA … --clip-norm nan
imitkd-train DATA … --seed -1
imitkd-train DATA … --update-freq 0
imitkd-train DATA … --max-tokens 0
imitkd-train DATA … --max-tokens many
imitkd-train DATA … --encoder-layers 0
imitkd-train DATA … --encoder-attention-heads 3
imitkd-train DATA … --encoder-embed-dim -32
imitkd-train DATA … --fp16
imitkd-train DATA … --fp16 --bf16
imitkd-train DATA … --patience 3 --disable-validation
imitkd-train DATA … --ddp-backend fully_sharded
imitkd-train DATA … --prune-sparsity 1.5
imitkd-train DATA … --share-all-embeddings --decoder-embed-dim 64
imitkd-train DATA … --eval-bleu --eval-bleu-args {'beam':1}
imitkd-train DATA … --adam-betas 0.9
imitkd-train DATA … --criterion gkd --reward chrf --reward-weight 0
imitkd-generate DATA … --beam 0
imitkd-generate DATA … --temperature 0
imitkd-generate DATA … --remove-bpe '##'
imitkd-generate DATA … --remove-bpe
imitkd-seqkd DATA … --beam 0
imitkd-seqkd DATA … --select sample --temperature 0
imitkd-seqkd DATA … --nbest 9
imitkd-seqkd DATA … --max-tokens -1
imitkd-seqkd DATA … --num-shards 2
imitkd-seqkd DATA … --shard-id 1
imitkd-distill --train train.de
imitkd-export student.pt … --bpe-codes text.txt
imitkd-cache DATA … --keep top:4
imitkd-cache DATA … --keep topk:0
imitkd-evaluate … --sentences -1
imitkd-evaluate … --batch-sizes 0
imitkd-evaluate … --model student.pt
imitkd-evaluate … --teacher teacher
imitkd-export student.pt … --beam 0
imitkd-prune student.pt --sparsity 2 --out out.pt
imitkd-prune student.pt --sparsity 40 --out out.pt
imitkd-serve DIR --port 99999
""",
    "Flags that change nothing": """
imitkd-train DATA … --eval-bleu-args '{"beam": 1}'
imitkd-train DATA … --eval-bleu-detok moses
imitkd-train DATA … --eval-bleu-remove-bpe none
imitkd-train DATA … --eval-bleu-print-samples
imitkd-generate DATA … --teacher-path teacher.pt
imitkd-generate DATA … --save-dir out
imitkd-generate DATA … --criterion imitkd
imitkd-interactive DATA … --eval-bleu
imitkd-prune student.pt --out out.pt
""",
    "Files that are not there, or are others": """
imitkd-train NOWHERE …
imitkd-train text.txt …
imitkd-train . …
imitkd-train DATA … --teacher-path nowhere.pt
imitkd-train DATA … --teacher-path DATA
imitkd-train DATA … --teacher-path text.txt
imitkd-train DATA … --teacher-path student.pt:nowhere.pt
imitkd-train DATA … --teacher-data NOWHERE
imitkd-train DATA … --teacher-cache NOWHERE
imitkd-train DATA … --restore-file nowhere.pt
imitkd-train DATA … --finetune-from-model nowhere.pt
imitkd-train DATA … --train-subset training
imitkd-train DATA … --valid-subset dev
imitkd-train DATA … --source-lang de --target-lang en
imitkd-train DATA … --source-lang tgt --target-lang src
imitkd-train DATA … --save-dir text.txt
imitkd-train DATA … --save-dir /proc/student
imitkd-train DATA … --teacher-path run
imitkd-train DATA … --teacher-path exported/model/model.bin
imitkd-train DATA … --encoder-embed-path nowhere.txt
imitkd-generate NOWHERE …
imitkd-generate DATA … --path nowhere.pt
imitkd-generate DATA … --path text.txt
imitkd-generate DATA … --path run
imitkd-generate DATA … --source-lang tgt --target-lang src
imitkd-generate DATA … --gen-subset dev
imitkd-generate DATA … --gen-subset train,valid
imitkd-train half …
imitkd-generate half … --gen-subset train
imitkd-cache half … --gen-subset train
imitkd-interactive DATA … --input text.gz
imitkd-seqkd DATA … --source-text text.gz
imitkd-evaluate … --references text.gz
imitkd-distill quickstart --out /proc/new
imitkd-interactive DATA … --input nowhere.txt
imitkd-interactive DATA … --input empty.txt
imitkd-interactive DATA … --source-lang tgt --target-lang src
imitkd-interactive DATA … --bpe sentencepiece --sentencepiece-model text.txt
imitkd-seqkd NOWHERE …
imitkd-seqkd DATA … --teacher-path text.txt
imitkd-seqkd DATA … --gen-subset dev
imitkd-seqkd DATA … --bpe sentencepiece
imitkd-seqkd DATA … --source-text nowhere.txt
imitkd-seqkd DATA --translations nowhere.tsv --out out
imitkd-cache NOWHERE …
imitkd-evaluate … --model student=nowhere.pt
imitkd-evaluate … --model student=run
imitkd-evaluate … --source-lang tgt --target-lang src
imitkd-evaluate … --bpe sentencepiece --sentencepiece-model text.txt
imitkd-evaluate … --data NOWHERE
imitkd-evaluate … --gen-subset dev
imitkd-export nowhere.pt …
imitkd-export text.txt …
imitkd-export run …
imitkd-export exported …
imitkd-export student.pt … --data NOWHERE
imitkd-prune nowhere.pt --sparsity 0.5
imitkd-prune text.txt --sparsity 0.5
imitkd-import Helsinki-NLP/opus-mt-de-en --out out
imitkd-encode NOWHERE
imitkd-dictionary text.txt --out out
imitkd-trim student.pt --text train --out out
imitkd-trim student.pt --data DATA --text nowhere --out out
imitkd-report NOWHERE …
imitkd-report text.txt …
imitkd-report … --evaluation NOWHERE
imitkd-serve NOWHERE
imitkd-serve text.txt
imitkd-serve student.pt
imitkd-serve small
imitkd-evaluate … --model student=small
imitkd-report DATA …
imitkd-report small …
imitkd-report … --evaluation small
imitkd-report exported …
imitkd-report student.pt …
imitkd-distill multi30k --text DATA
imitkd-distill nowhere.yaml
imitkd-distill odd.yaml
imitkd-distill DATA
imitkd-distill text.txt
imitkd-trim student.pt --text text.txt --out out
imitkd-train small …
imitkd-generate DATA … --path small
imitkd-distill student.pt
imitkd-serve run
""",
    "A teacher and a method that do not fit": """
imitkd-train DATA … --criterion cross_entropy
imitkd-train DATA … --criterion label_smoothed_cross_entropy
imitkd-train DATA … --criterion word_kd --rollout-policy sampling
imitkd-train DATA … --criterion word_kd --log-rollouts 3
imitkd-train DATA … --log-rollouts-interval 100
imitkd-train DATA … --criterion distillm --disable-validation
imitkd-train DATA … --teacher-selection agreement
imitkd-train DATA … --left-pad-target
imitkd-train DATA … --arch levenshtein_transformer
imitkd-train DATA … --init-from-teacher encoder --finetune-from-model student.pt
""",
    "Tasks and models that are not for these methods": """
imitkd-train DATA … --task masked_lm
imitkd-train DATA … --task denoising --criterion word_kd
imitkd-train DATA … --task translation_multi_simple_epoch
imitkd-train DATA … --task speech_to_text
imitkd-train DATA … --task translation_lev --arch nonautoregressive_transformer
imitkd-train DATA … --criterion cross_entropy --arch nonautoregressive_transformer
imitkd-train DATA … --teacher-path nat.pt
imitkd-seqkd DATA … --teacher-path nat.pt
imitkd-cache DATA … --teacher-path nat.pt
imitkd-evaluate … --model student=nat.pt
imitkd-export nat.pt …
imitkd-generate DATA … --path nat.pt
imitkd-interactive DATA … --path nat.pt
""",
}


def typed() -> Iterator[tuple[str, list[str]]]:
    """Yield each heading's commands, in the order of the page."""
    for heading, lines in MISTAKES.items():
        yield heading, [line for line in lines.splitlines() if line]


def whole(line: str) -> list[str]:
    """Return the words of a command, with those that … stands for."""
    words = shlex.split(line)
    if "…" not in words:
        return words
    command = words[0].removeprefix("imitkd-")
    given = set(words)
    rest = shlex.split(BASE.get(command, ""))
    position = 0
    more: list[str] = []
    while position < len(rest):
        flag = rest[position]
        width = 1 if position + 1 == len(rest) or rest[position + 1].startswith("--") else 2
        if flag not in given:
            more += rest[position : position + width]
        position += width
    return [word for word in words if word != "…"] + more


def make_files(folder: Path) -> None:
    """Make the files that the commands name."""
    make_students(folder)
    data = (folder / "data").rename(folder / "DATA")
    for path in list(data.glob("valid.*")):
        shutil.copy(path, data / path.name.replace("valid", "train", 1))
    shutil.copy(folder / "transformer.pt", folder / "teacher.pt")
    shutil.copy(folder / "transformer.pt", folder / "student.pt")
    saved(folder, untrained(data, "translation_lev", "--arch", "nonautoregressive_transformer"), "nat.pt")
    (folder / "text.txt").write_text("a b c\n")
    (folder / "text.gz").write_bytes(gzip.compress(b"a b c\n"))
    (folder / "empty.txt").touch()
    shutil.copytree(data, folder / "half")
    (folder / "half" / "train.src-tgt.tgt.idx").unlink()
    (folder / "run").mkdir()
    shutil.copy(folder / "student.pt", folder / "run" / "checkpoint_best.pt")
    (folder / "exported" / "model").mkdir(parents=True)
    for name in ("imitkd.json", "model/model.bin"):
        (folder / "exported" / name).touch()
    shutil.copytree(folder / "exported", folder / "small" / "exported")
    shutil.copytree(data, folder / "small" / "data-bin")
    (folder / "small" / "models" / "gkd-seed1").mkdir(parents=True)
    for name in ("metrics.jsonl", "checkpoint_best.pt"):
        (folder / "small" / "models" / "gkd-seed1" / name).touch()
    (folder / "small" / "evaluation").mkdir()
    (folder / "small" / "evaluation" / "evaluation.json").touch()
    (folder / "odd.yaml").write_text("langages: de-en\n")


def answer(line: str) -> tuple[int, str]:
    """Type a command in this process. Return its status, and the last line that it prints."""
    out, errors, arguments = io.StringIO(), io.StringIO(), sys.argv
    handlers, level = logging.root.handlers[:], logging.root.level
    status: object = 0
    sys.argv = whole(line)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            door.main()
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=errors)
    finally:
        sys.argv = arguments
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    lines = errors.getvalue().strip().splitlines() or out.getvalue().strip().splitlines() or [""]
    return (status if isinstance(status, int) else 0 if status is None else 1), lines[-1]


def page() -> str:
    """Return the page: what is typed, and what comes.

    Raises:
        SystemExit: a command is not refused, or not in one short line.
    """
    parts, count = [], 0
    for heading, lines in typed():
        rows = []
        for line in lines:
            status, last = answer(line)
            if status == 0 or not last.startswith("error: ") or len(last) > LONGEST:
                sys.exit(f"{line}: status {status}, {len(last)} characters: {last}")
            rows.append(f"| `{_cell(line)}` | {_cell(last.removeprefix('error: '))} |")
        count += len(rows)
        parts += [f"## {heading}", "\n".join(["| typed | the line that comes |", "|---|---|", *rows])]
    return "\n\n".join([INTRODUCTION.format(count=count, longest=LONGEST), *parts]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")


def main() -> None:
    """Print or write the page."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        make_files(Path(folder))
        text = page()
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
