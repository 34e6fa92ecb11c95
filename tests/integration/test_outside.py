"""A method in another package, as CONTRIBUTING.md shows it."""

import re

from tests.helpers import digit_corpus


def test_contributings_example_trains(digits, teacher, tmp_path):
    """The example's code, unchanged, is a ``--user-dir``. The real command trains its method."""
    guide = (digit_corpus.REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
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
