"""Files that a table of another machine names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote


def longest_end(folder: Path, written: str) -> Path:
    """The file of a path or address that another machine may have written: the longest end that
    exists below ``folder``.
    """
    if re.match(r"\w{2,}:", written):  # an address; one letter is a drive
        written = unquote(written)
    steps = re.split(r"^file:|[\\/]+", written)
    ends = (folder / "/".join(steps[at:]) for at in range(len(steps)))
    return next(filter(os.path.isfile, ends), folder / written)
