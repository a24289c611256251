"""Binary masks of dendritic spines: phantoms, the public set of Ghani et al. 2017, or the user's
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets.sources import NONE, load_source, loader

SOURCES = {
    "phantom": "nbhelpers.phantoms.spine:load_phantom_spines",
    "ghani": "nbhelpers.imagesets.ghani:load_ghani_spines",
    "folder": "nbhelpers.imagesets.own_spines:load_own_spines",
}
OWN = {
    "unlabelled": "nbhelpers.imagesets.own_spines:load_unlabelled_spines",
    "examples": "nbhelpers.imagesets.own_spines:write_example_masks",
}


def load_spines(
    data: str,
    *,
    data_folder: str | Path,
    data_dir: str = "",
    seed: int = 0,
    phantom: Mapping[str, object] = NONE,
) -> ImageSet:
    """Masks by the name of their source, (n, 1, 250, 250): "phantom", "ghani" or "folder".

    ``data_dir`` is the folder or CSV of "folder"; for "ghani" it may name a folder that already
    holds the two published files. ``phantom`` says the ``count`` of phantoms. Raises ParameterError
    when "folder" has no ``data_dir``.
    """
    return load_source(
        SOURCES,
        data,
        data_folder=data_folder,
        data_dir=data_dir,
        phantom={"seed": seed, **phantom},
        hint="Give the folder that holds one folder per class, or a CSV with path and label.",
    )


def load_unlabelled_spines(
    path: str | Path, data_folder: str | Path, classes: tuple[str, ...]
) -> ImageSet:
    """Masks without a label, see ``own_spines.load_unlabelled_spines``."""
    return loader(OWN, "unlabelled")(path, data_folder, classes)


def write_example_masks(path: str | Path, count: int, seed: int) -> Path:
    """Masks to try a prediction on, see ``own_spines.write_example_masks``."""
    return loader(OWN, "examples")(path, count, seed)
