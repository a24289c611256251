"""One reader for every table of the user: what people export, from whatever program, as text."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from nbhelpers.core.errors import TableError
from nbhelpers.core.files import repository, spreadsheet_safe
from nbhelpers.core.keys import key_of

if TYPE_CHECKING:
    import pandas as pd

SEPARATORS = ",;\t|"  # the first of those that the header has most of
# of a table of images: our names, and the others that are understood
IMAGE_COLUMNS = {
    "path": ("file", "filename", "image", "image path"),
    "label": ("class", "target"),
    "group": (
        *("patient", "animal", "mouse", "neuron", "subject", "slide", "donor", "case"),
        *("patient id", "animal id", "mouse id", "neuron id", "subject id", "slide id"),
        *("donor id", "case id", "group id"),
    ),
    "centre": ("center",),
}
SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx")
LARGEST_BYTES = 24 * 2**20  # beyond it reading would take more than 1 GiB
MOST_CELLS = 3_000_000  # of a sheet; one far cell makes many empty ones
# a header that begins as a remark does
_HEADER = re.compile(r"^#.*[,;\t|# ](path|label|class|well|filename)\s*([,;\t|]|$)")
Row = tuple[int, list[str]]  # its number in the file, and its cells


def is_table(path: object) -> bool:
    """Whether a path is meant as a table and not as a folder of images, by its name."""
    return Path(str(path)).suffix.lower() in SUFFIXES and not Path(str(path)).is_dir()


def read_table(path: object, what: str, fix: str) -> pd.DataFrame:
    """The table in a .csv, .tsv, .txt or .xlsx file: all cells text without white space around
    them, empty ones empty; the index is the number of each row in the file, as a spreadsheet
    counts.

    The cells stand between commas, semicolons, tabs or bars, whichever the header has most of; the
    text is UTF-8, or UTF-16 with its mark. A first line ``sep=;``, blank rows, rows that begin with
    ``#`` and hold nothing else or stand before the header, a column of row numbers without a name
    and surplus empty cells are passed over; the apostrophes of
    :func:`nbhelpers.core.files.spreadsheet_safe` are taken off. ``what`` is the name of the table
    ("the layout") and ``fix`` says what it must be, in the TableError that is raised for what
    cannot be read: other encodings, a row longer than the header, a quote that never ends, a column
    without a name, two columns of one name whatever their case, several sheets.
    """
    rows = read_rows(path, what, fix)
    return table_of(rows, Path(str(path)), what)


def read_rows(path: object, what: str, fix: str) -> list[Row]:
    """The rows of such a file that hold something, as they are: see :func:`read_table`."""
    path = Path(str(path))
    if not path.is_file():
        problem = "is no file" if path.exists() else "does not exist"
        raise TableError(path, f"{what} {problem}.", "Check the path and its spelling.")
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError(f"it has more than {LARGEST_BYTES // 2**20} MB")
        rows = _rows_of_sheet(path) if path.suffix.lower() == ".xlsx" else _rows_of_text(path)
    except UnicodeDecodeError:
        raise TableError(
            path, f"{what} is not in UTF-8.", "In a spreadsheet, save it as CSV UTF-8 or as .xlsx."
        ) from None
    except Exception as error:  # a damaged .xlsx raises many types
        raise TableError(path, f"{what} cannot be read ({error}).", fix) from None
    if not rows:
        raise TableError(path, f"{what} is empty.", fix)
    return rows


def table_of(rows: Sequence[Row], path: Path, what: str) -> pd.DataFrame:
    """Rows, of which the first is the header, as a table: see :func:`read_table`."""
    import pandas as pd  # here, as most of what imports this file reads no table

    (_, header), *rows = rows
    if len(header) > 1:
        rows = [(at, cells) for at, cells in rows if not cells[0].startswith("#") or any(cells[1:])]
    header, rows = _without_row_numbers(header, rows)
    if not rows:
        raise TableError(path, f"{what} has no rows.", "Give a row for each thing it is about.")
    width = len(header)
    for number, cells in rows:
        if any(cells[width:]):
            raise TableError(
                f"{path.name}, row {number}",
                f"it has {len(cells)} cells, and the header has {width}.",
                "Put text that holds a separator in quotes, or name the column.",
            )
        cells[width:] = []
        cells += [""] * (width - len(cells))
    table = pd.DataFrame(
        [cells for _, cells in rows], [number for number, _ in rows], range(width), dtype=object
    )
    unnamed = [at for at, name in enumerate(header) if not name]
    for at in unnamed:
        if (table[at] != "").any():
            raise TableError(path, f"column {at + 1} of {what} has no name.", "Name it.")
    table.columns = header
    table = table.loc[:, [bool(name) for name in header]]
    _check_names(path, list(table.columns))
    return spreadsheet_safe(table, back=True)


def _rows_of_text(path: Path) -> list[Row]:
    content = path.read_bytes()
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = content.decode("utf-16" if wide else "utf-8-sig").lstrip("\ufeff")
    if "\0" in text:
        raise ValueError("it holds zero bytes, which no table has")
    lines = re.split(r"\r\n|\r|\n", text)
    first = 0
    separator = ""
    if lines and (said := re.fullmatch(r'"?sep=(.)"?[,;\t]*', lines[0], re.IGNORECASE)):
        separator = said[1]
        first = 1
    while first < len(lines) and (not lines[first].strip() or lines[first].startswith("#")):
        if _HEADER.search(lines[first].lower()):
            lines[first] = re.sub(r"^#\s*(?=\w)", "", lines[first])
            break
        first += 1
    rest = lines[first:]
    unquoted = (re.sub(r'"[^"]*"', "", line) for line in rest)
    outside_quotes = next((line for line in unquoted if set(line) & set(SEPARATORS)), "")
    separator = separator or max(SEPARATORS, key=outside_quotes.count)
    if not outside_quotes and rest and re.search('" +"', rest[0]):
        separator = " "  # as R writes tables
    body = io.StringIO("\n".join(rest), newline="")
    # strict: a quote that does not end in its cell would swallow the rows behind it
    reader = csv.reader(body, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        found = [
            (number, [cell.strip() for cell in cells])
            for number, cells in enumerate(reader, first + 1)
            if any(cells)
        ]
    except csv.Error as error:
        raise ValueError(f"a quote near line {first + reader.line_num} is wrong: {error}") from None
    return _without_row_names(found) if separator in "\t " else found


def _rows_of_sheet(path: Path) -> list[Row]:
    """The one sheet of an .xlsx file that holds something."""
    from openpyxl import load_workbook

    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > 4 * LARGEST_BYTES:
            raise ValueError("unpacked it is too large")
    book = load_workbook(path, read_only=True, data_only=True)
    found = []
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # some programs write a wrong size
        rows = []
        cells = 0
        for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
            cells += 1 + len(row)
            if cells > MOST_CELLS:
                raise ValueError(f"it has more than {MOST_CELLS} cells, many of them empty perhaps")
            texts = list(map(_cell_text, row))
            if any(texts):
                rows.append((number, texts))
        if rows:
            found.append((sheet.title, rows))
    book.close()
    if len(found) > 1:
        titles = ", ".join(title for title, _ in found)
        raise ValueError(f"it has several sheets: {titles}; keep one")
    rows = found[0][1] if found else []
    while rows and rows[0][1][0].startswith("#"):
        rows = rows[1:]
    return rows


def _cell_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # beyond, its last digits are not known
    return str(value).removesuffix(" 00:00:00").strip()


def _without_row_names(rows: list[Row]) -> list[Row]:
    """Without the row numbers that R writes beside a header that has no name for them."""
    (_, header), *others = rows or [(0, [])]
    numbers = [cells[0] for _, cells in others if len(cells) == len(header) + 1]
    if numbers != [str(number) for number in range(1, len(others) + 1)]:
        return rows
    return rows[:1] + [(number, cells[1:]) for number, cells in others]


def _without_row_numbers(header: list[str], rows: list[Row]) -> tuple[list[str], list[Row]]:
    """Without the column of row numbers that pandas writes under no name."""
    first = [cells[0] for _, cells in rows]
    numbered = all(text.isdecimal() for text in first) and len(set(first)) == len(first)
    if not rows or not numbered or not re.fullmatch("(Unnamed: .*)?", header[0]):
        return header, rows
    return header[1:], [(number, cells[1:]) for number, cells in rows]


def _check_names(path: Path, names: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for at, name in enumerate(names):
        other = first.setdefault(key_of(name).casefold(), name)
        if list(names).index(other) != at:
            raise TableError(
                path,
                f"the columns {other!r} and {name!r} have one name.",
                "Delete one of them, or give it another name.",
            )


def with_columns(
    table: pd.DataFrame, where: object, wanted: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """The table with the ``wanted`` columns under our names: written in another case, with spaces
    or signs, or under one of the other names listed for it.

    Raises TableError where two columns are meant by one of the other names, and none has ours.
    """
    written = {_letters(name): name for name in table.columns}
    renamed = {}
    for ours, others in wanted.items():
        found = [written[_letters(name)] for name in (ours, *others) if _letters(name) in written]
        if len(found) > 1 and _letters(found[0]) != _letters(ours):
            raise TableError(
                where,
                f"the columns {' and '.join(dict.fromkeys(found))} may both be the {ours}.",
                f"Name the one that is meant {ours}.",
            )
        if found:
            renamed[found[0]] = ours
    return table.rename(columns=renamed)


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", key_of(name).casefold())


LOOKED = "Paths start at the folder of the table, of the notebook, or at the repository."


def located(written: Sequence[str], base: Path) -> list[str]:
    """Where the files are that a table in the folder ``base`` names: paths from ``base``, or
    absolute; as written where there is none.

    Slashes may be of either kind, ``~`` is the user's folder. A path is looked for from ``base``,
    from where the notebook runs, and from the repository. Paths of another machine are looked for
    below ``base``, all of them without the same beginning.
    """
    found = {text: _located_here(text, base) for text in dict.fromkeys(written)}
    foreign = {
        text: parts for text in found if not found[text] and (parts := _absolute_parts(text))
    }
    shallowest = min(map(len, foreign.values()), default=0)
    for start in range(1, shallowest):
        if len({parts[1:start] for parts in foreign.values()}) > 1:
            break
        ends = {text: Path(*parts[start:]).as_posix() for text, parts in foreign.items()}
        if any((base / end).is_file() for end in ends.values()):
            found |= ends
            break
    return [found[text] or text for text in written]


def _located_here(text: str, base: Path) -> str:
    forms = [os.path.expanduser(form) for form in (text, text.replace("\\", "/")) if form]
    if not text.isascii():  # file names of a Mac are decomposed
        for kind in ("NFC", "NFD"):
            forms += [unicodedata.normalize(kind, one) for one in forms[:2]]
    for form in dict.fromkeys(forms):
        if os.path.isfile(os.path.join(base, form)):
            return form
        for place in map(str, (Path.cwd(), repository())):
            if os.path.isfile(os.path.join(place, form)):
                return os.path.join(place, form)
    return ""


def _absolute_parts(text: str) -> tuple[str, ...]:
    """The parts of an absolute path of any machine; none of a relative one."""
    for kind in (PureWindowsPath, PurePosixPath):
        path = kind(text)
        if path.drive or path.is_absolute():
            return path.parts
    return ()
