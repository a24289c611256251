"""The code is written as the field writes it: ruff's format and rules, plain statements, and
functions with few parameters.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nbhelpers"
MOST_PARAMETERS = 8
MOST_EXCEPTIONS = 8  # functions of the package with more parameters, each with its reason
REASON = f"# More than {MOST_PARAMETERS} parameters: "


@pytest.mark.parametrize("command", [["format", "--check"], ["check", "--output-format=concise"]])
def test_ruff_has_nothing_to_say(command):
    ended = subprocess.run(
        [sys.executable, "-m", "ruff", *command, ROOT],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def code_of(notebook: Path) -> Iterator[tuple[str, str]]:
    """Name and source of each code cell; lines for the shell or for IPython are left empty."""
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            kept = ["" if line.lstrip().startswith(("%", "!")) else line for line in lines]
            yield f"{notebook.name}, cell {number}", "\n".join(kept)


def sources() -> Iterator[tuple[str, str]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(ROOT).as_posix(), file.read_text()
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        yield from code_of(notebook)


def is_swap(targets: ast.Tuple | ast.List, values: ast.Tuple | ast.List) -> bool:
    """``a, b = b, a``: the same names in another order."""
    names = sorted(ast.unparse(target) for target in targets.elts)
    return names == sorted(ast.unparse(value) for value in values.elts)


def too_clever(source: str) -> Iterator[tuple[int, str]]:
    """Line and what is wrong with it."""
    series = (ast.Tuple, ast.List)
    for node in ast.walk(ast.parse(source)):
        if len(getattr(node, "generators", [])) > 1:
            yield node.lineno, "a comprehension with several for"
        if isinstance(node, ast.Assign) and isinstance(node.value, series):
            for target in node.targets:
                if isinstance(target, series) and not is_swap(target, node.value):
                    yield node.lineno, "several assignments in one"


def test_statements_are_plain():
    wrong = []
    for name, source in sources():
        for line, what in too_clever(source):
            wrong.append(f"{name}, line {line}: {what}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = [a for b in c for a in b]", 1),
        ("x = {a: b for a in c for b in a}", 1),
        ("x = [[a for a in b] for b in c]", 0),
        ("a, b = 1, 2", 1),
        ("a, b = b, a", 0),
        ("a[i], a[j] = a[j], a[i]", 0),
        ("a, b = c, a", 1),
        ("a, b = f()", 0),
        ("a, b = (f(c) for c in d)", 0),
        ("a = b = 1, 2", 0),
    ],
)
def test_what_is_too_clever_is_found(source, found):
    assert len(list(too_clever(source))) == found


def long_signatures(source: str) -> Iterator[tuple[str, int, bool]]:
    """Name, line and whether the reason is given, of each function with many parameters."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if len([name for name in names if name.arg not in ("self", "cls")]) <= MOST_PARAMETERS:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        comment = []
        while first >= 2 and lines[first - 2].lstrip().startswith("#"):
            first -= 1
            comment.append(lines[first - 1].strip())
        yield node.name, node.lineno, any(line.startswith(REASON) for line in comment)


def test_few_functions_have_many_parameters_and_each_says_why():
    found = []
    silent = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for name, line, has_reason in long_signatures(file.read_text()):
            place = f"{file.relative_to(ROOT)}, line {line}: {name}"
            found.append(place)
            if not has_reason:
                silent.append(place)
    assert not silent, f"without a comment that begins with {REASON!r}:\n" + "\n".join(silent)
    assert len(found) <= MOST_EXCEPTIONS, "\n".join(found)


def test_reasons_are_looked_for_above_decorators():
    many = "def f(self, a, b, c, d, e, f, g, h, *, i=1): ..."
    assert list(long_signatures(many.replace("*, i=1", "*i, **j"))) == []
    assert [reason for *_, reason in long_signatures(many)] == [False]
    reason = f"{REASON}one for each column,\n# and one for all\n@styled\n"
    assert [reason for *_, reason in long_signatures(f"{reason}{many}")] == [True]
    assert [reason for *_, reason in long_signatures(f"{reason}\n{many}")] == [True]
