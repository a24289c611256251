"""All notebooks are built alike: one skeleton, literals as parameters, short cells, no outputs
stored.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest

from nbhelpers.reports.notebooks import Notebook

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECTIONS = ("Data", "Split", "Model", "Training", "Evaluation", "Limits", "What was learnt")
MOST_CODE_CELLS = 18
MOST_LINES = 12

pytestmark = pytest.mark.parametrize(
    "path",
    NOTEBOOKS or [pytest.param(None, marks=pytest.mark.skip("no notebooks"))],
    ids=lambda path: path.stem if path else "none",
)


def cells(path: Path, kind: str) -> list[dict]:
    return [
        cell
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == kind
    ]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def headings(path: Path) -> list[tuple[int, str]]:
    found = []
    for cell in cells(path, "markdown"):
        outside_code = re.sub(r"```.*?```", "", text(cell), flags=re.DOTALL)
        found += [
            (len(marks), words.strip())
            for marks, words in re.findall(r"^(#{1,6})\s+(.+)$", outside_code, re.MULTILINE)
        ]
    return found


def test_the_first_cell_tells_title_question_needs_and_time(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown" and text(first).startswith("# ")
    about = Notebook(path).about
    assert all(about[fact] for fact in ("question", "needs", "time")), about


def test_one_parameters_cell_of_literals_each_with_a_reason(path):
    assert Notebook(path).parameters


def test_stored_without_outputs(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None


def test_cells_are_few_and_short(path):
    code = cells(path, "code")
    assert len(code) <= MOST_CODE_CELLS
    for cell in code[2:]:  # behind the parameters and the imports
        assert len(text(cell).splitlines()) <= MOST_LINES, text(cell)


def test_the_imports_stand_in_one_cell_after_the_parameters(path):
    code = cells(path, "code")
    assert "parameters" in code[0]["metadata"].get("tags", [])
    for cell in [code[0], *code[2:]]:
        imports = [
            node
            for node in ast.parse(text(cell)).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert not imports, text(cell)


def test_lines_are_not_wider_than_the_package_has_them(path):
    for cell in cells(path, "code"):
        assert max(map(len, text(cell).splitlines())) <= 100


def test_headings_in_order(path):
    levels = [level for level, _ in headings(path)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    names = [words for level, words in headings(path) if level == 2]
    assert [name for name in names if name in SECTIONS] == list(SECTIONS)


def test_it_ends_with_three_exercises_whose_answers_can_be_checked(path):
    last = cells(path, "markdown")[-1]
    assert text(last).startswith("## Exercises\n")
    exercises = re.split(r"^\d\. ", text(last), flags=re.MULTILINE)[1:]
    assert len(exercises) == 3
    for exercise in exercises:
        assert "*Check:*" in exercise
        for block in re.findall(r"```python\n(.*?)```", exercise, re.DOTALL):
            ast.parse(textwrap.dedent(block))


def test_starts_and_finishes_its_own_run(path):
    code = [text(cell) for cell in cells(path, "code")]
    assert sum(f'start_run("{path.stem}", globals()' in source for source in code) == 1
    last = ast.parse(code[-1]).body[-1]
    assert isinstance(last, ast.Expr) and ast.unparse(last.value).startswith("run.finish(")
    assert sum("run.finish(" in source for source in code) == 1


def test_no_absolute_path_stands_in_it(path):
    for cell in cells(path, "code"):
        assert not re.search(r"""["'](/home/|/Users/|/root/|/tmp/|[A-Z]:\\\\)""", text(cell))


def test_imports_of_the_package_exist(path):
    import importlib

    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(text(cell))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nbhelpers"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
