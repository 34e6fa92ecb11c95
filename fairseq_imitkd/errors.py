"""What ends a run with one line instead of a traceback."""


class UsageError(ValueError, SystemExit):
    """A flag, file or combination that cannot work: one line that names it, its value and the remedy.

    It is a ``ValueError`` for callers that catch it, and a ``SystemExit`` so that every command, fairseq's own
    included, ends with this one line instead of a traceback that hides it.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.code = f"error: {message}"


class RefusedUpdate(RuntimeError, SystemExit):
    """A training step that would spoil the student. Its weights are as they were; the run ends with this one line."""

    def __init__(self, message: str):
        super().__init__(message)
        self.code = f"error: {message}"
