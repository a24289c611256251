"""Shared by all tests: markers that skip with a reason, real images where they are, and toy
checkouts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def chromium() -> str | None:
    """Path of the system's Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for found in map(shutil.which, names) if found), None)


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """For the browser tests, which on CI must not be skipped."""
    program = chromium()
    assert program, "Chromium is needed here (CI is set): apt-get install chromium"
    return program


def real_data_folders() -> list[Path]:
    """Where real images may be: the folder in NBHELPERS_DATA, then the download cache of this
    checkout.
    """
    named = os.environ.get("NBHELPERS_DATA")
    return [
        folder for folder in ([Path(named)] if named else []) + [ROOT / "data"] if folder.is_dir()
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    have_data = any(entry.is_dir() for folder in real_data_folders() for entry in folder.iterdir())
    for item in items:
        if "realdata" in item.keywords and not have_data:
            item.add_marker(
                pytest.mark.skip(
                    reason="no real images: set NBHELPERS_DATA to the folder that holds "
                    "them, or download them into data/"
                )
            )
        if "browser" in item.keywords and chromium() is None and not os.environ.get("CI"):
            item.add_marker(
                pytest.mark.skip(reason="no Chromium on this machine (apt-get install chromium)")
            )


@pytest.fixture
def real_data():
    """Finds a folder of real images: ``real_data("spines_ghani")``; skips with the reason where it
    is not.
    """

    def find(name: str) -> Path:
        for folder in real_data_folders():
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"{name} is neither in NBHELPERS_DATA nor in data/")

    return find


PARAMETERS = """\
steps = 3          # 1..1000: steps to take
rate = 0.5         # 0..1: size of a step
kind = "plain"     # plain | fancy: how to walk
data_dir = ""      # folder with files to count
"""

START = """\
from nbhelpers.core.estimate import Estimate
from nbhelpers.reports.run import start_run

run = start_run("{name}", globals())
"""

WALK = """\
total = sum(rate * step for step in range(steps))
print("walked", total)
"""

FINISH = """\
run.set_result("Accuracy", Estimate(0.9, 0.85, 0.95, 120))
run.add_floor("majority class", Estimate(0.6))
run.finish({"total": total, "steps": steps})
"""


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def code(text: str, *tags: str) -> dict:
    return {
        "cell_type": "code",
        "metadata": {"tags": list(tags)} if tags else {},
        "source": text,
        "outputs": [],
        "execution_count": None,
    }


def toy_cells(
    name: str, middle: str = WALK, parameters: str = PARAMETERS, finish: str = FINISH
) -> list[dict]:
    return [
        markdown(
            f"# Toy {name}\n\n**Question.** Does it walk?\n\n**Needs.** Nothing.\n\n**Time.** A "
            f"second."
        ),
        code(parameters, "parameters"),
        code(START.format(name=name)),
        markdown("## Evaluation\n\nEach step counts."),
        code(middle),
        markdown("## Limits\n\nIt is a toy."),
        code(finish),
    ]


@dataclass
class Checkout:
    """A toy repository: its own notebooks, profiles and results, with the package of
    this checkout."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results"

    def add(self, name: str, cells: list[dict] | None = None) -> Path:
        cells = [
            {**cell, "id": f"cell-{number}"} for number, cell in enumerate(cells or toy_cells(name))
        ]
        path = self.root / "notebooks" / f"{name}.ipynb"
        path.write_text(
            json.dumps(
                {
                    "cells": cells,
                    "nbformat": 4,
                    "nbformat_minor": 5,
                    "metadata": {
                        "kernelspec": {
                            "name": "python3",
                            "display_name": "Python 3",
                            "language": "python",
                        }
                    },
                }
            )
        )
        return path

    def profile(self, name: str, text: str) -> None:
        (self.root / "profiles" / f"{name}.yaml").write_text(text)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "NBHELPERS_ROOT": str(self.root), "PYTHONPATH": str(ROOT)}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "nbhelpers", *arguments]

    def run(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            cwd=self.root,
            text=True,
            capture_output=True,
            timeout=timeout,
        )

    def json(self, path: str) -> dict:
        return json.loads((self.results / path).read_text())


@pytest.fixture(autouse=True)
def keep_denormals():
    """Training sets a switch of the whole process, numbers below 1e-38 are 0, under which
    hypothesis draws no floats.
    """

    def restore() -> None:
        if "torch" in sys.modules:
            sys.modules["torch"].set_flush_denormal(False)

    restore()  # a fixture of the test's module may have trained
    yield
    restore()


@pytest.fixture(scope="session", autouse=True)
def every_figure_is_legible_at_half_size():
    """No test draws a figure of the package with letters below the rule in ``figures/style.py``,
    whatever else it asks.
    """
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from nbhelpers.figures import style

    use_style = style.use_style
    make = Figure.__init__

    @contextmanager
    def checked():
        made = []

        def noted(figure, *arguments, **named):
            made.append(figure)
            make(figure, *arguments, **named)

        with pytest.MonkeyPatch.context() as patch, use_style():
            patch.setattr(Figure, "__init__", noted)
            yield
        for figure in made:
            check(figure)

    def check(figure):
        small = {
            text.get_text(): text.get_fontsize()
            for text in figure.findobj(Text)
            if text.get_text() and text.get_visible() and text.get_fontsize() < style.SMALL
        }
        assert not small, f"smaller than {style.SMALL} points: {small}"
        assert figure.get_size_inches()[0] <= style.WIDTH * 1.01, (
            "wider than the report's text: it is shrunk there"
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "use_style", checked)
        yield


@pytest.fixture
def make_checkout(tmp_path):
    """Makes toy repositories in folders of their own; their names hold a space on purpose."""

    def make(name: str = "my checkout", notebook: str | None = "01_toy") -> Checkout:
        root = tmp_path / name
        for folder in ("notebooks", "profiles", "data"):
            (root / folder).mkdir(parents=True)
        checkout = Checkout(root)
        if notebook:
            checkout.add(notebook)
            checkout.profile("demo", f"notebooks:\n  {notebook}: {{}}\n")
        return checkout

    return make


@pytest.fixture
def toy():
    """The parts toy notebooks are made of."""
    from types import SimpleNamespace

    return SimpleNamespace(
        cells=toy_cells,
        code=code,
        markdown=markdown,
        parameters=PARAMETERS,
        finish=FINISH,
        start=START,
        walk=WALK,
    )
