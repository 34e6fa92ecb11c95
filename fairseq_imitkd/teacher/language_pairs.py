"""Loads one teacher of several language pairs, whose tags must stand where the student's do."""

from collections.abc import Callable, Sequence
from typing import Any

from fairseq.models import BaseFairseqModel

from fairseq_imitkd.checkpoints.tags import SETTING, TagNames, language_tags, languages_of, pairs_of
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.tagged import reading_eos_first
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.teacher import Teacher

TagsOf = Callable[[tuple[str, str]], TagNames]


def load_teacher_of_pairs(
    source: TeacherSource, pairs: Sequence[LanguagePair], tags_of: TagsOf, *, reads_eos_first: bool
) -> Teacher:
    """Load a teacher, or an ensemble, and check its dictionaries and its tags for every pair.

    Args:
        source: checkpoints of the teacher.
        pairs: the student's pairs, one or more; all share the two dictionaries.
        tags_of: returns the tags that the student's sentences of a pair have.
        reads_eos_first: whether the model reads an EOS before the tag that is a batch's first decoder input.

    Raises:
        UsageError: a file is missing, unreadable, unsafe or not a translation model, or a dictionary or a tag
            differs.
    """

    def as_reader(cfg: Any) -> Callable[[BaseFairseqModel], BaseFairseqModel]:
        _check_pairs(cfg.task, [(pair.source, pair.target) for pair in pairs], tags_of)
        return reading_eos_first if reads_eos_first else lambda model: model

    return load_teacher(source, pairs[0], as_reader=as_reader)


def _check_pairs(task: Any, pairs: Sequence[tuple[str, str]], tags_of: TagsOf) -> None:
    """Refuse a teacher that was trained on other pairs, or with tags in other places.

    Raises:
        UsageError: naming the pair or the tags.
    """
    known = pairs_of(task)
    for pair in pairs:
        name = "-".join(pair)
        if known and name not in known:
            raise UsageError(
                f"the teacher was trained on {','.join(known)[:60]}, but not on {name}, a pair of "
                "--lang-pairs: leave it out, or use another teacher"
            )
    if getattr(task, SETTING, None) is not None:  # an import stores the tags of one pair, which tell the rest
        own = languages_of(task)
        pairs = [(own[0] or pairs[0][0], own[1] or pairs[0][1])]
    for pair in pairs:
        theirs, own_tags = language_tags(task, pair), tags_of(pair)
        if theirs != own_tags:
            raise UsageError(
                f"the teacher has {_shown(theirs)}, the student {_shown(own_tags)}: use its flags "
                "(--encoder-langtok, …) or imitkd-seqkd"
            )


def _shown(tags: TagNames) -> str:
    return str(tags) or "no tags"
