"""What a result was made from, as hashes of contents: when one of them changes, the notebook must
run again.

Contents and not times decide, because a git checkout changes times. Downloads of the package itself
need no entry: they are pinned by sha256 in the code. The user's own files are hashed once; the hash
is remembered with size and modification time, so that later runs only look those up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from nbhelpers.core.elsewhere import longest_end
from nbhelpers.core.errors import InputError
from nbhelpers.core.files import CODE_ROOT, folders_below, sha256_of, sha256_of_file, write_json
from nbhelpers.core.tables import IMAGE_COLUMNS, is_table, located, read_table, with_columns
from nbhelpers.reports.notebooks import Notebook
from nbhelpers.reports.paths import Paths, read_json
from nbhelpers.runner.plan import RunRequest
from nbhelpers.runner.sources import notebook_sources

LARGEST_BYTES = 2**34  # of a file that is hashed; of larger ones size and time must do


def code_parts(notebook: Notebook) -> dict[str, str]:
    """Hash per ingredient that all runs of a notebook share: ``notebook``, each module it uses,
    ``requirements.lock``.

    Of the notebook the cells' sources, types and tags count; outputs and what JupyterLab adds on
    saving do not.
    """
    cells = [
        [cell["cell_type"], cell["source"], cell.get("metadata", {}).get("tags", [])]
        for cell in notebook.content["cells"]
    ]
    files = notebook_sources(notebook.content, where=notebook.path.name)
    lock = CODE_ROOT / "requirements.lock"
    if lock.exists():
        files.append(lock)
    hashes = {file.relative_to(CODE_ROOT).as_posix(): sha256_of_file(file) for file in files}
    return {"notebook": sha256_of(cells), **hashes}


def fingerprint_parts(paths: Paths, request: RunRequest, code: Mapping[str, str]) -> dict[str, str]:
    """Hash per ingredient of a run: ``parameters``, the user's data, and ``code``, which is what
    ``code_parts`` gave for its notebook."""
    parts = {"parameters": sha256_of(request.values), **code}
    for name, parameter in request.notebook.parameters.items():
        value = request.values[name]
        if parameter.names_path(value):
            parts[f"data in {name}"] = sha256_of([hash_of_tree(paths, paths.of_user(value))])
    return parts


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In words: what changed between two runs, e.g. 'parameters, nbhelpers/models/tinycnn.py
    changed'; '' if nothing.
    """
    names = [name for name in now if before.get(name) != now[name]]
    names += [name for name in before if name not in now]
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more + " changed"


def hash_of_tree(paths: Paths, path: Path) -> str:
    """Hash of the names and contents of all files under ``path``, or of one file; of a CSV also of
    its images.
    """
    memory_file = paths.workflow / "data-hashes.json"
    known = read_json(memory_file)
    before = len(known)
    entries = []
    for name, file in _files_in(path):
        try:
            state = file.stat()
            key = f"{file}|{state.st_size}|{state.st_mtime_ns}|{state.st_ino}"
            if state.st_size > LARGEST_BYTES:
                entries.append([name, key])
                continue
            if key not in known:
                known[key] = sha256_of_file(file)
            entries.append([name, known[key]])
        except (OSError, ValueError) as error:
            # A broken link, a pipe, an unreadable file: the notebook will name it.
            entries.append([name, type(error).__name__])
    if len(known) > before:
        try:
            write_json(memory_file, known)
        except OSError:
            pass  # only a memory; without it the files are read again next time
    return sha256_of(entries)


def _files_in(path: Path) -> list[tuple[str, Path]]:
    """The files under ``path`` with their names in it, or the one file, and what it names."""
    if path.is_file():
        return [(".", path), *((name, path.parent / name) for name in _named_in_table(path))]
    files = []
    for folder, names in folders_below(path):
        files += [folder / name for name in names]
    return [(str(file.relative_to(path)), file) for file in sorted(files)]


def _named_in_table(path: Path) -> list[str]:
    """The images that a label table or a LoadData table names; none where it is no such table, as
    the notebook will say.
    """
    if not is_table(path):
        return []
    try:
        table = with_columns(read_table(path, "the table", ""), path, IMAGE_COLUMNS)
    except InputError:
        return []
    named = located(table.get("path", []), path.parent)
    written: list[str] = []
    columns = {re.sub("^image_", "", name.lower()): name for name in table}
    for plain, name in columns.items():
        kind, _, stain = plain.partition("_")
        folder = columns.get(f"pathname_{stain}")
        if kind == "url":
            written += list(table[name])
        elif kind == "filename":
            written += list(table[name] if folder is None else table[folder] + "/" + table[name])
    named += [os.fspath(longest_end(path.parent, one)) for one in dict.fromkeys(written)]
    return sorted(set(named) - {""})
