"""Whether the intervals and calls of notebook 05 hold: coverage of Z', SSMD and EC50, false calls
where a plate has a gradient, and false warnings about the light on clean plates.

Everything is simulated; writes docs/plate_statistics.json.

    .venv/bin/python benchmarks/plate_statistics.py --simulations 1000 --screens 50 --plates 20
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from plate_hits import Place, simulate_screens, simulate_wells  # noqa: E402

from nbhelpers.audit.discriminant import label_from_features  # noqa: E402
from nbhelpers.audit.shortcuts import ERROR_RATE, NOTABLE_AUC  # noqa: E402
from nbhelpers.core.files import write_json  # noqa: E402
from nbhelpers.core.seeds import derive_seed  # noqa: E402
from nbhelpers.evaluation.plate_floors import background_features  # noqa: E402
from nbhelpers.evaluation.plates import (  # noqa: E402
    call_hits,
    fit_curve,
    hill,
    normalised_effect,
    separation,
    wells_of,
)
from nbhelpers.imagesets.plates import load_plates, normalise_to_controls  # noqa: E402
from nbhelpers.phantoms.plate import make_compounds  # noqa: E402

GOALS = {"separation": 0.93, "ec50": 0.92, "false_calls_per_screen": 0.08, "false_warnings": 0.05}
INERT = 15  # compounds of a screen of which none does anything
LIT = 0.2  # of the background, added to the wells with amyloid-beta: the true confound


def drawn(law: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size,) of mean 0 and standard deviation 1: "normal", "t5" (t with 5 degrees of freedom) or
    "skewed" (gamma of shape 2).
    """
    if law == "t5":
        return rng.standard_t(5, size) / np.sqrt(5 / 3)
    if law == "skewed":
        return (rng.gamma(2, 1, size) - 2) / np.sqrt(2)
    return rng.normal(size=size)


# Controls

WELLS = ((6, 6), (3, 3), (12, 6), (6, 12), (16, 4), (24, 24))
CONTROLS = ((3, 1), (6, 1), (10, 1), (20, 1), (10, 2), (10, 4), (10, 0.3))  # gap, sd of the second


def cover_separation(
    wells: tuple[int, int], gap: float, sd: float, law: str, simulations: int, seed: int
) -> dict:
    """Coverage and mean width of the intervals of Z' and SSMD; the first control has sd 1."""
    rng = np.random.default_rng(derive_seed(seed, "controls", wells, gap, sd, law))
    true = {"z_prime": 1 - 3 * (1 + sd) / gap, "ssmd": gap / np.hypot(1, sd)}
    held = dict.fromkeys(true, 0)
    widths = {name: [] for name in true}
    for _ in range(simulations):
        low = drawn(law, wells[0], rng)
        high = gap + sd * drawn(law, wells[1], rng)
        for name, found in zip(true, separation(low, high), strict=True):
            lowest = -np.inf if found.low is None else found.low
            held[name] += lowest <= true[name] <= found.high
            widths[name].append(found.high - lowest)
    row = {"wells": list(wells), "gap": gap, "sd": sd, "law": law}
    for name, value in true.items():
        row |= {name: float(value), f"{name}_coverage": float(held[name] / simulations)}
        width = float(np.median(widths[name]))
        row[f"{name}_width"] = width if np.isfinite(width) else None
    return row


# EC50

