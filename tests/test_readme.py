"""The README's figures come from files that the code wrote, and its commands exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def readme_table():
    spec = importlib.util.spec_from_file_location(
        "readme_table", ROOT / "benchmarks" / "readme_table.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def block(module, name):
    return README.split(module.BEGIN.format(name))[1].split(module.END.format(name))[0].strip()


def test_the_tables_are_what_the_code_writes(readme_table):
    assert block(readme_table, "scores") == readme_table.table()
    assert block(readme_table, "speed") == readme_table.speed().strip()


def test_every_notebook_stands_in_the_table(readme_table):
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"`{notebook.stem}`" in block(readme_table, "scores")


def test_files_and_pictures_named_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for script in re.findall(r"(?:\./|python )((?:benchmarks/)?[a-z_]+\.(?:sh|py))", README):
        assert (ROOT / script).exists(), script


def test_the_commands_are_accepted_by_the_command_line():
    from nbhelpers.runner.command_line import parser

    commands = re.findall(r"^\./run_all\.sh([^#\n]*)", README, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        arguments = shlex.split(command)
        if "--help" not in arguments:
            parser().parse_args(arguments)
