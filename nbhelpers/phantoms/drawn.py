"""Phantoms that are drawn once: found again by their settings and by the code that draws them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.files import sha256_of, sha256_of_file, whole_file
from nbhelpers.core.kept import write_pieces


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
    folder = Path(__file__).parent
    files = [*sorted(folder.glob(drawn_by)), folder / "matched.py"]
    key = sha256_of([[sha256_of_file(file) for file in files], settings])
    own = Path(data_folder) / "phantoms" / f"{name}-{key[:32]}"
    table_path = own / "table.parquet"
    if not table_path.is_file():
        made = make(**settings)
        for array in arrays:
            with whole_file(own / f"{array}.npy") as temporary:
                write_pieces(temporary, [getattr(made, array)])
        # The table comes last: where it is, everything is.
        with whole_file(table_path) as temporary:
            made.table.to_parquet(temporary, index=False)
    found = {array: np.load(own / f"{array}.npy", mmap_mode="r") for array in arrays}
    return pd.read_parquet(table_path), found
