"""Tests of the recipes' data scripts: splits without leaks, published preparations, checks of the text."""

import hashlib
import importlib.util
import io
import json
import random
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """A function that imports a script. Afterwards the shared module and the path are restored."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])

    def load(script: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location("recipe_" + Path(script).stem, EXAMPLES / script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("corpora", None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(module: ModuleType, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [module.__file__ or "", *map(str, arguments)])
        module.main()

    return run


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tar(path: Path, files: dict[str, str | bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            content = text.encode() if isinstance(text, str) else text
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


# ---- tatoeba/split.py

SIZES = {"valid": 12, "test": 12, "apart": 6}


def linked_pairs() -> list[tuple[str, str]]:
    """40 groups of three pairs, each linked to the next by one normalised side, and a group of twelve."""
    pairs = []
    for n in range(40):
        pairs += [
            (f"Hello {n}!", f"Hallo {n}."),
            (f"hello, {n}", f"Guten Tag {n}"),
            (f"Good day {n}", f"„Guten Tag {n}“!"),
        ]
    return pairs + [("Hi.", f"Gruß {n}") for n in range(12)]


def split_list(tmp_path: Path, pairs: list[tuple[str, str]]) -> Path:
    with zipfile.ZipFile(tmp_path / "deu-eng.zip", "w") as archive:
        archive.writestr("deu.txt", "".join(f"{english}\t{german}\n" for english, german in pairs))
    return tmp_path / "deu-eng.zip"


def split_pairs(out: Path) -> dict[str, list[tuple[str, str]]]:
    return {
        split: list(zip(lines(out / f"{split}.en"), lines(out / f"{split}.de"), strict=True))
        for split in SPLITS
    }


SPLITS = ("train", "valid", "test")


@pytest.fixture
def split(load: Load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("tatoeba/split.py")
    monkeypatch.setattr(module.splits, "__defaults__", (SIZES,))
    return module


def test_linked_pairs_are_never_in_two_splits(
    split: ModuleType, run: Callable[..., None], tmp_path: Path
) -> None:
    pairs = linked_pairs()
    run(split, split_list(tmp_path, pairs), tmp_path / "out")
    found = split_pairs(tmp_path / "out")
    assert {name: len(pairs) for name, pairs in found.items()} == {"train": 132 - 30, "valid": 12, "test": 12}
    group_of = {pair: number // 3 for number, pair in enumerate(pairs)}
    groups = {name: {group_of[pair] for pair in pairs} for name, pairs in found.items()}
    assert not groups["train"] & groups["valid"]
    assert not groups["train"] & groups["test"]
    assert not groups["valid"] & groups["test"]
    assert set(pairs[-12:]) <= set(found["train"])
    assert not list((tmp_path / "out").glob("apart.*"))


def test_the_list_s_order_and_blanks_do_not_matter(
    split: ModuleType, run: Callable[..., None], tmp_path: Path
) -> None:
    pairs = linked_pairs()
    run(split, split_list(tmp_path, pairs), tmp_path / "first")
    random.Random(1).shuffle(pairs)
    run(
        split,
        split_list(tmp_path, [(f" {english} ", german.replace(" ", "  ")) for english, german in pairs]),
        tmp_path / "second",
    )
    assert split_pairs(tmp_path / "first") == split_pairs(tmp_path / "second")


def test_sha256_chooses_and_orders(split: ModuleType, run: Callable[..., None], tmp_path: Path) -> None:
    pairs = linked_pairs()[:120]
    run(split, split_list(tmp_path, pairs), tmp_path / "out")
    groups = sorted(
        (pairs[n : n + 3] for n in range(0, 120, 3)), key=lambda group: sha256("\t".join(min(group)))
    )
    expected = [pair for group in groups[:4] for pair in group]
    assert split_pairs(tmp_path / "out")["valid"] == sorted(
        expected, key=lambda pair: sha256("\t".join(pair))
    )


def test_a_damaged_list_is_refused(split: ModuleType, run: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("<html>not found</html>")
    with pytest.raises(
        SystemExit,
        match=r"page\.zip must be a zip archive that holds deu\.txt, but is not; download it again",
    ):
        run(split, tmp_path / "page.zip", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"deu\.txt, line 2: must be ENGLISH TAB GERMAN, but is 'Hi\.\\t'"):
        run(split, split_list(tmp_path, [("Hi.", "Hallo."), ("Hi.", "")]), tmp_path / "out")
    with pytest.raises(
        SystemExit, match="valid must have 12 pairs, but only 1 are left; use the complete data"
    ):
        run(split, split_list(tmp_path, [("Hi.", "Hallo.")]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- reuters_headlines/headlines.py

BODY = "word " * 20


def sgm(documents: list[tuple[int, str, str]]) -> str:
    return "<!DOCTYPE lewis>\n" + "".join(
        f'<REUTERS TOPICS="YES" NEWID="{number}">\n<TEXT>&#2;\n<TITLE>{title}</TITLE>'
        f"<BODY>{body}\n REUTER\n&#3;</BODY></TEXT>\n</REUTERS>\n"
        for number, title, body in documents
    )


@pytest.fixture
def news(load: Load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("reuters_headlines/headlines.py")
    monkeypatch.setattr(module.splits, "__defaults__", ({"valid": 10, "test": 10},))
    monkeypatch.setattr(module, "FILES", ["reut2-000.sgm", "reut2-001.sgm"])
    return module


def test_news_that_start_alike_are_in_one_split(
    news: ModuleType, run: Callable[..., None], tmp_path: Path
) -> None:
    leads = [f"Lead {n} of twelve words that are the same in this very news" for n in range(50)]
    first = [(2 * n + 1, f"FIRST TITLE {n}", f"{leads[n]}. Then {n} {BODY}") for n in range(50)]
    second = [
        (2 * n + 2, f"SECOND TITLE {n}", f"{leads[n].upper()}, and other {n} {BODY}") for n in range(50)
    ]
    (tmp_path / "reut2-000.sgm").write_text(sgm(first))
    (tmp_path / "reut2-001.sgm").write_text(sgm(second))
    run(news, tmp_path, tmp_path / "out")
    found = {
        name: {title.split()[-1] for title in lines(tmp_path / "out" / f"{name}.tgt")} for name in SPLITS
    }
    assert {name: len(numbers) for name, numbers in found.items()} == {"train": 40, "valid": 5, "test": 5}
    assert len(set.union(*found.values())) == 50
    # The smallest number of a group selects it; each news' own number orders.
    chosen = sorted(range(50), key=lambda n: sha256(str(2 * n + 1)))[:5]
    expected = sorted(
        (item for n in chosen for item in (first[n], second[n])), key=lambda item: sha256(str(item[0]))
    )
    assert lines(tmp_path / "out" / "valid.tgt") == [title for _, title, _ in expected]


def test_what_is_left_out_and_cleaned(news: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "reut2-000.sgm"
    without_body = '<REUTERS NEWID="6"><TEXT><TITLE>NO BODY HERE</TITLE></TEXT></REUTERS>'
    path.write_text(
        sgm([
            (1, "GROSS &amp; CO &lt;GRO> SEE\n PROFIT", f"A sum&#22;of 5&#127;pct\nwas named. {BODY}"),
            (2, "TWO WORDS", BODY),
            (3, "A SHORT BODY", "word " * 19),
            (4, "THE SAME AGAIN", BODY),
            (5, "THE SAME AGAIN", BODY),
        ]).replace("</REUTERS>", f"</REUTERS>\n{without_body}", 1)
    )  # fmt: skip
    found = news.usable(news.read(path))
    assert [item.number for item in found] == [1, 4]
    assert found[0].headline == "GROSS & CO <GRO> SEE PROFIT"
    assert found[0].body == "A sum of 5 pct was named. " + BODY.strip()


def test_news_of_all_files(news: ModuleType, run: Callable[..., None], tmp_path: Path) -> None:
    for number, name in enumerate(news.FILES):
        (tmp_path / name).write_text(
            sgm(
                [
                    (20 * number + n, f"TITLE OF {20 * number + n}", f"News {n} {number} {BODY}")
                    for n in range(20)
                ]
            )
        )
    run(news, tmp_path, tmp_path / "out")
    assert sorted(lines(tmp_path / "out" / "train.tgt"))[0].startswith("TITLE OF ")
    assert lines(tmp_path / "out" / "test.src")[0].startswith("News ")
    (tmp_path / "reut2-001.sgm").unlink()
    with pytest.raises(
        SystemExit, match=r"reut2-001\.sgm cannot be read \(No such file or directory\); the folder must hold"
    ):
        run(news, tmp_path, tmp_path / "out")


# ---- iwslt14_de_en/ted.py


def talks(path: Path, german: list[str], english: list[str]) -> Path:
    files = {}
    for side, texts in (("de", german), ("en", english)):
        head = "<url>http://example.com</url>\n<keywords>a, b</keywords>\n<talkid>1</talkid>\n"
        head += f"<title>{side} Title</title>\n"
        files[f"de-en/train.tags.de-en.{side}"] = head + "".join(f"{text}\n" for text in texts)
        for number, name in enumerate(
            ("TED.tst2012", "TED.tst2011", "TED.tst2010", "TED.dev2010", "TEDX.dev2012")
        ):
            said = f"{side.upper()}\N{RIGHT SINGLE QUOTATION MARK}s test {number}."
            files[f"de-en/IWSLT14.{name}.de-en.{side}.xml"] = (
                f'<title>No sentence</title>\n<seg id="1"> {said} </seg>\n'
            )
    return tar(path, files)


def test_talks_are_prepared_as_fairseq_prepares_them(
    load: Load, run: Callable[..., None], tmp_path: Path
) -> None:
    pytest.importorskip("sacremoses")
    german = [f"Das ist Satz {n}, z.B. in den U.S." for n in range(45)]
    english = [f"It's sentence {n} \N{EM DASH} so to speak." for n in range(45)]
    german += ["Kurz.", "", "", "eins zwei"]
    english += ["word " * 100, "Nobody said this.", "", "one two three"]
    run(load("iwslt14_de_en/ted.py"), talks(tmp_path / "de-en.tgz", german, english), tmp_path)
    train, valid = lines(tmp_path / "train.en"), lines(tmp_path / "valid.en")
    assert len(train) + len(valid) == 1 + 45 + 1  # with the title; one side is at most 1.5 times the other
    assert [train[0], train[-1]] == ["en title", "one two three"]
    assert [line.split()[3] for line in valid] == ["21", "44"]  # lines 23 and 46
    assert train[1] == "it &apos;s sentence 0 \N{EM DASH} so to speak ."
    # tokenizer.perl separates the last full stop, but no other one of an abbreviation.
    assert lines(tmp_path / "train.de")[1] == "das ist satz 0 , z.b. in den u.s ."
    assert lines(tmp_path / "test.de") == [f"de &apos; s test {number} ." for number in (3, 4, 2, 1, 0)]


def test_talks_that_do_not_fit(load: Load, run: Callable[..., None], tmp_path: Path) -> None:
    pytest.importorskip("sacremoses")
    ted = load("iwslt14_de_en/ted.py")
    with pytest.raises(
        SystemExit, match=r"de-en\.de and train\.tags\.de-en\.en must have equally many .*, but have 3 and 2"
    ):
        run(ted, talks(tmp_path / "uneven.tgz", ["Eins.", "Zwei."], ["One."]), tmp_path / "out")
    with pytest.raises(SystemExit, match=r"the archive must hold train\.tags\.de-en\.de, but does not"):
        run(ted, tar(tmp_path / "other.tgz", {"readme": "x"}), tmp_path / "out")
    (tmp_path / "page.tgz").write_text("<html>not found</html>")
    with pytest.raises(SystemExit, match=r"page\.tgz must be a complete tar archive, but is not"):
        run(ted, tmp_path / "page.tgz", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# ---- wmt16_en_de/wmt.py


@pytest.fixture
def wmt(load: Load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("sacremoses")
    module = load("wmt16_en_de/wmt.py")
    monkeypatch.setattr(module, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(module, "CHUNK", 2)
    return module


def wmt_folder(folder: Path, german: str = "Zwei.\nNur hier.\n" + "w " * 81 + "\nDrei.\n") -> Path:
    tar(
        folder / "europarl-v7-de-en.tgz",
        {"europarl-v7.de-en.de": "Eins.\n", "europarl-v7.de-en.en": "One.\n"},
    )
    crawl = {
        "commoncrawl.cs-en.en": "Not this.\n",
        "commoncrawl.de-en.en": b"Two.\n\n" + b"w " * 80 + b"\nThree\xff.\n",
    }
    tar(folder / "training-parallel-commoncrawl.tgz", {**crawl, "commoncrawl.de-en.de": german})
    name = "training-parallel-nc-v11/news-commentary-v11.de-en"
    tar(folder / "training-parallel-nc-v11.tgz", {f"{name}.en": "It's four.\n", f"{name}.de": "Vier.\n"})
    for year in (2013, 2014):
        for side in ("en", "de"):
            (folder / f"newstest{year}.{side}").write_text(f"{side}, {year}.\n\u2028 a\n")
    return folder


def test_three_corpora_one_after_the_other(wmt: ModuleType, run: Callable[..., None], tmp_path: Path) -> None:
    run(wmt, wmt_folder(tmp_path), tmp_path / "out")
    out = tmp_path / "out"
    assert lines(out / "train.en") == ["One .", "Two .", "Three \ufffd .", "It &apos;s four ."]
    assert lines(out / "train.de") == ["Eins .", "Zwei .", "Drei .", "Vier ."]
    assert lines(out / "valid.de") == ["de , 2013 .", "a"]
    assert lines(out / "test.en") == ["en , 2014 .", "a"]


def test_corpora_of_unequal_sides(wmt: ModuleType, run: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit,
        match=r"both commoncrawl\.de-en\.\* must have equally many lines, but do not; download it again",
    ):
        run(wmt, wmt_folder(tmp_path, german="Zwei.\n"), tmp_path / "out")
    assert not (tmp_path / "out" / "train.en").exists()
    (tmp_path / "newstest2013.de").write_text("one\n")
    with pytest.raises(
        SystemExit, match=r"newstest2013\.en and \.de must have equally many lines, but have 2 and 1"
    ):
        run(wmt, tmp_path, tmp_path / "out")


# ---- cnn_dm/stories.py


def test_stories_are_cut_and_test_s_summaries_are_not(
    load: Load,
    run: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stories = load("cnn_dm/stories.py")
    for name in (
        "train-00000-of-00002",
        "train-00001-of-00002",
        "validation-00000-of-00001",
        "test-00000-of-00001",
    ):
        (tmp_path / f"{name}.parquet").touch()
    read = []

    def made(paths: list[Path]) -> list[tuple[str, str]]:
        read.append([path.name for path in paths])
        return [
            ("LONDON \u200b-- A\nstory.\x07 " + "word " * 500, "First .\nSecond . " + "more " * 200),
            ("", "Nothing above."),
        ]

    monkeypatch.setattr(stories, "stories", made)
    run(stories, tmp_path, tmp_path / "out")
    assert read[0] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    text = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert text["train.source"] == "LONDON -- A story. " + "word " * 395 + "word\n"
    assert text["train.target"] == "First . Second . " + "more " * 95 + "more\n"
    assert text["valid.target"] == text["test.target"] == "First . Second . " + "more " * 199 + "more\n"
    assert "test: dropped 1 pairs without article or highlights" in capsys.readouterr().out


def test_a_piece_of_a_split_is_missing(load: Load, run: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "train-00001-of-00002.parquet").touch()
    with pytest.raises(
        SystemExit,
        match=r"must hold all train-\*-of-\*\.parquet, but has \['train-00001-of-00002\.parquet'\]",
    ):
        run(load("cnn_dm/stories.py"), tmp_path, tmp_path / "out")


def test_parquet(load: Load, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    stories = load("cnn_dm/stories.py")
    rows = [
        {"article": f"Article {n}", "highlights": None if n == 1 else "It says.", "id": str(n)}
        for n in range(2500)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    found = list(stories.stories([tmp_path / "test-00000-of-00001.parquet"]))
    assert found == [(row["article"], row["highlights"] or "") for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "x"}]), tmp_path / "other.parquet")
    with pytest.raises(SystemExit, match=r"must have the columns \['article', 'highlights'\]"):
        list(stories.stories([tmp_path / "other.parquet"]))
    (tmp_path / "page.parquet").write_text("<html>not found</html>")
    with pytest.raises(SystemExit, match=r"page\.parquet must be a complete Parquet file, but is not"):
        list(stories.stories([tmp_path / "page.parquet"]))


# ---- check.py

TEXT = {
    "train": [
        ("eins", "one"),
        ("zwei", "two"),
        ("eins", "one"),
        ("zwei", "2"),
        ("viel zu viel", "m"),
        ("a\tb", "c\u200bd"),
    ],
    "valid": [("zwei", "two"), ("neu", "one"), ("neu", "new")],
    "test": [("eins", "1"), ("eins", "neither"), ("gleich", "gleich"), ("viel", "m")],
}


def corpus(folder: Path, text: dict[str, list[tuple[str, str]]] = TEXT) -> Path:
    folder.mkdir(exist_ok=True)
    for split, pairs in text.items():
        for side, texts in zip(("de", "en"), zip(*pairs, strict=True), strict=True):
            (folder / f"{split}.{side}").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return folder


def test_what_a_check_counts(
    load: Load, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(load("check.py"), corpus(tmp_path), "de", "en")
    found = json.loads((tmp_path / "check.json").read_text())
    splits = found["splits"]
    assert [splits[split]["pairs"] for split in SPLITS] == [6, 3, 4]
    assert [splits[split]["repeated"] for split in SPLITS] == [1, 0, 0]
    assert [splits[split]["same_on_both_sides"] for split in SPLITS] == [0, 0, 1]
    assert [splits[split]["ratio_above"] for split in SPLITS] == [
        2,
        0,
        2,
    ]  # zwei/2, viel zu viel/m; eins/1, viel/m
    # A line of test counts as often as it occurs in test, however often train has it.
    assert splits["valid"]["in_train"] == {"source": 1, "target": 2, "pair": 1}
    assert splits["test"]["in_train"] == {"source": 2, "target": 1, "pair": 0}
    german, english = splits["train"]["sides"].values()
    assert german == {
        "words_a_line": 1.5, "longest": 3,
        "control": {"lines": 1, "first": 6}, "invisible": {"lines": 0, "first": None},
    }  # fmt: skip
    assert english["invisible"] == {"lines": 1, "first": 6}
    assert found["sha256"]["test.en"] == sha256("1\nneither\ngleich\nm\n")
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| | train | valid | test |"
    assert "| pair is in train |  | 1 | 0 |" in table
    assert "| lines with control characters, de / en | 1 (line 6) / 0 | 0 / 0 | 0 / 0 |" in table
    assert "| one side over 3 times the other, in characters | 2 | 0 | 2 |" in table
    run(load("check.py"), tmp_path, "de", "en", "--max-ratio", 0)
    assert "times the other" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "valid.en",
            b"one\ntwo\n",
            r"valid\.de and .*valid\.en must have equally many lines, but have 3 and 2; make both again",
        ),
        ("train.de", b"eins\n" * 9, r"train\.de and .*train\.en must .*, but have 9 and 6"),
        (
            "test.en",
            b"a\n \nc\nd\n",
            r"test\.en, line 2: must have text, but is empty; drop the pair on both sides",
        ),
        ("test.en", b"a\nb\rb\nc\nd\n", r"test\.en, line 2: must not hold a carriage return"),
        ("test.de", b"a\nb\nc\n\xff\n", r"test\.de, line 4: must be UTF-8, but is not"),
        ("test.de", b"", r"test\.de and .*test\.en must .*, but have 0 and 4"),
        ("test.de", None, r"test\.de cannot be read \(No such file or directory\)"),
    ],
)
def test_what_a_check_refuses(
    load: Load, run: Callable[..., None], tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    corpus(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        run(load("check.py"), tmp_path, "de", "en")
    assert not (tmp_path / "check.json").exists()


# ---- corpora.py


def test_files_appear_when_complete(load: Load, tmp_path: Path) -> None:
    pairs = load("corpora.py").Pairs

    def write(*text: tuple[str, str]) -> None:
        with pairs(tmp_path, "valid", ("de", "en")) as written:
            for pair in text:
                written.add(*pair)
                assert lines(tmp_path / "valid.de") == ["before"]

    (tmp_path / "valid.de").write_text("before\n")
    with pytest.raises(SystemExit, match=r"valid\.en, line 2: must be a line of text, but is 'two\\nlines'"):
        write(("eins", "one"), ("zwei", "two\nlines"))
    assert [path.name for path in tmp_path.iterdir()] == ["valid.de"]
    assert lines(tmp_path / "valid.de") == ["before"]
    write(("ä", "one"))
    assert (tmp_path / "valid.de").read_bytes() == "ä\n".encode()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["valid.de", "valid.en"]


# ---- cmudict/pronunciations.py


def dictionary(folder: Path, lines: list[str]) -> Path:
    path = folder / "cmudict.dict"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_word_and_its_pronunciations_are_in_one_split(
    load: Load, run: Callable[..., None], tmp_path: Path
) -> None:
    """Words that differ only in apostrophes are together too; stress is removed, and with it repetitions."""
    entries = [f"{a}{b}{c} B AH0 T" for a in "abcdefgh" for b in "iou" for c in "lmnrst"]
    entries += [f"{word.split()[0]}'s B AH1 T S # a comment" for word in entries]
    entries += [f"{word.split()[0]}(2) {second}" for word in entries[:60] for second in ("B AH2 T", "B EY1")]
    entries += ["a-b EY1 B IY1", "b. B IY1"]
    run(load("cmudict/pronunciations.py"), "--dictionary", dictionary(tmp_path, entries), tmp_path / "out")
    found = {
        split: [lines(tmp_path / "out" / f"{split}.{side}") for side in ("let", "pho")]
        for split in ("train", "valid", "test")
    }
    words = {split: {"".join(word.split()) for word in letters} for split, (letters, _) in found.items()}
    stems = [{word.replace("'", "").removesuffix("s") for word in each} for each in words.values()]
    letters = [{word.replace("'", "") for word in each} for each in words.values()]
    assert not any(letters[one] & letters[other] for one, other in ((0, 1), (0, 2), (1, 2)))
    assert all(stems)
    assert not {"a-b", "b.", "ab"} & set().union(*words.values())
    twice = {entry.split()[0] for entry in entries[:60]}
    pairs = sorted(zip(*found["train"], strict=True))
    assert len(set(pairs)) == len(pairs) == len(words["train"]) + len(words["train"] & twice)
    assert not words["valid"] & twice
    assert len(found["test"][0]) == len(words["test"])
    answers = [line.split("\t") for line in lines(tmp_path / "out" / "test.all")]
    assert [each[0] for each in answers] == found["test"][1]
    expected = [["B AH T", "B EY"] if word.replace(" ", "") in twice else None for word in found["test"][0]]
    assert any(expected)
    assert all(each == wanted for each, wanted in zip(answers, expected, strict=True) if wanted)


def test_another_dictionary_is_refused(load: Load, run: Callable[..., None], tmp_path: Path) -> None:
    module = load("cmudict/pronunciations.py")
    with pytest.raises(SystemExit, match=r"line 2: must be WORD PHONEME…, but is 'word'"):
        run(module, "--dictionary", dictionary(tmp_path, ["a AH0", "word"]), tmp_path / "out")
    with pytest.raises(SystemExit, match="cannot be read"):
        run(module, "--dictionary", tmp_path / "gone", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- arithmetic/problems.py, continuations.py


def test_worked_steps_are_right_and_no_problem_is_in_two_splits(
    load: Load, run: Callable[..., None], tmp_path: Path
) -> None:
    """Each step is a sum, and begins with the result of the step before."""
    run(load("arithmetic/problems.py"), "--share", "0.05", tmp_path)
    prompts: list[str] = []
    for split, count in (("train", 500), ("valid", 50), ("test", 100)):
        problems = lines(tmp_path / f"{split}.txt")
        assert len(problems) == count
        for problem in problems:
            prompt, _, steps = problem.replace(" ", "").partition("=")
            numbers = list(map(int, prompt.split("+")))
            assert 2 <= len(numbers) <= 4
            totals = [sum(numbers[: length + 2]) for length in range(len(numbers) - 1)]
            before = [numbers[0], *totals]
            expected = [
                f"{one}+{number}={total}"
                for one, number, total in zip(before, numbers[1:], totals, strict=False)
            ]
            assert steps.split(";") == expected
            prompts.append(prompt)
    assert len(set(prompts)) == len(prompts)


def test_continuations_are_read_in_the_order_of_the_data(load: Load, tmp_path: Path) -> None:
    output = tmp_path / "test.txt"
    output.write_text("S-1\t1 + 2 =\nT-1\t3\nH-1\t-0.1\t1 + 2 = 3\nS-0\t4 + 4 =\nH-0\t-0.2\t\nP-0\t-0.2\n")
    found = load("continuations.py").continuations(output)
    assert found == [("4 + 4 =", ""), ("1 + 2 =", "1 + 2 = 3")]


# ---- speech/commands.py, speech/speak.py, speech/answers.py


def test_commands_are_right_and_no_test_command_is_trained_on(
    load: Load, run: Callable[..., None], tmp_path: Path
) -> None:
    """Tones are filterbanks whose manifest has their lengths. New targets keep the other columns."""
    run(load("speech/commands.py"), tmp_path / "raw", "--text", "300", "--train", "5", "--held-out", "20")
    read = {path.name: lines(path) for path in (tmp_path / "raw").iterdir()}
    assert [len(read[f"{split}.en"]) for split in ("text", "train", "valid", "test")] == [300, 5, 20, 20]
    assert not {*read["test.en"], *read["valid.en"]} & set(read["text.en"])
    assert read["train.de"] == read["text.de"][:5]
    for one, every in zip(read["test.de"], read["test.all"], strict=True):
        right = every.split("\t")
        assert one in right
        assert len(set(right)) == len(right) == 8
    assert read["train.frame"] == read["text.frame"][:5]
    meant = {
        english: frame.split() for english, frame in zip(read["text.en"], read["text.frame"], strict=True)
    }
    for english, (intent, *slots) in meant.items():
        assert intent in ("switch_on", "switch_off", "set", "play", "open", "close")
        assert [slot.partition("=")[0] for slot in slots][-2:] == ["room", "time"]
        assert all(slot.partition("=")[2].replace("_", " ") in english for slot in slots)
    run(load("speech/speak.py"), tmp_path / "raw", tmp_path / "frames", "--tones", "--targets", "frame")
    assert [line.split("\t")[3] for line in lines(tmp_path / "frames" / "train.tsv")[1:]] == read[
        "train.frame"
    ]
    run(load("speech/speak.py"), tmp_path / "raw", tmp_path / "data", "--tones")
    rows = [line.split("\t") for line in lines(tmp_path / "data" / "train.tsv")]
    assert [row[4] for row in rows[1:]] == read["train.en"]
    features = np.load(tmp_path / "data" / "features" / rows[1][1])
    assert features.shape == (int(rows[1][2]), 40)
    (tmp_path / "out").write_text("H-1\t-1\tb\n" + "".join(f"H-{row}\t-1\ta\n" for row in (0, 2, 3, 4)))
    manifest, new = tmp_path / "data" / "train.tsv", tmp_path / "new.tsv"
    run(load("speech/answers.py"), "join", manifest, tmp_path / "out", new)
    joined = [line.split("\t") for line in lines(new)]
    assert [row[3] for row in joined[1:]] == ["a", "b", "a", "a", "a"]
    assert [[*row[:3], row[4]] for row in joined] == [[*row[:3], row[4]] for row in rows]
