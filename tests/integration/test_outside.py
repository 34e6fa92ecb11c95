"""A method in another package, and its comparison over seeds, as docs/your-own-method.md shows them."""

import json
import re
import subprocess
import sys

from tests.helpers import digit_corpus

PAGE = (digit_corpus.REPO / "docs" / "your-own-method.md").read_text(encoding="utf-8")


def test_the_pages_example_trains(digits, teacher, tmp_path):
    """The example's code, unchanged, is a ``--user-dir``. The real command trains its method."""
    [example] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    package = tmp_path / "brier_kd"
    package.mkdir()
    (package / "__init__.py").write_text(example)
    flags = (
        "--user-dir",
        package,
        "--teacher-path",
        teacher,
        "--criterion",
        "brier_kd",
        "--max-update",
        10,
        *digit_corpus.TINY,
    )
    done = digit_corpus.train(digits.data, tmp_path / "saved", *flags)
    shares = [float(share) for share in re.findall(r'"student_share": "([\d.]+)"', done.stdout)]
    assert all(0.2 < share < 0.8 for share in shares), "half of the sentences, as its dataclass says"
    assert (tmp_path / "saved" / "checkpoint_last.pt").exists()

    refused = digit_corpus.train(digits.data, tmp_path / "refused", *flags, "--jsd-weight", 0.3, check=False)
    assert refused.returncode != 0
    assert (
        "--jsd-weight 0.3 changes nothing under --divergence brier: choose jsd or jsd-normalised"
        in refused.stderr
    )

    chunks = digit_corpus.train(
        digits.data, tmp_path / "chunks", *flags, "--loss-chunk", 5, "--brier-power", 3
    )
    assert '"loss"' in chunks.stdout


def test_the_pages_script_compares_over_seeds(tmp_path):
    """It reads what imitkd-evaluate writes: here, of models that are renamed to methods with seeds."""
    [script] = re.findall(r"```py\n(.*?)```", PAGE, flags=re.DOTALL)
    committed = digit_corpus.REPO / "examples" / "multi30k" / "evaluation-exported.json"
    models = json.loads(committed.read_text(encoding="utf-8"))["models"]
    names = {"alone-1": "scratch", "alone-2": "scratch_sru", "imitkd-1": "imitkd", "imitkd-2": "imitkd_sru"}
    (tmp_path / "evaluation").mkdir()
    renamed = {name: models[old] for name, old in names.items()}
    (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps({"models": renamed}))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "alone: 31.19 BLEU (30.29 to 32.09), +0.00 (+0.00 to +0.00) over alone, 2 seeds",
        "imitkd: 33.59 BLEU (32.80 to 34.37), +2.39 (+2.28 to +2.51) over alone, 2 seeds",
    ]
