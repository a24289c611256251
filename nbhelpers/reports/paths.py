"""Where things lie in a checkout. Everything that a run writes is under ``results/``."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import ParameterError
from nbhelpers.core.files import CODE_ROOT, repository


@dataclass(frozen=True)
class Paths:
    """The folders of one checkout. ``root`` holds ``notebooks/``, ``profiles/``, ``data/`` and
    ``results/``.

    ``elsewhere`` is where results go instead of ``results/``: the folder of a sweep, the scratch
    place of a verification.
    """

    root: Path
    elsewhere: Path | None = None

    @classmethod
    def find(cls, root: str | os.PathLike | None = None) -> Paths:
        """The given root, else the one in the variable NBHELPERS_ROOT, else the checkout this
        package lies in.
        """
        return cls(Path(root).resolve() if root else repository())

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"

    @property
    def profiles(self) -> Path:
        return self.root / "profiles"

    @property
    def results(self) -> Path:
        return self.elsewhere or self.root / "results"

    @property
    def index(self) -> Path:
        return self.results / "index.html"

    @property
    def lock(self) -> Path:
        """Held by the one run of this checkout that may write results, wherever they go."""
        return self.root / "results" / ".lock"

    @property
    def logs(self) -> Path:
        return self.results / ".logs"

    @property
    def stamps(self) -> Path:
        """One small file per finished notebook: what it was made from."""
        return self.results / ".stamps"

    @property
    def staging(self) -> Path:
        """Results that are being made; moved into place when complete."""
        return self.results / ".staging"

    @property
    def work(self) -> Path:
        """What lets a killed run go on where it was."""
        return self.results / ".work"

    @property
    def workflow(self) -> Path:
        """The workflow engine's own files."""
        return self.results / ".workflow"

    @property
    def events(self) -> Path:
        """What jobs say while they run, a line each; the command that waits reads it."""
        return self.workflow / "events.jsonl"

    @property
    def stop_file(self) -> Path:
        """Asks all jobs to end."""
        return self.workflow / "stop"

    def of_user(self, named: str) -> Path:
        """Where a file or folder is that the user named: beside the notebooks, else from the root;
        ``~`` is the user's folder.
        """
        named = os.path.expanduser(named)
        beside = self.notebooks / named
        return beside if beside.exists() else self.root / named

    def notebook(self, name: str) -> Path:
        return self.notebooks / f"{name}.ipynb"

    def result(self, name: str) -> Path:
        return self.results / name

    def failed(self, name: str) -> Path:
        return self.results / f"{name}.failed"

    def work_of(self, name: str, fingerprint: str) -> Path:
        return self.work / name / fingerprint[:16]

    def stamp(self, name: str, fingerprint: str) -> Path:
        return self.stamps / f"{name}.{fingerprint[:16]}.done"


def python_path() -> str:
    """PYTHONPATH for a process that must find this very package first."""
    given = os.environ.get("PYTHONPATH")
    return f"{CODE_ROOT}{os.pathsep}{given}" if given else str(CODE_ROOT)


def read_json(path: Path) -> dict:
    """The object in a JSON file; empty where the file is missing, damaged, or holds
    something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_path(paths: Paths, named: str, where: str) -> None:
    """Refuse a file or folder of the user that is not there."""
    if not paths.of_user(named).exists():
        raise ParameterError(
            where,
            f"{named} does not exist.",
            "Give a path that is absolute, or starts at the folder of the notebooks or at the "
            "repository.",
        )
