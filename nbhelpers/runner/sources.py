"""Which modules of the package a notebook really uses, found by reading the import statements.

Nothing is imported for this. A notebook that uses TinyCNN does not depend on the file of the
ResNets.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from nbhelpers.core.errors import ParameterError
from nbhelpers.core.files import CODE_ROOT

BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # where statements hold statements


def notebook_sources(
    content: dict, package: Path = CODE_ROOT / "nbhelpers", where: str = "notebook"
) -> list[Path]:
    """The files of ``package`` that the code cells of a notebook use, directly or through each
    other, sorted.

    A module that another one names as a text (a table of sources) counts as used too, and so does
    a file next to a module whose name stands in it (a template). Raises ParameterError for a cell
    that is no Python.
    """
    todo: list[Path] = []
    for number, cell in enumerate(content["cells"]):
        if cell["cell_type"] != "code":
            continue
        # What only Jupyter understands would be no Python.
        text = re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", cell["source"])
        try:
            tree = ast.parse(text)
        except SyntaxError as error:
            raise ParameterError(
                f"{where}, cell {number}", f"is not valid Python ({error})."
            ) from error
        todo += imported_files(tree, package)
    found: set[Path] = set()
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += _files_used_by(file, package, file.stat().st_mtime_ns)
    return sorted(found)


@functools.cache
def _files_used_by(file: Path, package: Path, modified: int) -> list[Path]:
    """The files that one file uses itself. Kept, as notebooks share most of what they use;
    ``modified`` keeps a file that has changed since apart."""
    if file.suffix != ".py":
        return []
    text = file.read_text(encoding="utf-8")
    used = [*imported_files(ast.parse(text), package), *named_files(text, package)]
    for path in file.parent.iterdir():
        if path.suffix != ".py" and path.is_file():
            if re.search(rf"""["']{re.escape(path.name)}["']""", text):
                used.append(path)
    return used


def imported_files(tree: ast.AST, package: Path) -> Iterator[Path]:
    """The files of ``package`` that the import statements of a syntax tree name, wherever they
    stand. There are no relative ones: ruff refuses them."""
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module_files(alias.name, package)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield from _module_files(f"{node.module}.{alias.name}", package)


def named_files(text: str, package: Path) -> Iterator[Path]:
    """The modules that stand in a source text as a string of their own, ``"package.room.module"``
    or ``"package.room.module:function"``: what is imported by such a name is used as well."""
    for dotted in re.findall(rf"""["']({package.name}(?:\.\w+)+)(?::\w+)?["']""", text):
        yield from _module_files(dotted, package)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements but those under ``if TYPE_CHECKING``, which never run. Expressions hold no
    imports; leaving them out makes this several times faster than ``ast.walk``."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        test = getattr(node, "test", None)
        for_types = "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))
        for block in BLOCKS[1:] if for_types else BLOCKS:
            todo.extend(getattr(node, block, ()))


def _module_files(dotted: str, package: Path) -> Iterator[Path]:
    """The files that run when ``dotted`` is imported; its last part may be a name within one."""
    first, *parts = dotted.split(".")
    if first != package.name:
        return
    folder = package
    yield folder / "__init__.py"
    for part in parts:
        folder = folder / part
        if folder.with_suffix(".py").exists():
            yield folder.with_suffix(".py")
            return
        if (folder / "__init__.py").exists():
            yield folder / "__init__.py"
        elif not folder.is_dir():
            return  # a name, or a module that does not exist: running the notebook will tell
