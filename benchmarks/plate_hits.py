"""False discoveries, power and EC50 of the hit call of notebook 05, on simulated screens with
injected truth.

Scores are drawn from injected damage with noise of plates, wells and fields; no image is drawn and
no network trained.

    .venv/bin/python benchmarks/plate_hits.py --screens 20
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from nbhelpers.core.files import write_json
from nbhelpers.core.means import count_interval, mean_interval
from nbhelpers.core.seeds import derive_seed
from nbhelpers.evaluation.plates import call_hits, normalised_effect
from nbhelpers.phantoms.layouts import read_layout
from nbhelpers.phantoms.plate import Compound, make_compounds

RESULTS = Path(__file__).resolve().parent / "results"
SEPARATION = 6.0  # of the controls, in log-odds
FIELDS = 4  # of a well
GOALS = {"false_discovery_rate": 0.1, "power": 0.8, "ec50_within_factor_2": 0.5}


@dataclass(frozen=True)
class Place:
    """Where treatments lie ("randomised" anew on each plate, "published", or "dose by row"), and
    what place does, in units of damage.

    ``gradient``: standard deviation between plates of the rise from the first to the last row;
    ``rows``: standard deviation of every row and every column by itself.
    """

    layout: str = "randomised"
    gradient: float = 0.0
    rows: float = 0.0

    def effects(self, wells: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
        """(wells,) of one plate."""
        down = wells["row"].rank(method="dense").astype(int).to_numpy() - 1
        across = wells["column"].to_numpy() - wells["column"].min()
        found = rng.normal(0, self.gradient) * (down / max(down.max(), 1) - 0.5)
        found = found + rng.normal(0, self.rows, down.max() + 1)[down]
        return found + rng.normal(0, self.rows, across.max() + 1)[across]


def simulate_wells(
    compounds: Sequence[Compound],
    *,
    plates_per_compound: int = 2,
    wells_per_condition: int = 6,
    well_sd: float = 0.15,
    field_sd: float = 0.35,
    place: Place = Place(),
    seed: int = 0,
) -> pd.DataFrame:
    """Wells of a screen with scores drawn from injected damage, like
    :func:`nbhelpers.evaluation.plates.well_scores`.

    ``compounds`` are injected (:func:`nbhelpers.phantoms.plate.make_compounds`), at 0, 1, 3 and 10
    µM without and with 30 µM amyloid-beta. Log-odds: a level of the plate + a separation (times a
    factor of the plate) x damage, and noise of well, field and place in units of damage.
    """
    rng = np.random.default_rng(seed)
    rows = []
    conditions = _conditions(place.layout).groupby(["dose_uM", "amyloid_uM"])
    conditions = conditions.head(wells_per_condition).reset_index(drop=True)
    treatment = ["dose_uM", "amyloid_uM"]
    on_plates = np.repeat(np.arange(len(compounds)), plates_per_compound)
    for number, index in enumerate(on_plates):
        compound = compounds[index]
        wells = conditions.copy()
        if place.layout == "randomised":
            shuffled = rng.permutation(len(wells))
            wells[treatment] = wells[treatment].to_numpy()[shuffled]
        injected = compound.normalised_effect(wells["dose_uM"], wells["amyloid_uM"])
        level = rng.normal(-SEPARATION / 2, 1)
        gain = SEPARATION * np.exp(rng.normal(0, 0.15))
        of_wells = rng.normal(0, well_sd, len(injected))[:, None]
        drawn = of_wells + rng.normal(0, field_sd, (len(injected), FIELDS))
        drawn += place.effects(wells, rng)[:, None]
        scores = level + gain * (injected[:, None] + drawn)
        rows.append(
            wells.assign(
                plate=f"plate{number + 1:03d}",
                compound=compound.name,
                kind=compound.kind,
                ec50_uM=compound.ec50_uM,
                log_odds=scores.mean(axis=1),
                n_fields=FIELDS,
            )
        )
    table = pd.concat(rows, ignore_index=True)
    probability = expit(table["log_odds"].to_numpy())
    return table.assign(probability=probability, damage=normalised_effect(table))


def _conditions(layout: str) -> pd.DataFrame:
    """Well, row, column, dose and amyloid-beta of 48 wells; "dose by row": as no plate should be
    laid out, one dose and one amyloid-beta in every row.
    """
    wells = read_layout("published")
    if layout != "dose by row":
        return wells
    order = wells.sort_values(["amyloid_uM", "dose_uM"], kind="stable")
    placed = wells.sort_values(["row", "column"]).reset_index(drop=True)
    treatment = ["dose_uM", "amyloid_uM"]
    placed[treatment] = order[treatment].to_numpy()
    return placed


def simulate_screens(
    screens: int = 20,
    *,
    protective: int = 6,
    toxic: int = 3,
    inert: int = 15,
    seed: int = 0,
    **settings,
) -> dict:
    """How well :func:`nbhelpers.evaluation.plates.call_hits` does on screens with injected truth.

    ``settings`` go to :func:`simulate_wells`. ``false_discovery_rate`` (mean over screens of the
    share of wrong calls), ``power`` (share of active compounds called in their direction),
    ``ec50_within_factor_2`` (of those with an EC50) and ``ec50_reported`` (share of right calls
    with one), ``ec50_covered`` (share of intervals that hold the truth), each an Estimate; and
    ``per_screen``.
    """
    kinds = ("protective",) * protective + ("toxic",) * toxic + ("inert",) * inert
    rows = []
    ratios = []
    covered = []
    reported = []
    for screen in range(screens):
        compounds = make_compounds(len(kinds), derive_seed(seed, "screen", screen), kinds)
        wells = simulate_wells(compounds, seed=derive_seed(seed, "scores", screen), **settings)
        hits = call_hits(wells).set_index("compound")
        kind = pd.Series({compound.name: compound.kind for compound in compounds})
        ec50 = pd.Series({compound.name: compound.ec50_uM for compound in compounds})
        call = hits["call"].reindex(kind.index)
        positive = ~call.isin(["no effect", "not assessable"])
        right = (call == kind) & (kind != "inert")
        rows.append(
            {
                "screen": screen,
                "called": int(positive.sum()),
                "wrong": int((positive & ~right).sum()),
                "found": int(right.sum()),
                "active": int((kind != "inert").sum()),
            }
        )
        fits = hits.loc[right[right].index]
        known = fits["ec50_uM"].notna()
        truth = ec50[fits.index]
        above = fits["ec50_low"].fillna(0) <= truth
        below = truth <= fits["ec50_high"].fillna(np.inf)
        ratios += list((fits["ec50_uM"] / truth)[known])
        reported += list(known)
        covered += list((above & below)[known])
    table = pd.DataFrame(rows)
    ratios = np.asarray(ratios, np.float64)
    rates = (table["wrong"] / table["called"].clip(lower=1)).to_numpy()
    wrong = mean_interval(rates)
    return {
        "screens": screens,
        "compounds_per_screen": len(kinds),
        "false_discovery_rate": replace(wrong, low=max(0.0, wrong.low or 0.0)),
        "power": count_interval(table["found"].sum(), table["active"].sum()),
        "ec50_within_factor_2": count_interval(((ratios > 0.5) & (ratios < 2)).sum(), len(ratios)),
        "ec50_reported": count_interval(sum(reported), len(reported)),
        "ec50_covered": count_interval(sum(covered), len(covered)),
        "per_screen": table.to_dict("records"),
    }


def sentence(found: dict) -> str:
    """The result in words, each figure with its interval and its number."""
    texts = {}
    for name in (*GOALS, "ec50_covered"):
        texts[name] = f"{found[name].text(2)}, n = {found[name].n}"
    return (
        f"Over {found['screens']} simulated screens of {found['compounds_per_screen']} compounds: "
        f"false discovery rate {texts['false_discovery_rate']}; power {texts['power']}; EC50 "
        f"within a factor of 2 {texts['ec50_within_factor_2']}; truth inside the EC50's interval "
        f"{texts['ec50_covered']}."
    )


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
        "well_sd": 0.15,
        "field_sd": 0.35,
    }
    found = simulate_screens(options.screens, seed=options.seed, **settings)
    found["sentence"] = sentence(found)
    settings |= {"fields": FIELDS, "place": asdict(Place())}
    found |= {"settings": settings, "seed": options.seed, "goals": GOALS}
    write_json(options.output, found)
    print(found["sentence"])


if __name__ == "__main__":
    main()
