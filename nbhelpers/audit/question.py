"""What an audit is asked: a set of images, its split, and what else is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.audit.verdicts import Check
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split


@dataclass(frozen=True)
class Provenance:
    """What is known of a set beyond its table and pixels, as of a user's own table.

    ``files``: one path per image, in the order of the set, to compare the files themselves.
    ``groups_known``, ``pixels_known``: False where the group column, or the pixels, only stand in
    for what nobody has. ``columns``: further columns of the table to try as shortcuts. ``checks``:
    what was found out before, put first.
    """

    files: Sequence[str | Path] | None = None
    groups_known: bool = True
    pixels_known: bool = True
    columns: Sequence[str] = ()
    checks: Sequence[Check] = ()


@dataclass(frozen=True)
class Question:
    """One audit, as its checks get it; see :func:`nbhelpers.audit.checks.run_audit`."""

    images: ImageSet
    split: Split | None = None
    known: Provenance = Provenance()
    predictions: Predictions | None = None
    record: Mapping[str, object] | None = None
    shuffles: int = 1000
    seed: int = 0
