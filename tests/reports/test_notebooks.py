"""How notebooks are asked for: by name, number, part of a name, or a name they had before."""

from __future__ import annotations

import pytest

from nbhelpers.core.errors import ParameterError
from nbhelpers.reports.notebooks import OLD_NAMES, all_notebooks, find_notebook, new_name
from nbhelpers.reports.paths import Paths

NAMES = (
    "demo2d",
    "01_extract_microns_patches",
    "02_synapse_resnet_cnn",
    "03_spine_tinycnn",
    "04_synapse_3d",
    "05_four_stain_resnet34",
    "06_glomeruli_resnet50",
    "07_benchmark",
    "08_gradcam",
    "09_claims_audit",
)


@pytest.fixture
def notebooks(tmp_path):
    """Notebooks of which only the names matter."""
    (tmp_path / "notebooks").mkdir()
    for name in NAMES:
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text("{}")
    return all_notebooks(Paths(tmp_path))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("extract_microns", "01_extract_microns_patches"),
        ("four_stain", "05_four_stain_resnet34"),
        ("glomeruli", "06_glomeruli_resnet50"),
        ("gradcam", "08_gradcam"),
        ("spine", "03_spine_tinycnn"),
        ("tinycnn", "03_spine_tinycnn"),
        ("spine_tinycnn", "03_spine_tinycnn"),
        ("cnn", "02_synapse_resnet_cnn"),
        ("synapse_3d", "04_synapse_3d"),
        ("synapse_r", "02_synapse_resnet_cnn"),
        ("demo", "demo2d"),
        ("04", "04_synapse_3d"),
        ("4", "04_synapse_3d"),
        ("notebooks/08_gradcam.ipynb", "08_gradcam"),
    ],
)
def test_a_short_name_that_fits_one_notebook_is_taken(notebooks, asked, name):
    assert find_notebook(asked, notebooks).name == name
    assert new_name(asked, notebooks) is None


@pytest.mark.parametrize(
    ("asked", "fitting"),
    [
        ("synapse", ("02_synapse_resnet_cnn", "04_synapse_3d")),
        (
            "resnet",
            ("02_synapse_resnet_cnn", "05_four_stain_resnet34", "06_glomeruli_resnet50"),
        ),
    ],
)
def test_a_short_name_that_fits_several_is_answered_with_all_of_them(notebooks, asked, fitting):
    with pytest.raises(ParameterError, match=" or ".join(fitting)):
        find_notebook(asked, notebooks)


@pytest.mark.parametrize("asked", ["ynapse", "11", "", "glomerulus", "²"])
def test_what_fits_none_is_refused(notebooks, asked):
    with pytest.raises(ParameterError, match="no such notebook"):
        find_notebook(asked, notebooks)


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_an_old_name_finds_the_new_notebook(notebooks, old, new):
    assert find_notebook(old, notebooks).name == new == new_name(old, notebooks)
    assert find_notebook(f"notebooks/{old}.ipynb", notebooks).name == new


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_an_old_name_means_the_old_notebook_as_long_as_that_is_there(tmp_path, old, new):
    (tmp_path / "notebooks").mkdir()
    for name in {*OLD_NAMES} - {"synapse_resnet_2d", "synapse_cnn_2d"}:
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text("{}")
    notebooks = all_notebooks(Paths(tmp_path))
    assert find_notebook(old, notebooks).name.endswith(old)
    assert new_name(old, notebooks) is None


def test_the_command_says_the_new_name_in_one_line(make_checkout, monkeypatch, capsys):
    from nbhelpers.runner import command_line

    checkout = make_checkout(notebook="03_spine_tinycnn")
    monkeypatch.setenv("NBHELPERS_ROOT", str(checkout.root))
    assert command_line.main(["04_spine_tinycnn", "-p", "steps", "5", "--dry-run"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "04_spine_tinycnn is now called 03_spine_tinycnn."
    assert second.split() == ["03_spine_tinycnn", "would", "run"]
    assert command_line.main(["spine", "--dry-run"]) == 0
    assert "is now called" not in capsys.readouterr().out
