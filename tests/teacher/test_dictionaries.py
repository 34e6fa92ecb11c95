"""The dictionaries of a model with language tags: messages name what the command has."""

from pathlib import Path

import pytest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.dictionaries import write_dictionaries
from tests.helpers.fairseq_models import LETTERS, build_student, checkpoint_state, training_config
from tests.helpers.fairseq_models import write_dictionaries as write_letters
from tests.helpers.teacher_checkpoints import saved


def refusal(checkpoint: str, folder: Path) -> str:
    """Return why no dictionaries are written; no flag of a training is in it."""
    with pytest.raises(UsageError) as refused:
        write_dictionaries(checkpoint, folder / "out", pair=("src", "tgt"))
    assert "--teacher-path" not in str(refused.value)
    return str(refused.value)


def test_messages_name_the_checkpoint(tmp_path: Path) -> None:
    """Of a file that is none, and of two folders that differ."""
    text = tmp_path / "text.txt"
    text.write_text("a b c\n")
    assert refusal(str(text), tmp_path).startswith(f"CHECKPOINT '{text}' is damaged or not a checkpoint")
    beside, said = write_letters(tmp_path / "beside"), write_letters(tmp_path / "said", LETTERS[::-1])
    cfg = training_config(said, "--task", "translation")
    path = saved(beside, checkpoint_state(build_student(), cfg))
    assert refusal(path, tmp_path).startswith(f"CHECKPOINT '{path}' lies beside {beside}/dict.src.txt, but")
