"""What a notebook says about itself: title, question, needs, time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nbhelpers.core.errors import ParameterError, nearest
from nbhelpers.reports.parameters import (
    Parameter,
    parameters_cell,
    parameters_of_source,
    read_notebook,
)
from nbhelpers.reports.paths import Paths

FACTS = ("question", "needs", "time")
# What notebooks were called before; a number alone always means the present one.
OLD_NAMES = {
    "02_synapse_resnet_2d": "02_synapse_resnet_cnn",
    "synapse_resnet_2d": "02_synapse_resnet_cnn",
    "03_synapse_cnn_2d": "02_synapse_resnet_cnn",
    "synapse_cnn_2d": "02_synapse_resnet_cnn",
    "04_spine_tinycnn": "03_spine_tinycnn",
    "05_synapse_3d": "04_synapse_3d",
    "06_four_stain_resnet34": "05_four_stain_resnet34",
    "07_glomeruli_resnet50": "06_glomeruli_resnet50",
    "08_benchmark": "07_benchmark",
    "09_gradcam": "08_gradcam",
    "10_claims_audit": "09_claims_audit",
}


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

    def is_called(self, wanted: str) -> bool:
        """Whether ``wanted`` is its name without the number, or its number."""
        by_number = wanted.isdecimal() and re.match(rf"0*{int(wanted)}(?!\d)", self.name)
        return bool(by_number) or wanted == self.short_name

    def begins_a_word(self, wanted: str) -> bool:
        """Whether some part of its name that starts at a word begins with ``wanted``."""
        return bool(wanted) and f"_{wanted}" in f"_{self.name}"

    @cached_property
    def content(self) -> dict:
        return read_notebook(self.path)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        return parameters_of_source(parameters_cell(self.content, self.path.name), self.path.name)

    @cached_property
    def about(self) -> dict[str, str]:
        """title, question, needs and time, from the first markdown cell.

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
        return facts


def all_notebooks(paths: Paths) -> dict[str, Notebook]:
    """Every notebook of the checkout by its name, in the order of the file names."""
    files = sorted(paths.notebooks.glob("*.ipynb"))
    return {file.stem: Notebook(file) for file in files if not file.name.startswith(".")}


def find_notebook(asked: str, notebooks: Mapping[str, Notebook]) -> Notebook:
    """A notebook by its name, its name without number, its number, its path, an old name, or what
    begins its name or a word of it, where that is true of no other notebook.

    Raises ParameterError with the nearest right name, or with all that fit.
    """
    wanted = asked.rsplit("/", 1)[-1].removesuffix(".ipynb")
    name = new_name(asked, notebooks) or wanted
    if name in notebooks:
        return notebooks[name]
    fitting = [one for one in notebooks.values() if one.is_called(wanted)]
    fitting = fitting or [one for one in notebooks.values() if one.begins_a_word(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ParameterError(
            f"notebook {asked}",
            f"could be {' or '.join(one.name for one in fitting)}.",
            "Name one of them.",
        )
    names = {*notebooks, *(one.short_name for one in notebooks.values())}
    raise ParameterError(f"notebook {asked}", "there is no such notebook.", nearest(wanted, names))


def new_name(asked: str, notebooks: Mapping[str, Notebook]) -> str | None:
    """What a notebook is called now that was asked for by an old name; None for any other name."""
    wanted = asked.rsplit("/", 1)[-1].removesuffix(".ipynb")
    name = OLD_NAMES.get(wanted)
    return name if name in notebooks and wanted not in notebooks else None
