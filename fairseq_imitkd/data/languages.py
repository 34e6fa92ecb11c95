"""A language pair with its two dictionaries."""

from dataclasses import dataclass
from typing import Any

from fairseq.data import Dictionary

from fairseq_imitkd.text.subwords import Text, TextSettings


@dataclass(frozen=True)
class LanguagePair:
    """The languages and dictionaries that a student and its teacher share.

    Args:
        source, target: language codes.
        source_dictionary, target_dictionary: dictionaries of the two languages.
    """

    source: str
    target: str
    source_dictionary: Dictionary
    target_dictionary: Dictionary

    @classmethod
    def from_task(cls, task: Any) -> "LanguagePair":
        """Return the language pair of a fairseq translation task."""
        return cls(task.cfg.source_lang, task.cfg.target_lang, task.source_dictionary, task.target_dictionary)

    def text(self, settings: TextSettings) -> Text:
        """Return what turns text of the two languages into symbols, and back.

        Raises:
            UsageError: as in :class:`~fairseq_imitkd.text.subwords.Text`.
        """
        dictionaries = self.source_dictionary, self.target_dictionary
        return Text(settings, self.source, self.target, dictionaries=dictionaries)
