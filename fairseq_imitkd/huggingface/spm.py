"""Takes pieces out of a SentencePiece model, so that it splits text into the others.

The file is a protocol buffer: https://github.com/google/sentencepiece/blob/v0.2.0/src/sentencepiece_model.proto
SentencePiece itself can restrict its pieces (``spm_encode --vocabulary``), but its Python package can't.
"""

from collections.abc import Collection, Iterator

_PIECES = (1 << 3) | 2  # tag of the field ``pieces``: number 1, of a length that follows
_PIECE, _TYPE = (1 << 3) | 2, 3 << 3  # tags of a piece's text and type
_NORMAL, _UNUSED = 1, 5  # types; a piece without a type is normal
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # kinds of values


def without_pieces(model: bytes, kept: Collection[str]) -> bytes:
    """Return a SentencePiece model that splits text into the pieces that stay, and single letters.

    Args:
        model: the model's file.
        kept: pieces that stay. Special pieces and bytes stay too.

    Raises:
        ValueError: the file is damaged.
    """
    parts = []
    for tag, start, end, value in _fields(model):
        part = model[start:end]
        if tag == _PIECES and _goes(value, kept):
            value += bytes((_TYPE, _UNUSED))  # the last value of a field counts
            part = bytes((_PIECES,)) + _varint(len(value)) + value
        parts.append(part)
    return b"".join(parts)


def _goes(piece: bytes, kept: Collection[str]) -> bool:
    text, kind = "", _NORMAL
    for tag, _, _, value in _fields(piece):
        if tag == _PIECE:
            text = value.decode("utf-8")
        elif tag == _TYPE:
            kind = _read_varint(value, 0)[0]
    return kind == _NORMAL and len(text) > 1 and text not in kept


def _fields(message: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield tag, start, end and value of each field of a message."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        kind, begin = tag & 7, at
        if kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind == _BYTES:
            length, begin = _read_varint(message, at)
            at = begin + length
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("a field of an unknown kind")
        if at > len(message):
            raise ValueError("a field ends after the file")
        yield tag, start, at, message[begin:at]


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        number |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return number, at
    raise ValueError("a number without an end")


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes((*written, number))
