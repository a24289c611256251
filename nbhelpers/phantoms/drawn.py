"""Phantoms that are drawn once: found again by their settings and by the code that draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.files import sha256_of_file
from nbhelpers.core.kept import kept_set


@dataclass(frozen=True)
class Phantoms:
    """``pixels`` (n, channel, y, x) or (n, channel, z, y, x); ``table``, one row each: what they
    are, and what was injected; ``cause``, bool: where that is in the pixels.
    """

    pixels: np.ndarray
    cause: np.ndarray
    table: pd.DataFrame


def drawn_once(
    data_folder: str | Path,
    name: str,
    drawn_by: str,
    make: Callable[..., Phantoms],
    settings: Mapping[str, object],
    arrays: Sequence[str] = ("pixels",),
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The table and these arrays of ``make(**settings)``, memory-mapped, from
    ``data_folder/phantoms`` where they were drawn before.

    ``drawn_by`` is a pattern for the files of this folder whose text decides the pixels, beside
    ``matched.py``: another way of drawing is another set.
    """

    def draw_all() -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
        made = make(**settings)
        return made.table, {array: getattr(made, array) for array in arrays}

    folder = Path(__file__).parent
    files = [*sorted(folder.glob(drawn_by)), folder / "matched.py"]
    key = [[sha256_of_file(file) for file in files], settings]
    return kept_set(Path(data_folder) / "phantoms", key, draw_all, name=f"{name}-")
