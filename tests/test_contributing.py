"""The worked example of CONTRIBUTING.md runs as it stands there; CITATION.cff and the changelog fit
the package.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_a_model_and_a_data_set_in_one_file_each_train_above_the_floor():
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    space: dict = {"__name__": "example"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"CONTRIBUTING.md, example {number + 1}", "exec"), space)
    tested = space["tested"]
    images = space["images"]
    hits = (tested.predicted_index == tested.true_index).mean()
    floor = space["floor"].where(split="test")
    assert hits > 0.9 > (floor.predicted_index == floor.true_index).mean()
    assert (
        len(tested) == 20
        and images.synthetic
        and space["TwoLayers"]().settings == {"in_channels": 1, "classes": 2}
    )


def test_what_it_names_is_there():
    for path in re.findall(r"`((?:nbhelpers|tests|docs|profiles|workflow)/[\w/.]+\.\w+)`", TEXT):
        assert (ROOT / path).exists() or path in (
            "nbhelpers/models/two_layers.py",
            "nbhelpers/imagesets/discs.py",
        ), path


def test_citation_and_changelog_fit_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert (
        citation["cff-version"] == "1.2.0"
        and citation["title"]
        and citation["message"]
        and citation["authors"]
    )
    assert "## Not yet released" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
