"""Makes spoken commands up: ``commands.py OUT``.

A command is an English sentence. It has up to eight right German sentences: two verbs or adjectives, the time
before or after the object, with and without "bitte". Training text has one of them, drawn at random.

OUT gets ``text.en`` and ``text.de``, which the text teacher learns from; ``train.en`` and ``train.de``, the
first of these lines, which are spoken; ``valid`` and ``test``, whose commands are in no other file; and
``test.all``, all right sentences of a command, joined by tabs. Beside each ``.de`` is a ``.frame``: the
command's intent and slots, such as ``switch_on device=lamp room=hall time=on_sunday``.
"""

import argparse
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DEVICES = {
    "lamp": "die Lampe", "heater": "den Ofen", "radio": "das Radio", "fan": "den Ventilator",
    "television": "den Fernseher", "computer": "den Rechner", "printer": "den Drucker",
    "coffee machine": "die Kaffeemaschine", "alarm": "den Alarm", "speaker": "den Lautsprecher",
    "light": "das Licht", "dishwasher": "die Spülmaschine",
}  # fmt: skip
ROOMS = {
    "kitchen": "in der Küche", "bathroom": "im Bad", "bedroom": "im Schlafzimmer", "cellar": "im Keller",
    "living room": "im Wohnzimmer", "office": "im Büro", "garage": "in der Garage", "hall": "im Flur",
    "garden": "im Garten", "attic": "auf dem Dachboden",
}  # fmt: skip
TIMES = {
    "now": "jetzt", "tomorrow": "morgen", "tonight": "heute Abend", "tomorrow morning": "morgen früh",
    "in ten minutes": "in zehn Minuten", "in an hour": "in einer Stunde", "at noon": "am Mittag",
    "at midnight": "um Mitternacht", "on sunday": "am Sonntag", "on friday": "am Freitag",
    "every day": "jeden Tag", "after dinner": "nach dem Essen",
}  # fmt: skip
NUMBERS = {
    "five": "fünf", "ten": "zehn", "fifteen": "fünfzehn", "sixteen": "sechzehn", "seventeen": "siebzehn",
    "eighteen": "achtzehn", "nineteen": "neunzehn", "twenty": "zwanzig", "twenty one": "einundzwanzig",
    "twenty two": "zweiundzwanzig", "twenty five": "fünfundzwanzig", "thirty": "dreißig",
}  # fmt: skip
MUSIC = {
    "jazz": "Jazz", "rock": "Rock", "the news": "die Nachrichten", "my songs": "meine Lieder",
    "a story": "eine Geschichte", "some music": "etwas Musik",
}  # fmt: skip
OPENINGS = {"window": "das Fenster", "door": "die Tür", "curtain": "den Vorhang", "gate": "das Tor"}
LEVELS = {"heating": ("die Heizung", "Grad", "degrees"), "volume": ("die Lautstärke", "Prozent", "percent")}


class Command(NamedTuple):
    """A command, its right translations, and its meaning."""

    english: str
    german: list[str]
    frame: str


def draw(numbers: random.Random) -> Command:
    """Draw a command."""

    def one(words: dict) -> tuple:
        return numbers.choice(list(words.items()))

    (room, im), (time, wann) = one(ROOMS), one(TIMES)
    kind = numbers.choice(("switch", "switch", "set", "play", "open"))
    if kind == "switch":
        (device, noun), (side, ends) = one(DEVICES), one({"on": ("ein", "an"), "off": ("aus", "ab")})
        verb = numbers.choice(("turn", "switch"))
        english = f"{verb} {side} the {device} in the {room} {time}"
        verbs, object_ = [("schalte", ends[0]), ("mach", ends[1])], f"{noun} {im}"
        frame = (f"switch_{side}", f"device={device}")
    elif kind == "set":
        (level, (noun, unit, english_unit)), (number, zahl) = one(LEVELS), one(NUMBERS)
        english = f"set the {level} in the {room} to {number} {english_unit} {time}"
        verbs, object_ = [("stelle", ""), ("setze", "")], f"{noun} {im} auf {zahl} {unit}"
        frame = ("set", f"device={level}", f"number={number}")
    elif kind == "play":
        music, noun = one(MUSIC)
        english = f"play {music} in the {room} {time}"
        verbs, object_ = [("spiele", ""), ("spiel", "")], f"{noun} {im}"
        frame = ("play", f"music={music}")
    else:
        (opening, noun), (verb, ends) = (
            one(OPENINGS),
            one({"open": ("öffne", "auf"), "close": ("schließe", "zu")}),
        )
        english = f"{verb} the {opening} in the {room} {time}"
        verbs, object_ = [(ends[0], ""), ("mach", ends[1])], f"{noun} {im}"
        frame = (verb, f"device={opening}")
    german = []
    for (start, end), early, please in itertools.product(verbs, (True, False), ("", "bitte")):
        middle = f"{wann} {object_}" if early else f"{object_} {wann}"
        german.append(" ".join(f"{start} {please} {middle} {end}".split()))
    slots = (slot.replace(" ", "_") for slot in (*frame, f"room={room}", f"time={time}"))
    return Command(english, german, " ".join(slots))


def write(path: Path, lines: Sequence[str]) -> None:
    """Write lines of text."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=int, default=20000, help="commands of the text teacher")
    parser.add_argument("--train", type=int, default=3000, help="of these, commands that are spoken")
    parser.add_argument("--held-out", type=int, default=500, help="commands of valid and of test, each")
    args = parser.parse_args()
    numbers = random.Random(1)
    held_out: dict[str, Command] = {}
    while len(held_out) < 2 * args.held_out:
        command = draw(numbers)
        held_out[command.english] = command
    text: list[Command] = []
    while len(text) < args.text:
        command = draw(numbers)
        if command.english not in held_out:
            text.append(command)
    args.out.mkdir(parents=True, exist_ok=True)
    others = list(held_out.values())
    splits = {
        "text": text,
        "train": text[: args.train],
        "valid": others[: args.held_out],
        "test": others[args.held_out :],
    }
    drawn = {command.english: numbers.choice(command.german) for command in others}
    german = [numbers.choice(command.german) for command in text]
    for name, commands in splits.items():
        write(args.out / f"{name}.en", [command.english for command in commands])
        write(args.out / f"{name}.frame", [command.frame for command in commands])
        targets = german if name in ("text", "train") else [drawn[command.english] for command in commands]
        write(args.out / f"{name}.de", targets[: len(commands)])
    write(args.out / "test.all", ["\t".join(command.german) for command in splits["test"]])


if __name__ == "__main__":
    main()
