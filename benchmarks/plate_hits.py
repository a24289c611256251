"""False discoveries, power and EC50 of the hit call of notebook 06, on simulated screens with
injected truth.

Scores are drawn from injected damage with noise of plates, wells and fields; no image is drawn and
no network trained.

    .venv/bin/python benchmarks/plate_hits.py --screens 20
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nbhelpers.core.files import write_json
from nbhelpers.studies.plate_screens import simulate_screens

RESULTS = Path(__file__).resolve().parent / "results"
GOALS = {"false_discovery_rate": 0.1, "power": 0.8, "ec50_within_factor_2": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--screens", type=int, default=20)
    parser.add_argument("--plates-per-compound", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "plate_hits.json")
    options = parser.parse_args()
    settings = {
        "plates_per_compound": options.plates_per_compound,
        "wells_per_condition": 6,
        "fields": 4,
        "well_sd": 0.15,
        "field_sd": 0.35,
    }
    found = simulate_screens(options.screens, seed=options.seed, **settings)
    found |= {
        "settings": settings,
        "seed": options.seed,
        "goals": GOALS,
        "sentence": sentence(found),
    }
    write_json(options.output, found)
    print(found["sentence"])


def sentence(found: dict) -> str:
    """The result in words, each figure with its interval and its number."""
    texts = {
        name: f"{found[name].text(2)}, n = {found[name].n}" for name in (*GOALS, "ec50_covered")
    }
    return (
        f"Over {found['screens']} simulated screens of {found['compounds_per_screen']} compounds: "
        f"false discovery rate "
        f"{texts['false_discovery_rate']}, power {texts['power']}, EC50 within a factor of 2 "
        f"{texts['ec50_within_factor_2']}, truth inside the EC50's interval "
        f"{texts['ec50_covered']}."
    )


if __name__ == "__main__":
    main()
