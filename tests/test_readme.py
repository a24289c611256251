"""The README's figures come from files that the code wrote, and its commands exist."""

import argparse
import importlib
import importlib.util
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location(
        "write_pages", ROOT / "benchmarks" / "write_pages.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def block(module, name):
    return README.split(module.BEGIN.format(name))[1].split(module.END.format(name))[0].strip()


def test_the_pages_are_what_the_code_writes(pages):
    assert block(pages, "scores") == pages.readme_table()
    assert block(pages, "statistics") == pages.statistics_sentence()
    assert (ROOT / "docs" / "scores.md").read_text(encoding="utf-8") == pages.scores_page()
    speed = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert speed == pages.SPEED_PAGE + pages.speed() + "\n"


def test_every_notebook_has_a_row_and_is_linked_where_a_reader_chooses(pages):
    choose = README.split("| I have ...")[1].split("```")[0]
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        link = f"(notebooks/{notebook.name})"
        assert link in block(pages, "scores") and link in choose


def test_each_notebook_has_one_row_of_real_images_where_a_run_is_kept(pages):
    rows = block(pages, "scores").splitlines()[2:]
    assert len(rows) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    real = {run["notebook"] for run in pages.kept_runs() if not pages.is_synthetic(run)}
    assert real
    for row in rows:
        notebook = re.search(r"notebooks/(.+?)\.ipynb", row)[1]
        assert ("real |" in row) == (notebook in real), row


def test_files_and_pictures_named_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for script in re.findall(r"(?:\./|python )((?:benchmarks/)?[a-z_]+\.(?:sh|py))", README):
        assert (ROOT / script).exists(), script


def commands() -> list[list[str]]:
    """Every command of the README that runs this package, as words; from blocks and sentences."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    sentences = re.sub(r"^```\w*\n.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    lines = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", sentences)]
    for block in blocks:
        lines += block.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        if not re.search(r"run_all\.sh|-m nbhelpers", line):
            continue
        for part in re.split(r"&&|;", line):
            words = shlex.split(part, comments=True)
            runs_notebooks = words[:1] == ["./run_all.sh"]
            runs_module = words[1:2] == ["-m"] and words[2:3] and words[2].startswith("nbhelpers")
            if (runs_notebooks or runs_module) and words not in found:
                found.append(words)
    return found


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The notebooks and profiles of this checkout, with no results yet, as the current folder."""
    for name in ("notebooks", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("NBHELPERS_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put_what_stands_for_the_users(checkout, words, monkeypatch):
    """Files and folders that a command of the README names are the user's and lie nowhere here."""
    from nbhelpers.runner import plan, workflow

    monkeypatch.setattr(plan, "check_path", lambda paths, named, where: None)
    for option, value in pairwise(words):
        if option == "--from-manifest":
            file = checkout / value
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps({"notebook": file.parent.name, "parameters": {}}))
        if option == "--workflow-profile" and not (workflow.ENGINES / value).exists():
            (checkout / value).mkdir()
            (checkout / value / "config.yaml").touch()
    if "--verify" in words:
        result = checkout / "results" / "demo2d"
        result.mkdir(parents=True)
        (result / "metrics.json").write_text("{}")
        found = {
            "state": "ok",
            "notebook": "demo2d",
            "parameters": {},
            "fingerprint": "0" * 64,
            "files": {"metrics.json": 2},
            "headline": {"value": 0.9},
        }
        (result / "manifest.json").write_text(json.dumps(found))


class ParsedError(Exception):
    """Raised in place of what a command does after its arguments were found to be right."""


def test_the_readme_names_commands():
    assert sum(words[0] == "./run_all.sh" for words in commands()) >= 5


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one_that_would_run(words, checkout, monkeypatch, capsys):
    """With the real parser and the real planning: notebooks, parameters, their types and ranges."""
    from nbhelpers.runner import command_line

    put_what_stands_for_the_users(checkout, words, monkeypatch)
    if words[2:4] == ["nbhelpers", "answer"]:
        words = [*words[:2], "nbhelpers.answer", *words[4:]]
    if words[0] == "./run_all.sh" or words[2] == "nbhelpers":
        arguments = words[1:] if words[0] == "./run_all.sh" else words[3:]
        if "--help" in arguments:
            with pytest.raises(SystemExit, match="0"):
                command_line.main(arguments)
        else:
            assert command_line.main([*arguments, "--dry-run"]) == 0, capsys.readouterr().err
        return
    module = importlib.import_module(words[2])
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{words[2]}.__main__")
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    with pytest.raises((ParsedError, SystemExit)) as ended:
        module.main(words[3:])
    assert isinstance(ended.value, ParsedError) or ended.value.code == 0, capsys.readouterr().err
