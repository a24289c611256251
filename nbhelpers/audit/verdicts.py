"""Verdicts: what each check of an audit found, in words and numbers, and the rows
that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from nbhelpers.core.errors import InputError, check_choice
from nbhelpers.core.files import write_csv, write_json

VERDICTS = ("fail", "warn", "not assessable", "pass")  # the gravest first
NOTHING = pd.DataFrame()


class AuditError(InputError):
    """A failed audit; ``audit`` has all that was found."""

    def __init__(self, where: object, what: str, fix: str = "", audit: Audit | None = None):
        super().__init__(where, what, fix)
        self.audit = audit


@dataclass(frozen=True)
class Check:
    """One question that was asked, and its answer.

    ``verdict`` is one of ``VERDICTS``; ``says`` is a sentence, ``fix`` what to do about it.
    ``numbers`` holds what the sentence rests on; ``rows`` the offending images, pairs or groups.
    """

    name: str
    verdict: str
    says: str
    fix: str = ""
    numbers: Mapping[str, object] = field(default_factory=dict)
    rows: pd.DataFrame = field(default_factory=NOTHING.copy)

    def __post_init__(self):
        check_choice(f"verdict of {self.name}", self.verdict, VERDICTS)

    @property
    def sentence(self) -> str:
        """The first sentence of what it says."""
        first, stop, _ = self.says.partition(". ")
        return first + stop.strip()

    @property
    def file(self) -> str:
        """Name of the CSV that holds its rows."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name) + ".csv"


@dataclass(frozen=True)
class Audit:
    """All checks of one set of images and its split. ``about`` says what was looked at."""

    about: Mapping[str, object]
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """ "fail" or "warn" where one check says so; "pass" where nothing was found; "not
        assessable" where nothing could be.
        """
        found = {check.verdict for check in self.checks}
        return next((one for one in ("fail", "warn", "pass") if one in found), "not assessable")

    @property
    def worst(self) -> Check | None:
        """The gravest check that failed or warned; None where there is none."""
        return next(iter(self.findings()), None)

    def findings(self) -> list[Check]:
        """The checks that failed or warned, the gravest first."""
        return [one for one in self.by_gravity() if one.verdict in ("fail", "warn")]

    def failed(self) -> list[Check]:
        return [one for one in self.checks if one.verdict == "fail"]

    def by_gravity(self) -> list[Check]:
        return sorted(self.checks, key=lambda one: VERDICTS.index(one.verdict))

    def check(self, name: str) -> Check:
        """The check of this name. Raises InputError where there is none."""
        named = {one.name: one for one in self.checks}
        check_choice("name of a check", name, named)
        return named[name]

    def table(self) -> pd.DataFrame:
        """check, verdict, what was found, how to fix it; the gravest first."""
        rows = [(one.name, one.verdict, one.says, one.fix) for one in self.by_gravity()]
        columns = ["check", "verdict", "what was found", "how to fix it"]
        return pd.DataFrame(rows, columns=columns)

    def save(self, folder: str | Path) -> Path:
        """Write audit.json, and the rows of each check that has some as a CSV beside it. Returns
        the folder.
        """
        folder = Path(folder)
        for one in self.checks:
            if len(one.rows):
                write_csv(folder / one.file, one.rows)
        write_json(
            folder / "audit.json",
            {
                "about": self.about,
                "verdict": self.verdict,
                "checks": [
                    vars(one) | {"rows": len(one.rows), "file": one.file if len(one.rows) else None}
                    for one in self.checks
                ],
            },
        )
        return folder

    def stop_if_failed(self) -> Audit:
        """Raise AuditError, which names the failed checks, so that nothing is trained on a bad
        split; the audit itself where none failed.
        """
        failed = self.failed()
        if failed:
            raise AuditError(
                str(self.about.get("images", "audit")),
                "the audit failed: " + " ".join(f"[{one.name}] {one.says}" for one in failed),
                " ".join(dict.fromkeys(one.fix for one in failed if one.fix)),
                self,
            )
        return self
