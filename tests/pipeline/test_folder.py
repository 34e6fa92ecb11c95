"""The folder of a run: whose it is, and the recipe that it keeps."""

from pathlib import Path

import pytest
import yaml

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline import packaged
from fairseq_imitkd.pipeline.folder import Given, check, differing, folder_of, keep, recipe_in, with_folder
from fairseq_imitkd.pipeline.recipe_file import parse, read


def run(out: Path, given: Given) -> None:
    check(out, given)
    keep(out, given)


def test_the_recipe_that_a_run_has_kept_continues_it(tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert folder_of(tmp_path / "small.yaml") == out
    assert folder_of(out / "recipe.yaml") == out / "recipe"
    run(out, Given("seeds: [1]\n", tmp_path / "small.yaml"))
    assert folder_of(out / "recipe.yaml") == out
    run(out, Given("seeds: [2]\n", tmp_path / "small.yaml"))
    assert (out / "recipe.yaml").read_text() == "seeds: [2]\n"
    with pytest.raises(UsageError, match=r"is the run of '\.\./small\.yaml'; use another --out, or delete"):
        check(out, Given("seeds: [3]\n", tmp_path / "other.yaml"))
    (out / "recipe.yaml").write_text("seeds: [4]\n")
    run(out, Given("seeds: [4]\nfolder: x\n", out / "recipe.yaml"))
    assert (out / "recipe.yaml").read_text() == "seeds: [4]\n"
    with pytest.raises(
        UsageError, match=r"recipe\.yaml' was edited in seeds; run imitkd-distill .*/recipe\.yaml, or"
    ):
        check(out, Given("seeds: [3]\n", tmp_path / "small.yaml"))
    (out / "recipe.yaml").write_bytes(b"seeds: [4] # \xe9\n")
    with pytest.raises(UsageError, match=r"recipe '.*/recipe\.yaml' is not text; use a YAML file"):
        check(out, Given("seeds: [3]\n", tmp_path / "small.yaml"))
    (out / "recipe.yaml").unlink()
    run(out, Given("seeds: [3]\n", tmp_path / "other.yaml"))
    assert (out / "recipe.yaml").read_text() == "seeds: [3]\n"
    run(tmp_path / "new", Given("seeds: [1]\n"))
    run(tmp_path / "new", Given("seeds: [1]\n"))
    with pytest.raises(
        UsageError,
        match=r"differs from what these flags say in seeds; go on with it by: imitkd-distill .*\.yaml, or",
    ):
        check(tmp_path / "new", Given("seeds: [2]\n"))


def test_an_edited_recipe_of_the_package_is_named_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of its folder is that of the recipe of the package."""
    monkeypatch.chdir(tmp_path)
    for name, word in (("quickstart", "quickstart/recipe.yaml"), ("a b", "'a b/recipe.yaml'")):
        run(Path(name), Given("seeds: [1]\n", name="quickstart"))
        Path(name, "recipe.yaml").write_text("seeds: [2]\n")
        with pytest.raises(UsageError) as error:
            check(Path(name), Given("seeds: [1]\n", name="quickstart"))
        assert str(error.value).endswith(
            f"was edited in seeds; run imitkd-distill {word}, or delete that file"
        )


def test_the_keys_in_which_recipes_differ_are_named() -> None:
    one, other = "a: 1\nstudent: {arch: x, flags: y}\n", "a: 1\nstudent: {arch: z, flags: y}\nseeds: [1]\n"
    assert differing(one, other) == "student.arch and seeds"
    assert differing(one, "b: 1\n") == "a, student.arch and 2 other keys"
    assert differing(one, f"# new\n{one}") == "its comments or its layout"


def test_the_folder_of_a_run_stands_for_its_recipe(tmp_path: Path) -> None:
    run(tmp_path / "small", Given("seeds: [1]\n", tmp_path / "small.yaml"))
    assert recipe_in(tmp_path / "small") == tmp_path / "small" / "recipe.yaml"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "new.yaml").touch()
    with pytest.raises(
        UsageError, match=r"is a folder, but not that of a run; name a YAML file, such as .*new"
    ):
        recipe_in(tmp_path / "mine")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine" / "data-bin").mkdir(parents=True)
    with pytest.raises(UsageError, match="exists and is not a run of imitkd-distill; use a new or"):
        check(tmp_path / "mine", Given(""))
    check(tmp_path / "new", Given(""))
    check(tmp_path / "mine" / "data-bin", Given(""))


def test_a_kept_recipe_says_where_paths_start(tmp_path: Path) -> None:
    """Whatever the folder is called, in whatever style the recipe is written."""
    folder = tmp_path / "a: b #c {folder}"
    for name in packaged.names():
        text = packaged.path_of(name).read_text(encoding="utf-8")
        kept = with_folder(text, folder)
        assert kept.endswith(text)
        assert with_folder(kept, tmp_path) == kept
        assert parse(yaml.safe_load(kept), Path("/elsewhere")) == read(packaged.path_of(name), folder), name
    for text in ("{a: 1}", "--- # one\na: 1\n", "folder: deep\na: 1\n"):
        kept = yaml.safe_load(with_folder(text, folder))
        assert kept == {"a": 1, "folder": str(folder / ("deep" if "deep" in text else ""))}
