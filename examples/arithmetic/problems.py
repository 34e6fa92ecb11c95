"""Write sums of two to four numbers with their worked steps, one problem a line: problems.py FOLDER.

    4 7 + 3 6 + 8 1 + 5 5 = 4 7 + 3 6 = 8 3 ; 8 3 + 8 1 = 1 6 4 ; 1 6 4 + 5 5 = 2 1 9

Digits are symbols of their own. The prompt of a problem ends at its first "=". No problem is in two splits.
"""

import argparse
import random
from pathlib import Path

SPLITS = {"train": 10_000, "valid": 1_000, "test": 2_000}
NUMBERS = (2, 4)  # least and most numbers of a sum; each has two digits


def spaced(number: int) -> str:
    """Return a number with blanks between its digits."""
    return " ".join(str(number))


def problem(numbers: list[int]) -> str:
    """Return a sum, and its worked steps from left to right."""
    total, steps = numbers[0], []
    for number in numbers[1:]:
        steps.append(f"{spaced(total)} + {spaced(number)} = {spaced(total + number)}")
        total += number
    return f"{' + '.join(map(spaced, numbers))} = {' ; '.join(steps)}"


def main() -> None:
    """Write ``train.txt``, ``valid.txt`` and ``test.txt``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1, help="seed of the problems (default: 1)")
    parser.add_argument("--share", type=float, default=1.0, help="share of the usual number (default: 1)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    generator, seen = random.Random(args.seed), set()
    for split, count in SPLITS.items():
        with open(args.folder / f"{split}.txt", "w", encoding="utf-8") as file:
            for _ in range(round(count * args.share)):
                numbers = None
                while numbers is None or tuple(numbers) in seen:
                    numbers = [generator.randrange(10, 100) for _ in range(generator.randint(*NUMBERS))]
                seen.add(tuple(numbers))
                print(problem(numbers), file=file)


if __name__ == "__main__":
    main()
