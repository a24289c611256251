"""The package as its design says: data flows one way, nothing runs at import, no two files need
each other.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from nbhelpers.runner.sources import imported_files, named_files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nbhelpers"
EVERYWHERE = {"core"}

# Which room may import which, beside core. From the images (top) to what runs notebooks (bottom); a
# room may look up, not down. A line more here is a decision about the package, made on purpose.
MAY_IMPORT = {
    "core": set(),
    "phantoms": set(),
    "imagesets": {"phantoms"},
    "microns": {"imagesets", "phantoms"},
    "training": set(),
    "models": {"imagesets", "training"},
    "inference": {"imagesets", "training", "models"},
    "saliency": {"training", "models"},
    "evaluation": {"imagesets", "training", "models"},
    "audit": {"phantoms", "imagesets", "models", "evaluation"},
    "answer": {"evaluation"},
    "figures": {"saliency", "evaluation", "audit"},
    "studies": {
        "phantoms",
        "imagesets",
        "microns",
        "training",
        "models",
        "inference",
        "saliency",
        "evaluation",
        "audit",
        "figures",
    },
    "reports": {"inference", "evaluation", "audit", "figures"},
    "runner": {"reports", "figures"},
}
ONLY = {}


def room(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """File to the files that it imports, at its top, within a function, or by their name in a
    table of sources; ``__init__`` files are looked through.
    """
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        others = {*imported_files(ast.parse(text), PACKAGE), *named_files(text, PACKAGE)}
        found[file.relative_to(PACKAGE).as_posix()] = {
            other.relative_to(PACKAGE).as_posix()
            for other in others
            if other != file and other.name != "__init__.py"
        }
    return found


def test_every_source_of_images_can_be_loaded():
    """A table of sources names functions that are there: a wrong name would show only when it is
    asked for.
    """
    named = []
    for file in sorted((PACKAGE / "imagesets").glob("*.py")):
        module = import_module(f"nbhelpers.imagesets.{file.stem}")
        for table in ("SOURCES", "SPLITS"):
            named += getattr(module, table, {}).values()
    assert len(named) > 15
    for name in named:
        module, _, function = name.partition(":")
        assert callable(getattr(import_module(module), function)), name


def test_every_room_imports_only_what_it_may(imports):
    wrong = []
    for file, others in imports.items():
        if file in ("__init__.py", "__main__.py"):
            continue
        assert room(file) in MAY_IMPORT, (
            f"{room(file)} is a new room: say in this test what it may import"
        )
        for other in others:
            pair = room(file), room(other)
            allowed = (pair[0] == pair[1] or pair[1] in EVERYWHERE | MAY_IMPORT[pair[0]]) and (
                pair not in ONLY or other in ONLY[pair]
            )
            if not allowed:
                wrong.append(f"{file} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_a_package_that_is_installed():
    """setuptools leaves out folders without an ``__init__.py``."""
    rooms = {file.parent for file in PACKAGE.rglob("*.py")}
    assert [room.name for room in sorted(rooms) if not (room / "__init__.py").is_file()] == []


def test_no_two_files_need_each_other(imports):
    list(
        graphlib.TopologicalSorter(imports).static_order()
    )  # raises CycleError, which names the files


def test_nothing_in_the_package_reads_the_notebooks_tests_or_benchmarks():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {name.split(".")[0] for name in names} & {
                "tests",
                "benchmarks",
                "notebooks",
            }, file


ALLOWED_AT_TOP = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.ClassDef,
    ast.AnnAssign,
    ast.Assign,
    ast.If,
    ast.Try,
)


def test_files_only_define_things():
    """At the top of a file stand imports, names, functions and classes; an ``if`` only for types or
    ``__main__``.
    """
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_bytes()).body:
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert text or isinstance(node, ALLOWED_AT_TOP), f"{file}, line {node.lineno}"
            if isinstance(node, ast.If):
                words = ast.unparse(node.test)
                assert words == "TYPE_CHECKING" or "__main__" in words or "sys." in words, (
                    f"{file}, line {node.lineno}"
                )


WATCH = """\
# Python's own random is not watched: other libraries draw from it when imported
import os, sys, threading
import numpy, torch, matplotlib
from importlib import import_module

os.chdir(sys.argv[1])
def state():
    return (dict(os.environ), os.getcwd(), repr(numpy.random.get_state()),
            torch.random.get_rng_state().tolist(), torch.get_num_threads(),
            torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            matplotlib.get_backend(auto_select=False), sorted(os.listdir()),
            threading.active_count())

opened = []
def note(event, arguments):
    if event.startswith("socket."):
        opened.append(event)
sys.addaudithook(note)
for name in sys.argv[2:]:
    before = state()
    import_module(name)
    for old, new in zip(before, state()):
        if isinstance(old, dict):
            own = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
            allowed = ("KMP_", "TORCH", "NNCF", "PYTORCH")
            assert not {key for key in own if not key.startswith(allowed)}, (name, own)
        else:
            assert old == new, (name, old, new)
assert "socket.connect" not in opened, opened
"""


@pytest.mark.slow
def test_importing_changes_nothing(tmp_path):
    names = [
        "nbhelpers"
        + "".join(f".{part}" for part in file.relative_to(PACKAGE).with_suffix("").parts)
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.name not in ("__main__.py", "__init__.py")
    ]
    ended = subprocess.run(
        [sys.executable, "-c", WATCH, str(tmp_path), *names],
        capture_output=True,
        text=True,
        timeout=900,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "MPLCONFIGDIR": str(tmp_path.parent),
        },
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
