"""What a notebook says about itself: title, question, needs, time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nbhelpers.core.errors import ParameterError
from nbhelpers.reports.parameters import (
    Parameter,
    nearest,
    parameters_cell,
    parameters_of_source,
    read_notebook,
)
from nbhelpers.reports.paths import Paths

FACTS = ("question", "needs", "time")


@dataclass(frozen=True)
class Notebook:
    """One file in ``notebooks/``. ``name`` is the file name without its suffix."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def short_name(self) -> str:
        """The name without its number: 04_spine_tinycnn is also spine_tinycnn."""
        return re.sub(r"^\d+_", "", self.name)

    @cached_property
    def content(self) -> dict:
        return read_notebook(self.path)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        return parameters_of_source(parameters_cell(self.content, self.path.name), self.path.name)

    @cached_property
    def about(self) -> dict[str, str]:
        """title, question, needs and time, from ``metadata.nbhelpers`` or the first markdown cell.

        There they are written as paragraphs that begin with ``**Question.**``, ``**Needs.**``,
        ``**Time.**``.
        """
        facts = dict.fromkeys(("title", *FACTS), "")
        first = next(
            (cell["source"] for cell in self.content["cells"] if cell["cell_type"] == "markdown"),
            "",
        )
        heading = re.search(r"^#\s+(.+)$", first, re.MULTILINE)
        facts["title"] = heading[1].strip() if heading else self.name
        for fact in FACTS:
            found = re.search(
                rf"\*\*{fact}[.:?]?\*\*[.:?]?\s*(.+?)(?=\n\s*\n|\n\s*[-*]?\s*\*\*|\Z)",
                first,
                re.IGNORECASE | re.DOTALL,
            )
            if found:
                facts[fact] = " ".join(found[1].split())
        own = self.content.get("metadata", {}).get("nbhelpers", {})
        facts.update({key: str(own[key]) for key in facts if own.get(key)})
        return facts


def all_notebooks(places: Paths) -> dict[str, Notebook]:
    """Every notebook of the checkout by its name, in the order of the file names."""
    return {
        path.stem: Notebook(path)
        for path in sorted(places.notebooks.glob("*.ipynb"))
        if not path.name.startswith(".")
    }


def find_notebook(asked: str, notebooks: dict[str, Notebook]) -> Notebook:
    """A notebook by its name, its name without number, its number, or its path.

    Raises ParameterError with the nearest right name.
    """
    wanted = asked.rsplit("/", 1)[-1].removesuffix(".ipynb")
    if wanted in notebooks:
        return notebooks[wanted]
    matches = [
        notebook
        for notebook in notebooks.values()
        if wanted == notebook.short_name
        or (wanted.isdigit() and re.match(rf"0*{int(wanted)}(?!\d)", notebook.name))
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ParameterError(
            f"notebook {asked}", f"could be {' or '.join(item.name for item in matches)}."
        )
    names = {*notebooks, *(notebook.short_name for notebook in notebooks.values())}
    raise ParameterError(f"notebook {asked}", "there is no such notebook.", nearest(wanted, names))
