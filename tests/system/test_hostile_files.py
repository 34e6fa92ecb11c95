"""Files from strangers: every command refuses them in one line, soon, in little memory, and runs nothing."""

import shutil
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.helpers.every_command import READERS, Outcome, Place, run
from tests.helpers.hostile_files import Hostile, Wrong, all_files
from tests.helpers.hostile_folders import COMMANDS, HostileFolder, all_folders, make_good, spoilt

PROCESSES = 2

# Of each kind of fault one file, with commands that did worse than others before there were bounds.
SAMPLE = {
    "code": "interactive",
    "code-in-optimizer": "train --restore-file",
    "half": "export",
    "zeros-in-weights": "prune",
    "zip-bomb": "train --finetune-from-model",
    "laughs-in-cfg": "generate",
    "bomb-of-hex": "seqkd",
    "deep-in-cfg": "train --save-dir",
    "cfg-is-tensor": "evaluate",
    "model-encoder-layers": "generate",
    "model-repeated-text": "cache",
    "model-source-positions": "train --teacher-path",
    "model-long-list": "train --restore-file",
    "model-embeddings-elsewhere": "generate",
    "args-learning-rates": "evaluate",
    "task-levenshtein": "seqkd",
    "weight-expanded": "train --finetune-from-model",
    "weight-nan": "interactive",
    "moments-expanded": "train --restore-file",
    "history-of-numbers": "train --save-dir",
}
FOLDERS = {
    "data/size-negative": "generate",
    "data/tokens-beyond": "generate",
    "dictionary/million-digits": "train",
    "dictionary/pipe": "seqkd",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.made(tmp_path_factory.mktemp("hostile") / "place")


def read(place: Place, hostile: Hostile, reader: str, folder: Path) -> Outcome:
    """Write a file and run a command on it."""
    folder.mkdir()
    file, trace = folder / "file.pt", folder / "executed"
    hostile.write(file, place.state, trace)
    outcome = place.run(reader, file, folder / "out", trace=trace, wrong=hostile.wrong)
    shutil.rmtree(folder)
    return outcome


def read_folder(
    place: Place, good: dict[str, Path], hostile: HostileFolder, command: str, folder: Path
) -> Outcome:
    """Spoil a folder and run a command on it."""
    (folder / "out").mkdir(parents=True)
    spoilt(good[hostile.kind], hostile, folder / "spoilt")
    names = {
        "DATA": place.root / "data",
        "GOOD": place.root / "good" / "checkpoint_last.pt",
        "FOLDER": folder / "spoilt",
        "OUT": folder / "out",
    }
    words = COMMANDS[hostile.kind][command].split()
    outcome = run(words, names, trace=folder / "executed", must_refuse=not hostile.harmless)
    shutil.rmtree(folder)
    return outcome


def check(outcomes: Iterable[tuple[str, str, Outcome]]) -> None:
    """Print a table of commands and outcomes, and fail if one is a fault.

    Args:
        outcomes: names of files and commands, and how they ended.
    """
    table: dict[str, Counter[str]] = {}
    faults = []
    for name, command, outcome in outcomes:
        table.setdefault(command, Counter())[outcome.kind] += 1
        if outcome.is_fault:
            faults.append(f"{outcome.kind}: {command} on {name}: {outcome.end.last[:300]}")
    kinds = sorted({kind for counts in table.values() for kind in counts})
    print(f"\n{'command':28}", *(f"{kind:>12}" for kind in kinds))
    for command, counts in table.items():
        print(f"{command:28}", *(f"{counts[kind]:12}" for kind in kinds))
    assert not faults, "\n".join(faults)


def test_sample_of_hostile_files(place: Place, tmp_path: Path) -> None:
    """Checkpoints and folders, one command for each."""
    files = {hostile.name: hostile for hostile in all_files()}
    folders = {f"{hostile.kind}/{hostile.name}": hostile for hostile in all_folders()}
    good = dict.fromkeys(("data", "dictionary"), place.root / "data")
    with ThreadPoolExecutor(PROCESSES) as pool:
        jobs = [
            (name, command, pool.submit(read, place, files[name], command, tmp_path / name))
            for name, command in SAMPLE.items()
        ]
        jobs += [
            (name, command, pool.submit(read_folder, place, good, folders[name], command, tmp_path / str(at)))
            for at, (name, command) in enumerate(FOLDERS.items())
        ]
        outcomes = [(name, command, job.result()) for name, command, job in jobs]
    check(outcomes)
    assert {outcome.kind for name, _, outcome in outcomes if "embeddings" in name} == {"accepted"}


@pytest.mark.slow
def test_good_files_are_read_by_every_command(place: Place, tmp_path: Path) -> None:
    """So the refusals of this module are of the files."""
    good = Hostile("good", Wrong.NOTHING, lambda path, state, _: torch.save(state, path))
    for reader in READERS:
        outcome = read(place, good, reader, tmp_path / "good")
        assert outcome.kind == "accepted", outcome.end.output[-2000:]


@pytest.mark.slow
def test_every_command_on_every_hostile_checkpoint(place: Place, tmp_path: Path) -> None:
    """Run it with ``-s`` to see the table."""
    with ThreadPoolExecutor(PROCESSES) as pool:
        jobs = [
            (hostile.name, reader, pool.submit(read, place, hostile, reader, tmp_path / f"{number}-{at}"))
            for number, hostile in enumerate(all_files())
            for at, reader in enumerate(READERS)
        ]
        check((name, reader, job.result()) for name, reader, job in jobs)


@pytest.mark.slow
def test_every_command_on_every_hostile_folder(place: Place, tmp_path: Path) -> None:
    """Data, dictionaries, caches, exported students, subwords and results."""
    good = make_good(place.root)
    with ThreadPoolExecutor(PROCESSES) as pool:
        jobs = [
            (
                f"{hostile.kind}/{hostile.name}",
                f"{command} ({hostile.kind})",
                pool.submit(read_folder, place, good, hostile, command, tmp_path / f"{number}-{command}"),
            )
            for number, hostile in enumerate(all_folders())
            for command in COMMANDS[hostile.kind]
        ]
        check((name, command, job.result()) for name, command, job in jobs)
