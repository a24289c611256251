"""Which modules of the package a notebook really uses, found by reading the import statements.

Nothing is imported for this. A notebook that uses TinyCNN does not depend on the file of the
ResNets.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from nbhelpers.core.errors import ParameterError
from nbhelpers.reports.paths import CODE_ROOT

ALL = frozenset({"*"})


def notebook_sources(
    content: dict, package: Path = CODE_ROOT / "nbhelpers", where: str = "notebook"
) -> list[Path]:
    """The files of ``package`` that the code cells of a notebook use, directly or through each
    other, sorted.

    Of a package's ``__init__.py`` only those imports are followed that the importer asks for by
    name. A file next to a module whose name stands in it as a text (a registry, a template) counts
    as used too.
    """
    found: set[Path] = set()
    done: set[tuple[Path, frozenset[str]]] = set()
    todo: list[tuple[Path, frozenset[str]]] = []
    for number, cell in enumerate(content["cells"]):
        if cell["cell_type"] == "code":
            text = "\n".join(
                "pass" if line.lstrip().startswith(("%", "!")) else line
                for line in cell["source"].splitlines()
            )
            try:
                tree = ast.parse(text)
            except SyntaxError as error:
                raise ParameterError(
                    f"{where}, cell {number}", f"is not valid Python ({error})."
                ) from error
            todo.extend(_imports(tree, package, None))
    while todo:
        file, names = item = todo.pop()
        if item in done:
            continue
        done.add(item)
        found.add(file)
        tree = ast.parse(file.read_bytes())
        found.update(_files_named_in(tree, file))
        wanted = _binding(tree, names) if file.name == "__init__.py" else tree
        todo.extend(_imports(wanted, package, file))
    return sorted(found)


def _files_named_in(tree: ast.AST, file: Path) -> Iterator[Path]:
    neighbours = {
        path.name: path for path in file.parent.iterdir() if path.is_file() and path.suffix != ".py"
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value in neighbours
        ):
            yield neighbours[node.value]


def _binding(tree: ast.Module, names: frozenset[str]) -> ast.AST:
    """The part of an ``__init__.py`` that gives these names; all of it where that
    cannot be told."""
    if names >= ALL:
        return tree
    own = [
        statement
        for statement in tree.body
        if not isinstance(statement, ast.Import | ast.ImportFrom)
    ]
    symbols = [
        node for statement in own for node in ast.walk(statement) if isinstance(node, ast.Name)
    ]
    wanted: list[ast.stmt] = list(own)
    left = set(names) - {node.id for node in symbols if isinstance(node.ctx, ast.Store)}
    left -= {getattr(statement, "name", "") for statement in own}
    asked = names | {node.id for node in symbols if isinstance(node.ctx, ast.Load)}
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom):
            aliases = [alias for alias in statement.names if (alias.asname or alias.name) in asked]
            if aliases:
                wanted.append(ast.ImportFrom(statement.module, aliases, statement.level))
            left -= {alias.asname or alias.name for alias in aliases}
    return tree if left else ast.Module(wanted, [])


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``, which never run."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        if (
            isinstance(node, ast.If)
            and getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING"
        ):
            todo.extend(node.orelse)
        else:
            todo.extend(ast.iter_child_nodes(node))


def _imports(
    tree: ast.AST, package: Path, importer: Path | None
) -> Iterator[tuple[Path, frozenset[str]]]:
    for node in _nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module(
                    alias.name, package, ALL if alias.name == package.name else frozenset()
                )
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level and importer is not None:
                base = [package.name, *importer.relative_to(package).parts[:-1]]
                base = base[: len(base) - (node.level - 1)]
                module = ".".join([*base, module] if module else base)
            yield from _module(module, package, frozenset(alias.name for alias in node.names))


def _module(
    dotted: str, package: Path, names: frozenset[str]
) -> Iterable[tuple[Path, frozenset[str]]]:
    """The files that importing ``dotted`` runs, and the submodules among ``names``."""
    parts = dotted.split(".")
    if parts[0] != package.name:
        return
    folder = package
    yield folder / "__init__.py", frozenset()
    for depth, part in enumerate(parts[1:], 2):
        if (folder / part).is_dir():
            folder = folder / part
            if (folder / "__init__.py").exists() and depth < len(parts):
                yield folder / "__init__.py", frozenset()
        elif (folder / f"{part}.py").exists():
            yield folder / f"{part}.py", ALL
            return
        else:
            return  # an attribute, or a module that does not exist: running the notebook will tell
    submodules = {
        name for name in names if (folder / f"{name}.py").exists() or (folder / name).is_dir()
    }
    if (folder / "__init__.py").exists():
        rest = names - submodules
        yield folder / "__init__.py", (ALL if not names and folder != package else rest)
    for name in submodules:
        yield from _module(
            ".".join([*parts, name]), package, ALL if (folder / name).is_dir() else frozenset()
        )
