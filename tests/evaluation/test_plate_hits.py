"""Screens with injected compounds: the hit call finds what is there, and their wells look like
wells.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import pandas as pd
import pytest

from nbhelpers.phantoms.plate import make_compounds

BENCHMARK = runpy.run_path(Path(__file__).parents[2] / "benchmarks" / "plate_hits.py")
simulate_screens = BENCHMARK["simulate_screens"]
simulate_wells = BENCHMARK["simulate_wells"]


def test_simulated_screens_count_what_they_injected():
    found = simulate_screens(
        2, protective=2, toxic=1, inert=2, seed=3
    )  # what holds on average needs 20, see below
    table = pd.DataFrame(found["per_screen"])
    assert (
        len(table) == 2
        and (table["active"] == 3).all()
        and (table["wrong"] + table["found"] == table["called"]).all()
    )
    assert found["false_discovery_rate"].value == pytest.approx(
        (table["wrong"] / table["called"]).mean()
    )
    assert found["power"].n == 6 and found["power"].value == pytest.approx(table["found"].sum() / 6)
    assert found["ec50_reported"].n == table["found"].sum() >= found["ec50_within_factor_2"].n


def test_a_screen_of_noise_finds_little():
    found = simulate_screens(2, protective=2, toxic=1, inert=2, seed=3, well_sd=5.0)
    assert found["power"].value < 0.5


def test_over_20_screens_false_discoveries_power_and_ec50_hold():
    found = simulate_screens(20, seed=1)
    assert found["false_discovery_rate"].value <= 0.1 and found["power"].value >= 0.8
    assert found["ec50_within_factor_2"].value > 0.5 and found["ec50_covered"].value > 0.85


def test_wells_of_a_simulation_look_like_wells():
    wells = simulate_wells(make_compounds(2), wells_per_condition=3)
    assert isinstance(wells, pd.DataFrame) and wells.groupby(["plate", "well"]).size().eq(1).all()
    assert {"compound", "dose_uM", "amyloid_uM", "log_odds", "damage", "probability"} <= set(wells)
