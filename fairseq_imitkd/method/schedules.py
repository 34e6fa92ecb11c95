"""How the share of sentences that the student writes itself moves with training. Text -> pure function.

Schedules follow the released code of ImitKD (Lin et al., EMNLP 2020), which speaks of the *data* share; here it is
always the student's, one minus that.
"""

import math
from collections.abc import Callable, Sequence

from fairseq_imitkd.errors import UsageError

Schedule = Callable[[int], float]

FORMS = (
    "a number in 0..1, constant:SHARE, exponential:FINAL_DATA_SHARE, linear:FINAL_DATA_SHARE or reverse-sigmoid, each with an "
    "optional ,warmup=FRACTION"
)


def parse_schedule(
    text: str, end: int, flag: str = "--student-share", end_flag: str = "--max-update", forms: str = FORMS
) -> Schedule:
    """Read a schedule: a share that never falls as training goes on.

    With ``x`` the fraction of training done, update / ``--max-update`` (or epoch / ``--max-epoch``):

    ==================  ======================================================
    ``constant:S``      ``S`` (``S`` alone means the same)
    ``exponential:R``   ``1 - R^x``, so the data share ends at ``R``: the paper's
    ``linear:R``        ``x (1 - R)``
    ``reverse-sigmoid``  ``1 - 1 / (1 + exp(20 (x - 1/2)))``
    ==================  ======================================================

    Each takes an optional ``,warmup=F``: the share is 0 for the first fraction ``F`` of the updates, and then
    ``x`` is that fraction less ``F``, as in the released code; so a moving form ends at ``x = 1 - F``.

    Args:
        text: the flag's value, for example ``exponential:0.005,warmup=0.1``.
        end: of training, in updates or epochs; 0 means unlimited, which only a constant share allows.
        flag, end_flag, forms: what to name in errors: the flags, and what a schedule may be.

    Returns:
        update or epoch number (0 = first) -> share in 0..1.

    Raises:
        UsageError: the text does not parse, a number is out of range, or the end is needed and missing.
    """
    form, *options = (part.strip() for part in text.split(","))
    name, _, argument = form.partition(":")
    if not argument and _is_number(name):
        name, argument = "constant", name
    warmup = _warmup(options, text, flag)

    moving: dict[str, Callable[[float, float], float]] = {
        "exponential": lambda final, done: 1.0 - final**done,
        "linear": lambda final, done: done * (1.0 - final),
        "reverse-sigmoid": lambda _, done: 1.0 - 1.0 / (1.0 + math.exp(20.0 * (done - 0.5))),
    }
    if name != "constant" and name not in moving:
        raise UsageError(f"{flag} must be {forms}, but is '{text}'")
    if (name == "reverse-sigmoid") != (argument == ""):
        raise UsageError(
            f"{flag} '{text}': {name} takes {'no number' if argument else 'a number, as in ' + name + ':0.5'}"
        )
    number = _fraction(argument, text, flag) if argument else 0.0
    if name == "exponential" and number == 0.0:
        raise UsageError(
            f"{flag} '{text}': the final data share of exponential must be above 0, as in exponential:0.005"
        )
    if end <= 0 and (name != "constant" or warmup > 0):
        raise UsageError(
            f"{flag} '{text}' needs {end_flag}, which says when training ends; or use constant:SHARE without warmup"
        )

    def share(now: int) -> float:
        done = now / end - warmup if end > 0 else 0.0
        if done < 0.0:
            return 0.0
        if name == "constant":
            return number
        return min(1.0, max(0.0, moving[name](number, min(done, 1.0))))

    return share


class AdaptiveShare:
    """A share that grows when the validation loss has become worse (Ko et al. 2024, section 3.2).

    Args:
        start: the first share, in 0..1.
        step: by how much it grows.
    """

    def __init__(self, start: float, step: float = 0.1):
        self.share, self.step = start, step
        self.last_loss: float | None = None

    def __call__(self, now: int) -> float:
        """The share, whenever."""
        return self.share

    def validated(self, loss: float) -> None:
        """Take in the loss of a validation."""
        if self.last_loss is not None and loss > self.last_loss:
            self.share = min(1.0, self.share + self.step)
        self.last_loss = loss

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self.share] if self.last_loss is None else [self.share, self.last_loss]

    def restore(self, state: Sequence[float]) -> None:
        """Go on from a :meth:`state`."""
        self.share = float(state[0])
        self.last_loss = float(state[1]) if len(state) > 1 else None


def parse_share(
    text: str, end: int, flag: str = "--student-share", end_flag: str = "--max-update"
) -> Schedule:
    """A schedule of :func:`parse_schedule`, or ``adaptive:START``.

    Raises:
        UsageError: as there.
    """
    name, _, argument = text.strip().partition(":")
    if name != "adaptive":
        return parse_schedule(text, end, flag, end_flag, FORMS + "; or adaptive:START")
    if not argument:
        raise UsageError(f"{flag} '{text}': adaptive takes the share to begin with, as in adaptive:0")
    return AdaptiveShare(_fraction(argument, text, flag))


def _warmup(options: list[str], text: str, flag: str) -> float:
    if not options:
        return 0.0
    key, _, value = options[0].partition("=")
    if len(options) > 1 or key != "warmup":
        raise UsageError(f"{flag} '{text}': the only option is ,warmup=FRACTION, once")
    return _fraction(value, text, flag)


def _fraction(value: str, text: str, flag: str) -> float:
    if not _is_number(value) or not 0.0 <= float(value) <= 1.0:
        raise UsageError(f"{flag} '{text}': '{value}' must be a number in 0..1")
    return float(value)


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
