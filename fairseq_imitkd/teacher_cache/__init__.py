"""The teacher's answers on a data set's own targets, computed once: students then train without it.

``writing.py`` asks the teacher, ``reading.py`` answers in its place, ``files.py`` is what lies between them.
"""

from fairseq_imitkd.teacher_cache.reading import CachedTeacher, open_cache, refuse_teacher_flags
from fairseq_imitkd.teacher_cache.writing import CacheRequest, write_cache

__all__ = ["CacheRequest", "CachedTeacher", "open_cache", "refuse_teacher_flags", "write_cache"]
