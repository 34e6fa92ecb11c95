"""In which language a text is, by the package py3langid."""

from collections.abc import Callable, Sequence

from fairseq_imitkd.errors import UsageError

# A text is of another language if its own is less probable than this. It leaves out nearly all German
# sentences of Tatoeba where English is asked for, and the reverse, and next to none of the right ones.
UNLIKELY = 0.05
WITH_LETTERS = 0.1  # share of the symbols of text that have a letter, at least


def are_numbers(symbols: Sequence[str]) -> bool:
    """Return whether nearly no symbol of a dictionary has a letter, as those of GPT-2's subwords."""
    return sum(any(map(str.isalpha, symbol)) for symbol in symbols) < WITH_LETTERS * len(symbols)


def is_other_language(code: str, flag: str) -> Callable[[str], bool]:
    """Return a function that says whether a text is in another language than a given one.

    Args:
        code: ISO 639-1 code of the language, such as ``de``.
        flag: the flag that names it, for messages.

    Raises:
        UsageError: the package is not installed, or does not know the language.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UsageError(
            f"{flag} needs the package py3langid; pip install 'fairseq-imitkd[language-id]', or leave it out"
        ) from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if code not in identifier.labels:
        raise UsageError(
            f"{flag} must be the code of a language such as de or en, but is '{code}'; "
            f"py3langid knows {len(identifier.labels)}"
        )

    def is_other(text: str) -> bool:
        if not any(map(str.isalpha, text)):  # numbers and marks are of every language
            return False
        return dict(identifier.rank(text))[code] < UNLIKELY

    return is_other
