"""What a result was made from, as hashes of contents: when one of them changes, the notebook must
run again.

Contents and not times decide, because a git checkout changes times. Downloads of the package itself
need no entry: they are pinned by sha256 in the code. The user's own files are hashed once; the hash
is remembered with size and modification time, so that later runs only look those up.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

from nbhelpers.core.files import sha256_of, sha256_of_file, write_json
from nbhelpers.reports.notebooks import Notebook
from nbhelpers.reports.paths import CODE_ROOT, Paths
from nbhelpers.runner.plan import RunRequest
from nbhelpers.runner.sources import notebook_sources


def notebook_hash(notebook: Notebook) -> str:
    """Hash of the cells' sources, types and tags; outputs and what JupyterLab adds on saving do not
    count.
    """
    return sha256_of(
        [
            [cell["cell_type"], cell["source"], cell.get("metadata", {}).get("tags", [])]
            for cell in notebook.content["cells"]
        ]
    )


def code_parts(notebook: Notebook, package: Path = CODE_ROOT / "nbhelpers") -> dict[str, str]:
    """Hash per ingredient that all runs of a notebook share: ``notebook``, each module,
    ``requirements.lock``.
    """
    parts = {"notebook": notebook_hash(notebook)}
    for file in notebook_sources(notebook.content, package, notebook.path.name):
        parts[file.relative_to(package.parent).as_posix()] = sha256_of_file(file)
    lock = package.parent / "requirements.lock"
    if lock.exists():
        parts["requirements.lock"] = sha256_of_file(lock)
    return parts


def fingerprint_parts(
    places: Paths,
    order: RunRequest,
    package: Path = CODE_ROOT / "nbhelpers",
    code: dict[str, str] | None = None,
) -> dict[str, str]:
    """Hash per ingredient of a run: ``parameters``, those of ``code_parts``, the user's data.

    ``code`` is what ``code_parts`` gave, where the runs of a sweep share it.
    """
    notebook = order.notebook
    parts = {"parameters": sha256_of(order.values)} | (
        code_parts(notebook, package) if code is None else code
    )
    for name, parameter in notebook.parameters.items():
        value = order.values[name]
        if paths := parameter.paths(value):
            parts[f"data in {name}"] = sha256_of(
                [hash_of_tree(places, places.root / str(path)) for path in paths]
            )
    return parts


def fingerprint_of(parts: dict[str, str]) -> str:
    return sha256_of(parts)


def difference(before: dict[str, str], now: dict[str, str]) -> str:
    """In words: what changed between two runs, e.g. 'parameters, nbhelpers/models/tinycnn.py
    changed'.
    """
    names = [name for name in now if before.get(name) != now[name]] + [
        name for name in before if name not in now
    ]
    if not names:
        return ""
    return (
        ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    ) + " changed"


def hash_of_tree(places: Paths, path: Path) -> str:
    """Hash of the names and contents of all files under ``path``, or of one file; of a CSV also of
    its images.
    """
    memory_file = places.workflow / "data-hashes.json"
    try:
        memory = json.loads(memory_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        memory = {}
    files = (
        [path]
        if path.is_file()
        else sorted(
            Path(folder, name)
            for folder, _, names in os.walk(path, followlinks=True)
            for name in names
        )
    )
    names = [str(file.relative_to(path)) for file in files]
    if path.is_file() and path.suffix.lower() == ".csv":
        named = _named_in_table(path)
        names = names + named
        files = files + [path.parent / name for name in named]
    entries = []
    known = dict(memory)
    for name, file in zip(names, files, strict=True):
        try:
            state = file.stat()
            key = f"{file}|{state.st_size}|{state.st_mtime_ns}|{state.st_ino}"
            if key not in known:
                known[key] = sha256_of_file(file)
            entries.append([name, known[key]])
        except (
            OSError,
            ValueError,
        ) as error:  # broken link, unreadable file: the notebook will name it
            entries.append([name, type(error).__name__])
    if known != memory:
        try:
            write_json(memory_file, known)
        except OSError:
            pass  # only a memory; without it the files are read again next time
    return sha256_of(entries)


def _named_in_table(table: Path) -> list[str]:
    """The texts in the column ``path`` of a label table; none where it is no such table, as the
    notebook will say.
    """
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separator = max(",;\t", key=header.count)  # as nbhelpers.imagesets.folder reads it
            column = [
                name.strip().lower() for name in next(csv.reader([header], delimiter=separator))
            ].index("path")
            rows = list(csv.reader(file, delimiter=separator))
    except (OSError, ValueError, csv.Error, StopIteration):
        return []
    return sorted({row[column].strip() for row in rows if len(row) > column} - {""})
