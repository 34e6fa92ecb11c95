"""What imitkd-cache prints at its end."""

import pytest

from fairseq_imitkd.cli import cache

MANIFEST = {"tokens": 10, "bytes_a_token": 400_000, "sentences": 3, "absent": 0, "topk": 8}


@pytest.mark.parametrize(
    ("flags", "same"),
    [
        ("", ""),
        ("-s de -t en", "--source-lang de --target-lang en"),
        ("--gen-subset more", "--train-subset more"),
        ("--truncate-source", "--truncate-source --max-source-positions 1024"),
        (
            "--truncate-source --max-source-positions 50",
            "--truncate-source --max-source-positions 50",
        ),
    ],
)
def test_the_next_training_reads_the_sentences_of_the_cache(
    flags: str, same: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "write_cache", lambda *_: MANIFEST)
    words = ["data", "--teacher-path", "teacher.pt", "--out", "answers", "--keep", "topk:8", *flags.split()]
    cache.main(words)
    complete, following = capsys.readouterr().out.splitlines()
    assert "10 tokens of 400000 bytes (4.0 MB)" in complete
    begin = "Next: imitkd-train data --teacher-cache answers --criterion word_kd --teacher-topk 8 "
    assert following == " ".join(filter(None, [begin.strip(), same, "--arch transformer_imitkd_2_2 …"]))