SEVEN = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
FOUR = (0.0, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Design:
    """Doses, wells per dose and plate, noise of a well; EC50, slope and plateau of the curve; how
    many plates, how their levels and effects differ, and the law of the noise.
    """

    doses: tuple[float, ...] = SEVEN
    wells: int = 4
    sd: float = 0.05
    ec50: float = 2.0
    slope: float = 1.2
    plateau: float = 0.1
    plates: int = 1
    plate_sd: float = 0.0
    gain_sd: float = 0.0
    law: str = "normal"


DESIGNS = (
    Design(),
    Design(sd=0.1),
    Design(sd=0.2, wells=3, ec50=5.0),
    Design(slope=3.5),
    Design(slope=0.7, plateau=0.0),
    Design(ec50=20.0),
    Design(ec50=0.2),
    Design(doses=FOUR, wells=6, slope=1.5),
    Design(doses=FOUR, wells=6, sd=0.15, ec50=3.0),
    Design(doses=FOUR, wells=12, sd=0.1, ec50=1.2, slope=1.8),
    Design(doses=(0.0, 1.0, 10.0, 100.0), wells=3, ec50=10.0),
    Design(plates=2, plate_sd=0.1, gain_sd=0.1),
    Design(plates=4, plate_sd=0.2, gain_sd=0.15, sd=0.1),
    Design(doses=FOUR, wells=6, sd=0.15, plates=3, plate_sd=0.2, gain_sd=0.1),
    Design(law="t5"),
    Design(law="skewed"),
)


def cover_ec50(design: Design, simulations: int, seed: int) -> dict:
    """Coverage of the EC50's interval among the curves with one, and how many have one."""
    rng = np.random.default_rng(derive_seed(seed, "EC50", *map(str, asdict(design).values())))
    dose = np.tile(np.repeat(design.doses, design.wells), design.plates)
    plate = np.repeat(np.arange(design.plates), len(design.doses) * design.wells)
    wells = pd.DataFrame({"dose_uM": dose, "amyloid_uM": 30.0, "compound": "C", "plate": plate})
    curve = hill(dose, 1.0, design.plateau, design.ec50, design.slope)
    held = []
    widths = []
    open_ends = 0
    for _ in range(simulations):
        gain = np.exp(rng.normal(0, design.gain_sd, design.plates))[plate]
        level = rng.normal(0, design.plate_sd, design.plates)[plate]
        noise = design.sd * drawn(design.law, len(dose), rng)
        found = fit_curve(wells_of(wells.assign(damage=level + gain * curve + noise), "C", 30.0))
        if not found["fitted"]:
            continue
        low = found["low"] or 0.0
        high = found["high"] or np.inf
        held.append(low <= design.ec50 <= high)
        widths.append(high - low)
        open_ends += not np.isfinite(high) or low == 0
    shares = {"coverage": float(np.mean(held)), "reported": len(held) / simulations}
    shares |= {"open_at_an_end": open_ends / len(held), "narrowest": float(min(widths))}
    return asdict(design) | shares


# Screens of which no compound does anything

PLACES = (
    Place("published"),
    Place("published", gradient=0.3),
    Place("published", gradient=0.3, rows=0.1),
    Place("randomised"),
    Place("randomised", gradient=0.3, rows=0.1),
    Place("dose by row", gradient=0.3),
)


def false_calls(place: Place, plates: int, screens: int, seed: int, blind: bool = False) -> dict:
    """How often inert compounds are called, per screen and per compound, and how many are refused.
    ``blind``: where wells lie is kept from the hit call.
    """
    inert = make_compounds(INERT, 0, ("inert",))
    calls = []
    for screen in range(screens):
        wells = simulate_wells(
            inert,
            plates_per_compound=plates,
            place=place,
            seed=derive_seed(seed, "inert", plates, screen),
        )
        if blind:
            wells = wells.drop(columns=["row", "column"])
            wells["damage"] = normalised_effect(wells)
        calls.append(call_hits(wells)["call"].to_numpy())
    called = ~np.isin(calls, ("no effect", "not assessable"))
    return asdict(place) | {
        "plates_per_compound": plates,
        "place_known": not blind,
        "false_calls_per_screen": float(called.any(axis=1).mean()),
        "false_calls_per_compound": float(called.mean()),
        "refused": float(np.mean(np.asarray(calls) == "not assessable")),
    }


# The light behind the cells


def light_warnings(plates: int, seed: int, data_folder: Path) -> dict:
    """How often the audit may warn that light and treatment go together: on clean randomised
    plates, as notebook 05 draws them, and on the same with ``LIT`` more background in treated
    wells. It warns from ``NOTABLE_AUC`` on where chance is as good in fewer than 1 of 200 sets, or
    fewer still, where other shortcuts are tried beside this one.
    """
    warned = {"clean": 0, "confounded": 0}
    for number in range(plates):
        raw = load_plates(
            "phantom",
            data_folder=data_folder,
            layout="randomised",
            size_px=64,
            seed=derive_seed(seed, "light", number) % 10**6,
            phantom={"plates": 8, "fields": 4},
        )
        treated = (raw.labels == 1)[:, None, None, None]
        brighter = np.clip(raw.pixels + LIT * 18 * treated, 0, 255).astype(np.uint8)
        lit = replace(raw, pixels=brighter, content_hash="")
        for name, images in (("clean", raw), ("confounded", lit)):
            seen = normalise_to_controls(images, wells="controls", cache_folder=data_folder / name)
            seen = seen.take(np.flatnonzero(seen.labels >= 0))
            told = label_from_features(
                background_features(seen), seen.labels, seen.groups, shuffles=1000, seed=seed
            )
            warned[name] += told.auc >= NOTABLE_AUC and told.p <= ERROR_RATE
    return {f"{name}_warned": count / plates for name, count in warned.items()} | {"sets": plates}


def each(rows: list, measure: Callable[..., dict]) -> list[dict]:
    """What ``measure`` gives for each row of arguments, said as it comes."""
    found = []
    for row in rows:
        found.append(measure(*row))
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--screens", type=int, default=50)
    parser.add_argument("--plates", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-folder", type=Path, default=ROOT / "data")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "plate_statistics.json")
    options = parser.parse_args()
    seed = options.seed
    count = options.simulations
    cells = []
    for wells in WELLS:
        cells += [(wells, gap, sd, "normal", count, seed) for gap, sd in CONTROLS]
        cells += [(wells, 10, 1, law, count, seed) for law in ("t5", "skewed")]
    screens = [(place, 2, options.screens, seed) for place in PLACES]
    screens += [(place, 1, options.screens, seed) for place in (PLACES[2], PLACES[4])]
    screens.append((PLACES[1], 2, options.screens, seed, True))
    power = []
    for place in (PLACES[4], PLACES[2]):
        found = simulate_screens(max(2, options.screens // 5), seed=seed, place=place)
        found.pop("per_screen")
        power.append(asdict(place) | found)
    found = {
        "goals": GOALS,
        "settings": {"simulations": count, "screens": options.screens, "seed": seed},
        "separation": each(cells, cover_separation),
        "ec50": each([(design, count, seed) for design in DESIGNS], cover_ec50),
        "inert_screens": each(screens, false_calls),
        "power": power,
        "light": light_warnings(options.plates, seed, options.data_folder),
    }
    write_json(options.output, found)


if __name__ == "__main__":
    main()
