"""Where things lie that only the runner knows of, and what finished runs left there."""

from __future__ import annotations

import os
from pathlib import Path

from nbhelpers.core.files import CODE_ROOT
from nbhelpers.reports.paths import Paths
from nbhelpers.reports.record import headline_text


class RunnerPaths(Paths):
    """The folders of one checkout, with those that notebooks need not know."""

    @property
    def profiles(self) -> Path:
        return self.root / "profiles"

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
    def events(self) -> Path:
        """What jobs say while they run, a line each; the command that waits reads it."""
        return self.workflow / "events.jsonl"

    @property
    def stop_file(self) -> Path:
        """Asks all jobs to end."""
        return self.workflow / "stop"

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


def headline_of(manifest: dict) -> str:
    """The score of a run in words; '' where it has none."""
    headline = manifest.get("headline")
    return headline_text(headline) if headline else ""


def is_complete(folder: Path, manifest: dict) -> bool:
    """Whether every file that the manifest lists is there with its size."""
    try:
        return bool(manifest.get("files")) and all(
            (folder / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except OSError:
        return False
