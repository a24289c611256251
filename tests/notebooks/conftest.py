"""What the tests that run whole notebooks share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a run needs: the notebooks and the checkpoints; the package is the one under
    test.
    """
    folder = tmp_path_factory.mktemp("copy") / "checkout"
    for name in ("notebooks", "profiles", "checkpoints"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints")
        )
    (folder / "data").mkdir()
    return folder
