"""Parsing of requests: the sentences that a request holds, and the reasons to refuse it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

JSON, TEXT = "application/json", "text/plain"
CHARACTERS = 16  # maximum number of characters of a sentence per token, the longest that subwords get
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")  # without white space, which may stand in a sentence
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class RequestLimits:
    """The limits of a request.

    Attributes:
        request_bytes: maximum size of its body.
        sentences: maximum number of sentences, empty ones included.
        tokens: maximum number of tokens of a sentence, EOS included.
        seconds: maximum time to receive its headers, and from then to the last translation.
        word: maximum number of characters of a sentence without a space between them; None allows any.
    """

    request_bytes: int = 1_000_000
    sentences: int = 1000
    tokens: int = 1024
    seconds: float = 60.0
    word: int | None = None


class Refused(Exception):
    """A request is refused.

    Attributes:
        status: HTTP status of the answer.
        message: one line that says why.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def media_type(header: str) -> str:
    """Return :data:`JSON` or :data:`TEXT`, by a ``Content-Type`` header.

    Raises:
        Refused: the header names another type, or another character set than UTF-8.
    """
    kind, *parameters = (part.strip().lower() for part in header.split(";"))
    charsets = {part.partition("=")[2].strip('" ') for part in parameters if part.startswith("charset")}
    if kind not in (JSON, TEXT) or charsets - {"utf-8", "utf8", "us-ascii"}:
        raise Refused(415, f"Content-Type must be {JSON} or {TEXT}; charset=utf-8, but is {header[:100]!r}")
    return kind


def parse_sentences(body: bytes, kind: str, limits: RequestLimits) -> list[str]:
    """Return the sentences of a request: the lines of a text, or the ``"text"`` of a JSON object.

    Args:
        body: the request's body.
        kind: :data:`JSON` or :data:`TEXT`.
        limits: what the request may hold.

    Raises:
        Refused: the body is empty, too large or malformed.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body must be UTF-8, but byte {error.start + 1} is not") from None
    found = _lines(text) if kind == TEXT else _items(text)
    if len(found) > limits.sentences:
        raise Refused(
            413,
            f"a request may have {limits.sentences} sentences, but this one has {len(found)}; send fewer at "
            "once",
        )
    if not any(map(str.strip, found)):
        raise Refused(400, "there is nothing to translate; send a sentence that is not empty")
    for place, sentence in enumerate(found, 1):
        _check(place, sentence, limits)
    return found


def _lines(text: str) -> list[str]:
    """Split at line feeds only; ``splitlines`` splits at a dozen characters that may stand in a sentence."""
    lines = re.split(r"\r?\n", text)
    return lines if lines[-1] else lines[:-1]


def _items(text: str) -> list[str]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number with too many digits is a ValueError too
        where = (
            f": line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        )
        raise Refused(400, f"the body is not JSON{where}") from None
    if not isinstance(found, dict) or found.keys() != {"text"}:
        raise Refused(
            422,
            'the JSON must be an object with "text" and nothing else: {"text": "…"} or {"text": ["…", "…"]}',
        )
    items = [found["text"]] if isinstance(found["text"], str) else found["text"]
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise Refused(422, '"text" must be a string or a list of strings')
    return items


def _check(place: int, sentence: str, limits: RequestLimits) -> None:
    if "\n" in sentence:
        raise Refused(422, f"sentence {place} contains a line break; send each line as a string of its own")
    for pattern, what in ((_CONTROL, "a control character"), (_SURROGATE, "half of a surrogate pair")):
        if strange := pattern.search(sentence):
            raise Refused(422, f"sentence {place} contains {what}, U+{ord(strange[0]):04X}; leave it out")
    if len(sentence) > CHARACTERS * limits.tokens:
        raise Refused(
            413,
            f"sentence {place} has {len(sentence)} characters, but may have {CHARACTERS * limits.tokens}, "
            f"{CHARACTERS} for each of {limits.tokens} tokens; split it",
        )
    word = max(map(len, sentence.split(" ")))
    if limits.word is not None and word > limits.word:
        raise Refused(
            413,
            f"sentence {place} has {word} characters without a space, but may have {limits.word}; split it",
        )


def as_lines(translations: Sequence[str]) -> str:
    """Return one line per translation; a line break that a model wrote becomes a space."""
    return "".join(" ".join(re.split(r"[\r\n]+", translation)) + "\n" for translation in translations)
