"""Schedules: text such as ``exponential:0.005`` -> a function from the training's progress to a share.

They follow ImitKD's released code (Lin et al., EMNLP 2020), which schedules the share of *data* sentences.
Here a schedule gives the share of the *student's* sentences, which is one minus that.
https://github.com/asappresearch/imitkd/blob/8b9fadded0e9eed7e16bf6ce6c3235f3ad5132e8/generation/distillation.py#L404-L409
"""

import math
from collections.abc import Callable, Sequence

from fairseq_imitkd.errors import UsageError, percent

Schedule = Callable[[int], float]

FORMS = (
    "a number in 0..1, constant:SHARE, exponential:FINAL, linear:FINAL or reverse-sigmoid, each with an "
    "optional ,warmup=FRACTION"
)

# (final data share, fraction of the training that is done) -> student share
_FORMULAS: dict[str, Callable[[float, float], float]] = {
    "exponential": lambda final, done: 1.0 - final**done,
    "linear": lambda final, done: done * (1.0 - final),
    "reverse-sigmoid": lambda _, done: 1.0 - 1.0 / (1.0 + math.exp(20.0 * (done - 0.5))),
}


def parse_schedule(
    text: str, end: int, *, flag: str = "--student-share", end_flag: str = "--max-update", forms: str = FORMS
) -> Schedule:
    """Parse a schedule: a share that never falls during training.

    ``x`` is the fraction of the training that is done: update / ``--max-update``, or epoch / ``--max-epoch``.

    ===================  ======================================================
    ``constant:S``       ``S`` (``S`` alone means the same)
    ``exponential:R``    ``1 - R^x``: the data share ends at ``R``, as in the paper
    ``linear:R``         ``x (1 - R)``
    ``reverse-sigmoid``  ``1 - 1 / (1 + exp(20 (x - 1/2)))``
    ===================  ======================================================

    Each form takes an optional ``,warmup=F``: the share is 0 for the first fraction ``F`` of the training,
    and ``x`` is then the fraction that is done minus ``F``. The released code does the same. So a moving form
    ends at ``x = 1 - F``.

    Args:
        text: the flag's value, for example ``exponential:0.005,warmup=0.1``.
        end: length of the training in updates or epochs; 0 means unlimited, which only a constant share
            allows.
        flag, end_flag: the flags of the text and of the training's length, for messages.
        forms: the forms that the text may have, for messages.

    Returns:
        a function from the update or epoch number (0 = first) to a share in 0..1.

    Raises:
        UsageError: the text does not parse, a number is out of range, or ``end`` is needed and missing.
    """
    form, *options = (part.strip() for part in text.split(","))
    name, _, argument = form.partition(":")
    if not argument and _is_number(name):
        name, argument = "constant", name
    warmup = _warmup(options, text, flag)
    if name != "constant" and name not in _FORMULAS:
        raise UsageError(f"{flag} must be {forms}, but is '{text}'")
    number = _argument(name, argument, text, flag=flag)
    if end <= 0 and (name != "constant" or warmup > 0):
        raise UsageError(
            f"{flag} '{text}' needs {end_flag}, which sets the end of the training; or use constant:SHARE "
            "without warmup"
        )

    def share(now: int) -> float:
        done = now / end - warmup if end > 0 else 0.0
        if done < 0.0:
            return 0.0
        if name == "constant":
            return number
        return min(1.0, max(0.0, _FORMULAS[name](number, min(done, 1.0))))

    return share


def moves(schedule: Schedule, last: int) -> bool:
    """Return whether the share of the last update or epoch is another one than the first share; False for an
    adaptive share.
    """
    return not isinstance(schedule, AdaptiveShare) and schedule(0) != schedule(last)


