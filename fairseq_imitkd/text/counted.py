"""Numbers of things in messages."""


def counted(number: int, what: str) -> str:
    """Return a number with its noun, such as ``1 sentence`` and ``2,000 sentences``."""
    return f"{number:,} {what}{'s' * (number != 1)}"
