"""What a run that ends late says: one line, and the whole traceback with ``--traceback``."""

import pytest

from fairseq_imitkd.errors import RefusedUpdate
from tests.helpers import digit_corpus, in_process

ODD = """
from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion, CrossEntropyCriterionConfig

class Config(CrossEntropyCriterionConfig):
    pass

@register_criterion("odd", dataclass=Config)
class Odd(CrossEntropyCriterion):
    def forward(self, model, sample, reduce=True):
        raise KeyError("steps")
"""


@pytest.mark.parametrize("traceback", [(), ("--traceback",)], ids=["line", "traceback"])
def test_an_exception_of_somebody_elses_code(traceback, digits, tmp_path):
    """The line has the exception's own text and names the flag, with which the rest is shown before it."""
    package = tmp_path / "odd_criterion"
    package.mkdir()
    (package / "__init__.py").write_text(ODD)
    done = digit_corpus.train(
        digits.data, tmp_path / "saved", "--user-dir", package, "--task", "translation", "--criterion", "odd",
        "--max-update", 1, *digit_corpus.TINY, *traceback, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    *before, line = done.stderr.strip().splitlines()
    assert line == "error: KeyError: 'steps'; check the flags and files; --traceback shows where it happened"
    shown = "\n".join(before)
    assert ("Traceback (most recent call last)" in shown) == bool(traceback)
    assert ('raise KeyError("steps")' in shown) == bool(traceback)
    assert "Traceback" not in done.stdout


def test_fp16_that_overflows_on_a_cpu(digits, tmp_path):
    """fairseq would lower the loss scale, but makes a tensor on a GPU for that."""
    with pytest.raises(RefusedUpdate) as refused:
        in_process.train(
            digits.data, tmp_path, "--task", "translation_with_teacher", "--criterion", "cross_entropy",
            "--max-update", 3, "--memory-efficient-fp16", "--fp16-init-scale", 2**30, "--no-save",
        )  # fmt: skip
    assert str(refused.value) == (
        "update 1 is refused: its gradient is too large for --fp16, and fairseq lowers the loss scale on a "
        f"GPU only: lower --fp16-init-scale, which is {2**30}, or use --bf16"
    )
