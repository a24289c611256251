"""Files that are either whole or absent: written to a temporary name, then put in place."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ROOT_VARIABLE = "NBHELPERS_ROOT"
CODE_ROOT = Path(__file__).resolve().parents[2]


def repository() -> Path:
    """The folder in the variable NBHELPERS_ROOT, else the checkout this package lies in."""
    return Path(os.environ.get(ROOT_VARIABLE) or CODE_ROOT).resolve()


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success it replaces ``path`` in one
    step.

    After an exception the temporary file is removed and ``path`` is as it was. A kill may leave a
    file that begins with ``.part-``; nothing ever reads those.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", suffix="-" + path.name, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write ``value`` as indented JSON with sorted keys. NaN and infinity become null, as JSON has
    neither.
    """
    write_text(path, json.dumps(plain(value), indent=2, sort_keys=True, allow_nan=False) + "\n")


def plain(value: object) -> object:
    """Turn NumPy scalars, arrays, paths, tuples and what has ``as_dict`` into what JSON knows."""
    if hasattr(value, "as_dict"):
        return plain(value.as_dict())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(item) for item in items]
    if hasattr(value, "tolist"):  # arrays and NumPy's numbers; NumPy itself is slow to import
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def write_csv(path: str | os.PathLike, table: pd.DataFrame, **options) -> None:
    """Write a table, whole or not at all, as :func:`spreadsheet_safe` makes it; ``options`` are
    more of pandas.
    """
    table = spreadsheet_safe(table)
    options = {"index": False} | options
    with whole_file(path) as temporary:
        table.to_csv(temporary, **options)
        if b"\r" in temporary.read_bytes():  # which pandas writes bare, and it would begin a row
            table.to_csv(temporary, quoting=csv.QUOTE_NONNUMERIC, **options)


def spreadsheet_safe(table: pd.DataFrame, back: bool = False) -> pd.DataFrame:
    """The table with an apostrophe before each text that a spreadsheet would run as a formula, or
    ``back`` without it. Numbers stay what they are.

    Such a text begins with = + - @, a tab or a carriage return, or with apostrophes before one:
    these get one more, so that ``back`` gives exactly what was.
    """
    formula = re.compile(("'+" if back else "'*") + r"[=+\-@\t\r]")

    def changed(value: object) -> object:
        if not isinstance(value, str) or not formula.match(value):
            return value
        return value[1:] if back else "'" + value

    texts = table.select_dtypes(["object", "string", "category"])
    return table.assign(**texts.astype(object).map(changed))


def special_file(path: str | os.PathLike) -> str:
    """What a named pipe, a socket, a device or a link to one is, in words; "" for files and folders
    and for what is not there. To open one may take for ever.
    """
    named = {"p": "a named pipe", "s": "a socket", "c": "a device", "b": "a device"}
    kind = stat.filemode(os.stat(path).st_mode)[0] if os.path.exists(path) else ""
    return f"this is no regular file ({named[kind]})" if kind in named else ""


def folders_below(
    top: str | os.PathLike, *, hidden: bool = True, closed: Callable | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """``top`` and the folders below it, in a stable order, each with the sorted names of what is no
    folder in it; without ``hidden``, not those whose names begin with a dot.

    Links to folders are followed, but each folder comes once, by whatever path is met first, and
    none that holds ``top``. ``closed`` is called with the error of each folder that cannot be
    opened.
    """
    own = Path(os.path.realpath(top))
    seen = {own}

    def is_new(folder: Path) -> bool:
        real = Path(os.path.realpath(folder))
        known = real in seen or own.is_relative_to(real)
        seen.add(real)
        return not known

    for root, folders, names in os.walk(top, onerror=closed, followlinks=True):
        wanted = sorted(name for name in folders if hidden or name[0] != ".")
        folders[:] = [name for name in wanted if is_new(Path(root, name))]
        yield Path(root), sorted(names)


def sha256_of_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits. Raises OSError, also for a special file."""
    if why := special_file(path):
        raise OSError(errno.EINVAL, why)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(value: object) -> str:
    """SHA-256 of a JSON-able value in its canonical form (sorted keys, no spaces)."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