class AdaptiveShare:
    """A share that grows when the validation loss has risen by more than noise (Ko et al. 2024, section 3.2).

    The rule is that of the authors' code. A validation counts if its loss is at least ``tolerance`` above the
    level. Then the share grows by ``step``, and this loss is the new level. Any other validation changes
    neither, so the level never falls. The first level is the loss of the first validation; the authors'
    code has a validation before the training.
    https://github.com/jongwooko/distillm/blob/d47e77ff9d27721783b32213be38c1204230cc0a/finetune.py#L411-L417

    Args:
        start: the first share, in 0..1.
        step: how much is added to the share each time.
        tolerance: rise of the loss that counts, in nats per token.
    """

    def __init__(self, start: float, step: float = 0.1, tolerance: float = 0.1):
        self.share, self.step, self.tolerance = start, step, tolerance
        self.level: float | None = None

    def __call__(self, now: int) -> float:
        """The current share; the update number is ignored."""
        return self.share

    def validated(self, loss: float) -> None:
        """Read the loss of a validation, in nats per token."""
        if self.level is None:
            self.level = loss
        elif loss >= self.level + self.tolerance:
            self.share = min(1.0, self.share + self.step)
            self.level = loss

    def state(self) -> list[float]:
        """Return the state for a checkpoint."""
        return [self.share] if self.level is None else [self.share, self.level]

    def restore(self, state: Sequence[float]) -> None:
        """Continue from the result of :meth:`state`.

        Earlier versions stored the last validation's loss in the level's place. It becomes the level.
        """
        self.share = float(state[0])
        self.level = float(state[1]) if len(state) > 1 else None


def parse_share(
    text: str, end: int, *, flag: str = "--student-share", end_flag: str = "--max-update"
) -> Schedule:
    """Parse a schedule of :func:`parse_schedule`, or ``adaptive:START`` with an optional
    ``,tolerance=NATS``.

    Raises:
        UsageError: as in :func:`parse_schedule`.
    """
    form, *options = (part.strip() for part in text.split(","))
    name, _, argument = form.partition(":")
    if name != "adaptive":
        return parse_schedule(text, end, flag=flag, end_flag=end_flag, forms=FORMS + "; or adaptive:START")
    if not argument:
        raise UsageError(f"{flag} '{text}': adaptive takes the first share, as in adaptive:0")
    share = AdaptiveShare(_fraction(argument, text, flag))
    if options:
        key, _, value = options[0].partition("=")
        if len(options) > 1 or key != "tolerance":
            raise UsageError(f"{flag} '{text}': the only option of adaptive is ,tolerance=NATS, once")
        if not _is_number(value) or float(value) < 0.0:
            raise UsageError(f"{flag} '{text}': '{value}' must be a number, 0 or more")
        share.tolerance = float(value)
    return share


def _argument(name: str, argument: str, text: str, *, flag: str) -> float:
    """Return the number after the colon: a constant share or a final data share."""
    if (name == "reverse-sigmoid") != (argument == ""):
        raise UsageError(
            f"{flag} '{text}': {name} takes {'no number' if argument else f'a number, as in {name}:0.5'}"
        )
    number = _fraction(argument, text, flag) if argument else 0.0
    if name == "exponential" and number == 0.0:
        raise UsageError(
            f"{flag} '{text}': the final data share of exponential must be above 0, as in exponential:0.005"
        )
    return number


def _warmup(options: list[str], text: str, flag: str) -> float:
    if not options:
        return 0.0
    key, _, value = options[0].partition("=")
    if len(options) > 1 or key != "warmup":
        raise UsageError(f"{flag} '{text}': the only option is ,warmup=FRACTION, once")
    return _fraction(value, text, flag)


def _fraction(value: str, text: str, flag: str) -> float:
    if not _is_number(value) or not 0.0 <= float(value) <= 1.0:
        meant = percent(float(value)) if _is_number(value) else ""
        must = "must be a number in 0..1"
        if value == text:
            raise UsageError(f"{flag} {must}, but is '{value}'{meant}")
        raise UsageError(f"{flag} '{text}': '{value}' {must}{meant}")
    return float(value)


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
