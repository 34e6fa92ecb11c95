"""The sentences that a request holds, and what it is refused for."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

JSON, TEXT = "application/json", "text/plain"
CHARACTERS = 16  # of a sentence for each token that it may have: as many as a subword has at most
# White space among them stands in a sentence like a space does.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Limits:
    """What a request may hold and take.

    Attributes:
        request_bytes: of its body.
        sentences: of it, empty ones counted.
        tokens: of a sentence, EOS included.
        seconds: for its headers, and again from these to the last translation.
    """

    request_bytes: int = 1_000_000
    sentences: int = 1000
    tokens: int = 1024
    seconds: float = 60.0


class Refused(Exception):
    """A request that is not answered with translations: the status and the line that it is answered with."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def media_type(header: str) -> str:
    """:data:`JSON` or :data:`TEXT`, whichever a ``Content-Type`` says.

    Raises:
        Refused: it says neither, or another character set than UTF-8.
    """
    kind, *parameters = (part.strip().lower() for part in header.split(";"))
    charsets = {part.partition("=")[2].strip('" ') for part in parameters if part.startswith("charset")}
    if kind not in (JSON, TEXT) or charsets - {"utf-8", "utf8", "us-ascii"}:
        raise Refused(415, f"Content-Type must be {JSON} or {TEXT}; charset=utf-8, but is {header[:100]!r}")
    return kind


def sentences(body: bytes, kind: str, limits: Limits) -> list[str]:
    """What is to be translated: the lines of a text, or the ``"text"`` of a JSON object.

    Args:
        body: of the request.
        kind: :data:`JSON` or :data:`TEXT`.
        limits: what it may hold.

    Raises:
        Refused: it holds nothing, too much, or anything else.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body must be UTF-8, but byte {error.start + 1} of it is not") from None
    found = _lines(text) if kind == TEXT else _items(text)
    if len(found) > limits.sentences:
        raise Refused(
            413,
            f"a request may have {limits.sentences} sentences, but this one has {len(found)}: send fewer at once",
        )
    if not any(map(str.strip, found)):
        raise Refused(400, "there is nothing to translate: send a sentence that is not empty")
    for place, sentence in enumerate(found, 1):
        _check(place, sentence, limits)
    return found


def _lines(text: str) -> list[str]:
    """Not by ``splitlines``, to which a dozen other characters, which may stand in a sentence, are ends too."""
    lines = re.split(r"\r?\n", text)
    return lines if lines[-1] else lines[:-1]


def _items(text: str) -> list[str]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a ValueError too
        where = (
            f": line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        )
        raise Refused(400, f"the body is no JSON{where}") from None
    if not isinstance(found, dict) or found.keys() != {"text"}:
        raise Refused(
            422,
            'the JSON must be an object with "text" and nothing else: {"text": "…"} or {"text": ["…", "…"]}',
        )
    items = [found["text"]] if isinstance(found["text"], str) else found["text"]
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise Refused(422, '"text" must be a string or a list of strings')
    return items


def _check(place: int, sentence: str, limits: Limits) -> None:
    if "\n" in sentence:
        raise Refused(422, f"sentence {place} has a line break in it: give each line as a string of its own")
    for pattern, what in ((_CONTROL, "a control character"), (_SURROGATE, "half of a surrogate pair")):
        if strange := pattern.search(sentence):
            raise Refused(422, f"sentence {place} has {what} in it, U+{ord(strange[0]):04X}: leave it out")
    # Some subword models take a time that grows with the square of a word's length.
    if len(sentence) > CHARACTERS * limits.tokens:
        raise Refused(
            413,
            f"sentence {place} has {len(sentence)} characters, but may have {CHARACTERS * limits.tokens}, "
            f"{CHARACTERS} for each of {limits.tokens} tokens: split it",
        )


def text_of(translations: Sequence[str]) -> str:
    """A line each, whatever a model may have written."""
    return "".join(" ".join(re.split(r"[\r\n]+", translation)) + "\n" for translation in translations)
