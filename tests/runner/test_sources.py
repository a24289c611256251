"""What a notebook depends on: the modules it really uses, and nothing else."""

from __future__ import annotations

import pytest

from nbhelpers.core.errors import ParameterError
from nbhelpers.core.files import CODE_ROOT
from nbhelpers.reports.notebooks import Notebook
from nbhelpers.runner.sources import notebook_sources


@pytest.fixture
def package(tmp_path):
    files = {
        "__init__.py": '"""Doc."""\n',
        "files.py": "import os\n",
        "models/__init__.py": "",
        "both/__init__.py": "from nbhelpers.models.resnet import ResNet\n"
        "from nbhelpers.models.tinycnn import TinyCNN\n",
        "models/tinycnn.py": "from nbhelpers.files import x\nimport torch\n",
        "models/resnet.py": "from nbhelpers.models import weights\nREGISTRY = 'weights.json'\n",
        "models/weights.py": "",
        "models/weights.json": "{}",
        "training/__init__.py": "",
        "training/trainer.py": "def fit():\n    from nbhelpers.training.recipe import Recipe\n",
        "training/recipe.py": "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import nbhelpers.models.resnet\n",
        "lazy/__init__.py": "def __getattr__(name):\n    from nbhelpers.lazy.inner import y\n    "
        "return y\n",
        "lazy/inner.py": "",
        "table/__init__.py": "from nbhelpers.models import tinycnn, resnet\n"
        "MODELS = {'tiny': tinycnn, 'res': resnet}\n",
        "named.py": "SOURCES = {'a': 'nbhelpers.training.recipe:load', 'b': 'nbhelpers.files'}\n"
        "ABOUT = 'drawn by nbhelpers.models.resnet'\n",
    }
    for name, text in files.items():
        path = tmp_path / "nbhelpers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "nbhelpers"


def used(package, *cells: str) -> set[str]:
    content = {"cells": [{"cell_type": "code", "source": cell} for cell in cells]}
    return {path.relative_to(package).as_posix() for path in notebook_sources(content, package)}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("import numpy", set()),
        (
            "from nbhelpers.models import tinycnn",
            {"__init__.py", "models/__init__.py", "models/tinycnn.py", "files.py"},
        ),
        (
            "from nbhelpers.models.tinycnn import TinyCNN",
            {"__init__.py", "models/__init__.py", "models/tinycnn.py", "files.py"},
        ),
        (
            "import nbhelpers.models.resnet as r",
            {
                "__init__.py",
                "models/__init__.py",
                "models/resnet.py",
                "models/weights.py",
                "models/weights.json",
            },
        ),
        (
            "import nbhelpers.training.trainer",
            {"__init__.py", "training/__init__.py", "training/trainer.py", "training/recipe.py"},
        ),
        (
            "from nbhelpers.training import trainer",
            {"__init__.py", "training/__init__.py", "training/trainer.py", "training/recipe.py"},
        ),
        (
            "from nbhelpers.named import SOURCES",
            {"__init__.py", "named.py", "training/__init__.py", "training/recipe.py", "files.py"},
        ),
        ("from nbhelpers.lazy import y", {"__init__.py", "lazy/__init__.py", "lazy/inner.py"}),
        ("%matplotlib inline\n!ls\nfrom nbhelpers import files", {"__init__.py", "files.py"}),
    ],
)
def test_the_closure_holds_what_is_used_and_nothing_else(package, cell, expected):
    assert used(package, cell) == expected


def test_a_whole_package_or_a_table_over_it_counts_in_full(package):
    everything = {"models/tinycnn.py", "models/resnet.py", "models/weights.py"}
    assert everything <= used(package, "import nbhelpers.both")
    assert everything <= used(package, "from nbhelpers import both")
    assert everything <= used(package, "from nbhelpers.both import TinyCNN")
    assert everything <= used(package, "from nbhelpers.table import MODELS")


def test_several_cells_add_up(package):
    assert used(package, "import nbhelpers.files", "x = 1", "from nbhelpers.lazy import y") == {
        "__init__.py",
        "files.py",
        "lazy/__init__.py",
        "lazy/inner.py",
    }


def test_a_cell_that_is_no_python_is_named(package):
    with pytest.raises(ParameterError, match="cell 1"):
        used(package, "x = 1", "for")


def test_on_this_package_the_run_is_found_but_not_the_command(make_checkout):
    notebook = Notebook(make_checkout().root / "notebooks/01_toy.ipynb")
    names = {path.relative_to(CODE_ROOT).as_posix() for path in notebook_sources(notebook.content)}
    assert {
        "nbhelpers/reports/run.py",
        "nbhelpers/core/files.py",
        "nbhelpers/core/seeds.py",
    } <= names
    assert not names & {
        "nbhelpers/runner/command_line.py",
        "nbhelpers/reports/html.py",
        "nbhelpers/core/predictions.py",
    }
