"""From fields to wells, conditions and compounds: averages of log-odds, assay quality,
dose-response curves, hits.

Scores are averaged as log-odds, because probabilities of a sure network are all 0 or 1 and hide the
dose. The unit that is resampled is the well. The column ``damage`` is the normalised effect: the
log-odds of amyloid-beta on a scale of each plate's own controls, 0 as its negative controls, 1 as
its positive controls (amyloid-beta without compound). Which wells those are is known from the
layout, and what the network gave them plays no part in its training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit

from nbhelpers.core.errors import InputError, PredictionsError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.intervals import LEVEL, grouped_share
from nbhelpers.core.means import mean_interval
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.comparison import adjusted_for_number

SURE = 0.999  # a probability beyond it, or below 1 less it, is called saturated
FEWEST_WELLS = 3  # of each control, for a spread
WELL_KEYS = ["plate", "well"]
CONDITION = ["compound", "dose_uM", "amyloid_uM"]
LARGEST_CHANGE = 1.5  # of a dose-response curve: beyond the controls it has little meaning
SLOPES = (0.5, 4.0)  # Hill's slope
BEYOND = 3.0  # the EC50 is looked for up to this factor beyond the doses tested
NEAR = 1.25  # an EC50 within this factor of the doses tested counts as among them
FEWEST_DOSES = 4  # with dose 0, for a curve
FEWEST_OF_A_TREND = 6  # wells
# lower ends of what assays are called by their Z' (Zhang et al. 1999, J Biomol Screen 4, 67) and,
# with a strong positive control, by their SSMD (Zhang 2007, Genomics 89, 552)
Z_PRIME_WORDS = {0.5: "excellent", 0.0: "marginal", -np.inf: "not separated"}
SSMD_WORDS = {3.0: "excellent", 2.0: "good", 1.0: "inferior", -np.inf: "poor"}
SIDES = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
NORMAL_WELLS = 10  # of each control, below which nobody can see whether wells are normal
DIRECTIONS = {"protection": "protective", "toxicity": "toxic"}
FALSE_DISCOVERIES = 0.1  # the share of calls that may be wrong
LEAST_EFFECT = 0.2  # of the damage of amyloid-beta


# Fields, wells, conditions


def field_scores(images: ImageSet, scores: Predictions | np.ndarray) -> pd.DataFrame:
    """The table of the images with ``log_odds`` and ``probability`` of the last class, one row per
    field.

    ``scores`` is (n, 2) logits of all fields in their order, or (n,) log-odds, better than
    Predictions, whose probabilities have lost the log-odds beyond about 16 (fields that are not
    predicted are left out then). Raises InputError when numbers differ or are not finite,
    PredictionsError for more than two classes or several predictions of one field.
    """
    table = images.table
    if isinstance(scores, Predictions):
        if len(scores.classes) != 2:
            raise PredictionsError(
                "predictions", f"there are {len(scores.classes)} classes.", "Plates need two."
            )
        if scores.table["id"].duplicated().any():
            raise PredictionsError(
                "predictions",
                "a field is predicted more than once.",
                "Give one model and one fold.",
            )
        table = table.iloc[images.positions(scores.table["id"])].reset_index(drop=True)
        scores = np.log(np.clip(scores.probabilities, 1e-7, 1))
    scores = np.asarray(scores, np.float64)
    if len(scores) != len(table) or scores.shape[1:] not in ((), (2,)):
        raise InputError(
            "scores",
            f"their shape is {scores.shape} for {len(table)} fields.",
            "Give (n, 2) logits or (n,) log-odds, in the order of the images.",
        )
    log_odds = scores[:, 1] - scores[:, 0] if scores.ndim == 2 else scores
    if not np.isfinite(log_odds).all():
        raise InputError(
            f"field {table['id'].iloc[int(np.flatnonzero(~np.isfinite(log_odds))[0])]}",
            "its score is not a finite number.",
            "Check the network and its input.",
        )
    return table.assign(log_odds=log_odds, probability=expit(log_odds))


def group_by_well(predictions: Predictions, images: ImageSet) -> Predictions:
    """The same predictions with the well as group, so that intervals resample wells."""
    rows = images.table.iloc[images.positions(predictions.table["id"])]
    names = (rows["plate"] + "/" + rows["well"]).to_numpy()
    return Predictions(predictions.table.assign(group=names), predictions.classes)


def saturation(fields: pd.DataFrame) -> tuple[Estimate, str]:
    """The share of fields with a probability beyond .999 or below .001, and a sentence about it.

    There probabilities cannot tell a strong effect from a very strong one; log-odds can.
    """
    sure = (fields["probability"] > SURE) | (fields["probability"] < 1 - SURE)
    well = fields.groupby(WELL_KEYS).ngroup()
    sizes = np.bincount(well).astype(float)
    share = grouped_share(np.bincount(well, sure), sizes, len(fields))
    return share, (
        f"{sure.sum()} of {len(fields)} fields ({100 * share.value:.0f} %) have a probability "
        f"above {SURE} or below {1 - SURE:.3f}: wells are averaged and compared as log-odds."
    )


def well_scores(fields: pd.DataFrame) -> pd.DataFrame:
    """One row per well: mean ``log_odds`` of its fields, ``probability`` of that,
    ``mean_probability`` (the published way), ``n_fields``, ``field_sd``, ``damage`` (see
    :func:`normalised_effect`), and the ``controls`` of its plate: "both", "negative only",
    "positive only" or "none".
    """
    constant = "label row column treatment part scaled_by kind ec50_uM".split()
    constant = [name for name in (*constant, *CONDITION) if name in fields]
    grouped = fields.groupby(WELL_KEYS, sort=True)
    table = fields.drop_duplicates(WELL_KEYS).set_index(WELL_KEYS)[constant].sort_index()
    table = table.assign(
        n_fields=grouped.size(),
        log_odds=grouped["log_odds"].mean(),
        field_sd=grouped["log_odds"].std(),
        mean_probability=grouped["probability"].mean(),
    )
    table["probability"] = expit(table["log_odds"].to_numpy())
    table = table.reset_index()
    negative, positive = (
        pd.Series(kind).groupby(table["plate"]).transform("any") for kind in _controls(table)
    )
    kinds = ["both", "negative only", "positive only"]
    controls = np.select([negative & positive, negative, positive], kinds, "none")
    return table.assign(damage=normalised_effect(table), controls=controls)


def _controls(wells: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool each: negative controls, and positive ones (the most amyloid-beta); both without
    compound."""
    plain = (wells["dose_uM"] == 0).to_numpy()
    amyloid = wells["amyloid_uM"].to_numpy()
    most = wells["amyloid_uM"].max()
    return plain & (amyloid == 0), plain & (amyloid > 0) & (amyloid == most)


def normalised_effect(wells: pd.DataFrame) -> np.ndarray:
    """(n,) log-odds of each well between the controls of its plate: 0 as the negative, 1 as the
    positive ones.

    NaN on plates that lack one of the controls, or where amyloid-beta does not raise the log-odds.
    """
    negative, positive = _controls(wells)
    score = wells["log_odds"]
    plate = wells["plate"]
    low = score.where(negative).groupby(plate).transform("mean")
    high = score.where(positive).groupby(plate).transform("mean")
    return ((score - low) / (high - low).where(high > low)).to_numpy(np.float64)


def condition_scores(wells: pd.DataFrame, by: Sequence[str] = CONDITION) -> pd.DataFrame:
    """One row per condition: ``n_wells``, ``n_plates``, mean ``log_odds``, ``probability`` and
    ``damage`` of its wells, each with ``_low`` and ``_high`` (95 % by well; missing for a single
    well), and a ``note``. Damage is that of the wells that have one, which the note counts
    where some have none.
    """
    rows = []
    for key, part in wells.groupby(list(by), sort=True):
        row = dict(zip(by, key, strict=True))
        row |= {"n_wells": len(part), "n_plates": part["plate"].nunique(), "note": ""}
        for name in ("log_odds", "damage"):
            values = part[name].to_numpy(float)
            if name == "damage":
                values = values[np.isfinite(values)]
            found = Estimate.undefined("no plate with both controls")
            if len(values):
                found = mean_interval(values)
            for column, number in found.columns(name, f"{name}_low", f"{name}_high").items():
                row[column] = np.nan if number is None else number
            row["note"] = row["note"] or _note_on_wells(found, len(part))
        for side in ("", "_low", "_high"):
            row[f"probability{side}"] = float(expit(row[f"log_odds{side}"]))
        rows.append(row)
    return pd.DataFrame(rows)


def _note_on_wells(found: Estimate, n_wells: int) -> str:
    """The note or reason of an interval, in words of wells."""
    if found.n == 1:
        return "one well: how wells differ cannot be seen"
    if found.reason:
        return found.reason.replace("groups", "wells")
    notes = [found.note.replace("groups", "wells")] if found.note else []
    if found.n < n_wells:
        notes.append(f"damage of {found.n} wells")
    return "; ".join(notes)


# How far apart the controls are


def control_quality(wells: pd.DataFrame) -> pd.DataFrame:
    """Z'-factor (Zhang et al. 1999) and SSMD (Zhang 2007) of each plate, between its control wells,
    on log-odds.

    Columns: ``plate``, ``n_negative``, ``n_positive``, ``z_prime`` and ``ssmd`` with ``_low`` and
    ``_high`` (95 %), what they are called (``verdict`` by Z', ``ssmd_verdict``), and ``note``,
    what the intervals hang on. An assay is called by its whole interval: "marginal to excellent"
    where that holds both. "reversed" are controls whose SSMD lies below 0 beyond chance; where it
    may be 0, Z' has no lower end (NaN).
    """
    negative, positive = _controls(wells)
    rows = []
    for plate in sorted(wells["plate"].unique()):
        here = (wells["plate"] == plate).to_numpy()
        low = wells.loc[here & negative, "log_odds"].to_numpy()
        high = wells.loc[here & positive, "log_odds"].to_numpy()
        controls = {"negative": low, "positive": high}
        scarce = [name for name, values in controls.items() if len(values) < FEWEST_WELLS]
        said = ""
        if scarce:
            few = " and ".join(scarce)
            said = f"not known: fewer than {FEWEST_WELLS} {few} control wells"
        elif not (np.ptp(low) > 0 and np.ptp(high) > 0):
            said = "not known: the control wells of a kind are all the same"
        both = [Estimate(np.nan, np.nan, np.nan, note="")] * 2 if said else separation(low, high)
        z_prime, ssmd = both
        verdicts = [said] * 2
        if ssmd.high < 0:
            verdicts = ["reversed"] * 2
        elif not said:
            verdicts = [_called(z_prime, Z_PRIME_WORDS), _called(ssmd, SSMD_WORDS)]
        row = {
            "plate": plate,
            "n_negative": len(low),
            "n_positive": len(high),
            **z_prime.columns("z_prime", "z_prime_low", "z_prime_high"),
            "verdict": verdicts[0],
            **ssmd.columns("ssmd", "ssmd_low", "ssmd_high"),
            "ssmd_verdict": verdicts[1],
            "note": ssmd.note,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _called(found: Estimate, words: Mapping[float, str]) -> str:
    """What the interval is called: one word, or from one to another."""
    ends = [-np.inf if found.low is None else found.low, found.high]
    low, high = (next(word for least, word in words.items() if end >= least) for end in ends)
    return low if low == high else f"{low} to {high}"


def separation(low: np.ndarray, high: np.ndarray) -> tuple[Estimate, Estimate]:
    """Z'-factor and SSMD of ``high`` wells over ``low`` ones, (n,) float each, with intervals.

    Generalised confidence intervals (Weerahandi 1993, JASA 88, 899): the variances that chi-square
    allows, each with the gap that a normal distribution allows at them. Where one side has all the
    spread this is the inverted noncentral t; otherwise it needs no degrees of freedom. Exact but to
    the grid of variances, deterministic, never without width. It holds for normally distributed
    wells, and ``note`` says where that is an assumption. Z' has no lower end where the SSMD may
    be 0.
    """
    from scipy.stats import chi2, shapiro

    grid = (np.arange(40) + 0.5) / 40
    of_low, of_high = (
        values.var(ddof=1) * (len(values) - 1) / chi2.ppf(grid, len(values) - 1)
        for values in (low, high)
    )
    of_low = of_low[:, None]
    error = np.sqrt(of_low / len(low) + of_high / len(high))
    spread = np.sqrt(of_low + of_high)
    bands = 3 * (np.sqrt(of_low) + np.sqrt(of_high))
    gap = high.mean() - low.mean()
    sign = -1.0 if gap < 0 else 1.0
    ssmd = gap / np.hypot(low.std(ddof=1), high.std(ddof=1))
    ends = sorted(sign * _quantile(abs(gap), error, spread, share) for share in SIDES)
    # 1 - bands / gap below y is gap below bands / (1 - y)
    nearest, farthest = (_quantile(abs(gap), error, bands, share) for share in SIDES)
    bands_seen = 3 * (low.std(ddof=1) + high.std(ddof=1))
    z_prime = float(1 - bands_seen / abs(gap)) if gap else None
    note = f"of {len(low)} and {len(high)} wells: that wells are normal is assumed, not seen"
    if min(len(low), len(high)) >= NORMAL_WELLS:
        p = min(shapiro(values).pvalue for values in (low, high))
        note = "" if p >= 0.05 else f"wells are not normal (p {p:.2g}): intervals are too narrow"
    about = {"n": len(low) + len(high), "method": "generalised interval", "note": note}
    no_end = "the SSMD may be 0" if nearest <= 0 else None
    lowest = None if nearest <= 0 else float(1 - 1 / nearest)
    highest = float(1 - 1 / farthest)
    return (
        Estimate(z_prime, lowest, highest, reason=no_end, **about),
        Estimate(float(ssmd), float(ends[0]), float(ends[1]), **about),
    )


def _quantile(gap: float, error: np.ndarray, scale: np.ndarray, share: float) -> float:
    """The ratio of the true gap to ``scale`` below which ``share`` of what the grid allows lies."""
    from scipy.optimize import brentq
    from scipy.special import ndtr

    reach = float((gap + 10 * error).max() / scale.min())
    return brentq(lambda at: ndtr((at * scale - gap) / error).mean() - share, -reach, reach)


# Dose and response


def hill(
    dose: np.ndarray | float, at_zero: float, at_most: float, ec50: float, slope: float
) -> np.ndarray:
    """Hill's curve: ``at_zero`` without the compound, ``at_most`` far above its EC50."""
    dose = np.asarray(dose, np.float64)
    with np.errstate(divide="ignore", over="ignore"):
        return at_zero + (at_most - at_zero) / (1 + (ec50 / dose) ** slope)


@dataclass(frozen=True)
class PlateWells:
    """What one compound does in wells without or with amyloid-beta, and what else differs between
    the wells of its plates.

    ``dose`` (n,) is 0 in all wells that are not ``mine`` (n,) bool; ``response`` (n,) is the
    normalised effect; ``blocks`` are per plate its rows and an orthonormal basis (wells, columns)
    of the level of the plate, of every other treatment on it and, where it is known where wells
    lie, of its rows and columns: two-way effects of place, which say nothing of the compound.
    """

    dose: np.ndarray
    response: np.ndarray
    mine: np.ndarray
    blocks: Sequence[tuple[np.ndarray, np.ndarray]]

    @property
    def taken(self) -> int:
        """How many numbers the plates and places take."""
        return sum(basis.shape[1] for _, basis in self.blocks)

    @property
    def leverage(self) -> np.ndarray:
        """(n,) how much of each well goes to its plate and place."""
        found = np.zeros(len(self.dose))
        for rows, basis in self.blocks:
            found[rows] = (basis**2).sum(axis=1)
        return found

    def cleaned(self, values: np.ndarray) -> np.ndarray:
        """(..., n) values without what the plates and places explain."""
        found = np.array(values, np.float64)
        for rows, basis in self.blocks:
            found[..., rows] -= (found[..., rows] @ basis) @ basis.T
        return found

    def why_not(self) -> str:
        """Why the dose cannot be told from the place of the wells; empty where it can."""
        rank = np.unique(self.dose, return_inverse=True)[1] * self.mine
        left = (self.cleaned(rank) ** 2).sum()
        if left <= 1e-6 * (rank**2).sum() or len(self.dose) - self.taken < 4:
            return (
                "dose and place are one: rows and columns of the plates explain what the doses do"
            )
        steps = self.cleaned(self.steps)
        products = steps @ steps.T
        # where another mixture of doses looks the same, least squares would report that mixture
        told = np.linalg.pinv(products, rcond=1e-9, hermitian=True) @ products
        if len(steps) and not np.allclose(told[0], np.eye(len(steps))[0], atol=1e-6):
            return "the effect of the highest dose cannot be told from the place of its wells"
        return ""

    @property
    def steps(self) -> np.ndarray:
        """(doses above the lowest, n) which of the own wells have each dose, the highest first."""
        doses, rank = np.unique(self.dose, return_inverse=True)
        return np.eye(len(doses))[:0:-1, rank] * self.mine


def wells_of(wells: pd.DataFrame, compound: str, amyloid_uM: float) -> PlateWells:
    """The wells of a compound, and those at dose 0 on its plates whatever they are called, at one
    dose of amyloid-beta, among all wells of these plates that have a normalised effect.
    """
    from scipy.linalg import orth

    wells = wells[wells["damage"].notna()]
    own = (wells["compound"] == compound) & (wells["amyloid_uM"] == amyloid_uM)
    plates = wells.loc[own & (wells["dose_uM"] > 0), "plate"]
    wells = wells[wells["plate"].isin(plates)].reset_index(drop=True)
    plain = wells["dose_uM"] == 0
    mine = (wells["amyloid_uM"] == amyloid_uM) & (plain | (wells["compound"] == compound))
    named = wells.assign(compound=wells["compound"].where(~plain, ""))
    treatment = (named.groupby(CONDITION).ngroup() + 1).where(~mine, 0)
    known = wells.reindex(columns=["row", "column"]).dropna(axis=1)
    varying = known.assign(treatment=treatment).astype(str)
    blocks = []
    for rows in wells.groupby("plate").indices.values():
        columns = pd.get_dummies(varying.iloc[rows], dtype=float).to_numpy()
        blocks.append((rows, orth(columns, rcond=1e-9)))
    return PlateWells(
        wells["dose_uM"].where(mine, 0.0).to_numpy(np.float64),
        wells["damage"].to_numpy(np.float64),
        mine.to_numpy(bool),
        blocks,
    )


def fit_curve(wells: PlateWells) -> dict:
    """Hill's curve of four parameters through the wells, or why there is none.

    ``fitted`` (bool) and ``reason``; ``at_zero``, ``at_most``, ``slope``; ``ec50_uM`` with ``low``
    and ``high`` (95 %; None on a side where the doses set no bound); ``p`` (F test against no
    response); ``n_wells``, ``doses``. Least squares, plates and places taken out, slope 0.5 to 4, a
    change of at most 1.5. The interval is that of the profile likelihood with an F quantile (Bates
    and Watts 1988): all EC50 whose best curve fits about as well; its ends are solved for. There is
    no fit for fewer than 4 doses or 6 wells and where the response does not change beyond chance
    (p .05); an EC50 that lies outside the doses tested, its whole interval too, is not assessable.
    It is the EC50 of the network's score, which need not be proportional to the damage.
    """
    from scipy.optimize import brentq, minimize_scalar
    from scipy.stats import f as f_distribution

    doses = np.unique(wells.dose[wells.mine])
    n_wells = int(wells.mine.sum())
    found = dict.fromkeys(("ec50_uM", "low", "high", "at_zero", "at_most", "slope", "p"))
    found |= {"fitted": False, "reason": "", "n_wells": n_wells, "doses": doses.tolist()}
    free = len(wells.dose) - wells.taken - 3
    if len(doses) < FEWEST_DOSES or n_wells < FEWEST_OF_A_TREND or free < 1:
        found["reason"] = f"{len(doses)} doses in {n_wells} wells are too few for a curve"
        return found
    found["reason"] = wells.why_not()
    if found["reason"]:
        return found
    response = wells.cleaned(wells.response)
    total = float((response**2).sum())
    if total < 1e-18 * (wells.response**2).sum():
        total = 0.0  # what is left is rounding

    slopes = np.geomspace(*SLOPES, 15)

    def errors(log_ec50: float, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared error and change for each slope: at a given EC50 and slope that is a line."""
        share = wells.cleaned(hill(wells.dose, 0, 1, np.exp(log_ec50), slopes[:, None]))
        along = share @ response
        size = (share**2).sum(axis=1)
        change = np.clip(along / np.maximum(size, 1e-12), -LARGEST_CHANGE, LARGEST_CHANGE)
        error = total - 2 * change * along + change**2 * size
        return np.maximum(error, 1e-12 * total + 1e-300), change

    def best(log_ec50: float) -> tuple[float, float, float]:
        """Squared error, slope and change of the best curve with this EC50."""
        near = slopes
        for _ in range(3):
            error, change = errors(log_ec50, near)
            at = int(error.argmin())
            found = float(error[at]), float(near[at]), float(change[at])
            near = np.geomspace(near[max(at - 1, 0)], near[min(at + 1, len(near) - 1)], 9)
        return found

    lowest = doses[doses > 0].min()
    highest = doses.max()
    grid = np.linspace(np.log(lowest / BEYOND), np.log(highest * BEYOND), 61)
    at = int(np.argmin([errors(x, slopes)[0].min() for x in grid]))
    around = (grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)])
    middle = minimize_scalar(
        lambda x: best(x)[0], bounds=around, method="bounded", options={"xatol": 1e-4}
    ).x
    least, slope, change = best(middle)
    found["p"] = float(f_distribution.sf((total - least) / 3 / (least / free), 3, free))
    if not found["p"] < 0.05:
        found["reason"] = f"no change with the dose beyond chance (p {found['p']:.2f})"
        return found
    limit = least * (1 + f_distribution.ppf(LEVEL, 1, free) / free)
    ends = []
    for outer in (grid[grid < middle], grid[grid > middle][::-1]):
        side = [*outer, middle]  # from outside inwards
        first = next(index for index, x in enumerate(side) if best(x)[0] <= limit)
        if first == 0:
            ends.append(None)
            continue
        end = brentq(lambda x: best(x)[0] - limit, side[first - 1], side[first])
        ends.append(float(np.exp(end)))
    low, high = ends
    ec50 = float(np.exp(middle))
    share = hill(wells.dose, 0, 1, ec50, slope)
    at_zero = float((wells.response - change * share)[wells.mine].mean())
    found |= {"at_zero": at_zero, "at_most": at_zero + change, "slope": slope}
    found |= {"low": low, "high": high}
    reaches = None not in (low, high) and high >= lowest / NEAR and low <= highest * NEAR
    if low is None and high is None:
        found["reason"] = "not assessable: any half effect fits about as well"
    elif not (reaches or lowest / NEAR <= ec50 <= highest * NEAR):
        side = f"above {highest:g}" if ec50 > highest else f"below {lowest:g}"
        found["reason"] = (
            f"not assessable: the half effect lies {side} uM, outside the doses tested"
        )
    return found if found["reason"] else found | {"fitted": True, "ec50_uM": ec50}


# Compounds


def call_hits(wells: pd.DataFrame) -> pd.DataFrame:
    """What each compound does, with the rate of false discoveries over compounds and directions
    held down to a tenth.

    Protective: damage falls with the dose in wells with amyloid-beta. Toxic: damage rises with the
    dose in wells without it. Each is a one-sided test of the trend over the ranks of the doses,
    with the levels of plates and, where it is known where wells lie, their rows and columns taken
    out (least squares, robust HC3 errors), and all p-values together are adjusted by Benjamini and
    Hochberg (1995). A ``call`` needs an adjusted p of at most ``FALSE_DISCOVERIES`` and an effect
    of at least ``LEAST_EFFECT``: "protective", "toxic", "protective and toxic", "no effect"; "not
    assessable" where dose and place are one in a direction and nothing is called; or "not tested"
    where a direction has fewer than two doses or six wells.

    Columns: ``compound``, ``call``, ``n_wells``, ``n_plates``; ``protection`` (damage taken away at
    the highest dose) and ``toxicity`` (damage added), each with ``_low``, ``_high`` (95 %), ``_p``,
    ``_q``; ``ec50_uM``, ``ec50_low``, ``ec50_high`` of the direction called, ``ec50_note``; and
    ``note``: what could not be judged, and why. Wells stand for the culture: with one plate per
    compound they say nothing about the next plate. Wells at dose 0 belong to every compound on
    their plate, whatever name, as DMSO, stands there.
    """
    most = wells["amyloid_uM"].max()
    rows = []
    judged = wells[wells["damage"].notna()]
    for compound in sorted(judged["compound"].unique()):
        part = with_controls(judged, compound)
        row = {"compound": compound, "n_wells": len(part), "n_plates": part["plate"].nunique()}
        notes = []
        for name, arm in (("protection", most), ("toxicity", 0.0)):
            here = wells_of(judged, compound, arm)
            row |= _trend(here, name, -1.0 if name == "protection" else 1.0)
            reason = here.why_not() if _enough(here) else ""
            notes += [f"{name} is not assessable, {reason}"] if reason else []
        rows.append(row | {"note": "; ".join(notes)})
    if not rows:
        raise InputError(
            "wells",
            "no plate has both controls with a higher score for amyloid-beta, so no compound can "
            "be judged.",
            "Give plates with wells without compound, with and without amyloid-beta.",
        )
    table = pd.DataFrame(rows)
    adjusted = adjusted_for_number(table[[f"{name}_p" for name in DIRECTIONS]], "fdr_bh")
    table[[f"{name}_q" for name in DIRECTIONS]] = adjusted
    effects = table[list(DIRECTIONS)].to_numpy(np.float64)
    called = (adjusted <= FALSE_DISCOVERIES) & (effects >= LEAST_EFFECT)
    words = np.array(list(DIRECTIONS.values()))
    calls = []
    fits = []
    for compound, chosen, any_test, note in zip(
        table["compound"], called, np.isfinite(adjusted).any(axis=1), table["note"], strict=True
    ):
        otherwise = "no effect" if any_test else "not tested"
        if "not assessable" in note:
            otherwise = "not assessable"
        calls.append(" and ".join(words[chosen]) or otherwise)
        fit = {"reason": "it acts both ways" if chosen.all() else ""}
        if chosen.sum() == 1:
            fit = fit_curve(wells_of(judged, compound, most if chosen[0] else 0.0))
        fits.append(fit)
    table.insert(1, "call", calls)
    for column, key in (("ec50_uM", "ec50_uM"), ("ec50_low", "low"), ("ec50_high", "high")):
        table[column] = pd.to_numeric(pd.Series([fit.get(key) for fit in fits], dtype=object))
    table["ec50_note"] = [fit.get("reason", "") for fit in fits]
    return table


def with_controls(wells: pd.DataFrame, compound: str) -> pd.DataFrame:
    """The wells of a compound, and those at dose 0 on its plates whatever they are called."""
    own = wells["compound"] == compound
    plates = wells.loc[own & (wells["dose_uM"] > 0), "plate"]
    return wells[own | ((wells["dose_uM"] == 0) & wells["plate"].isin(plates))]


def dose_responses(wells: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """Compound to the fits of its wells "without amyloid-beta" and "with amyloid-beta", for figure
    and metrics.
    """
    most = wells["amyloid_uM"].max()
    return {
        compound: {
            "without amyloid-beta": fit_curve(wells_of(wells, compound, 0.0)),
            "with amyloid-beta": fit_curve(wells_of(wells, compound, most)),
        }
        for compound in sorted(wells.loc[wells["dose_uM"] > 0, "compound"].unique())
    }


def _enough(wells: PlateWells) -> bool:
    return len(np.unique(wells.dose[wells.mine])) >= 2 and wells.mine.sum() >= FEWEST_OF_A_TREND


def _trend(wells: PlateWells, name: str, sign: float) -> dict:
    """Effect of the highest dose and one-sided p of the trend, ``sign`` is the direction that
    counts.
    """
    from scipy.stats import t as t_distribution

    columns = (name, f"{name}_low", f"{name}_high")
    doses, rank = np.unique(wells.dose, return_inverse=True)
    free = len(wells.dose) - wells.taken - len(doses) + 1
    if not _enough(wells) or free < 2 or wells.why_not():
        return dict.fromkeys((*columns, f"{name}_p"), np.nan)
    values = sign * wells.response
    effect, error = _first_coefficient(wells, wells.steps, values)
    half = t_distribution.ppf((1 + LEVEL) / 2, free) * error
    slope, error = _first_coefficient(wells, rank[None] / rank.max(), values)
    p = float(t_distribution.sf(slope / error, free + len(doses) - 2)) if error > 0 else 1.0
    return Estimate(effect, effect - half, effect + half).columns(*columns) | {f"{name}_p": p}


def _first_coefficient(
    wells: PlateWells, columns: np.ndarray, values: np.ndarray
) -> tuple[float, float]:
    """The least squares coefficient of the first of ``columns`` (k, n), plates and places taken
    out, and its HC3 error (MacKinnon and White 1985).
    """
    columns = wells.cleaned(columns)
    values = wells.cleaned(values)
    weights = np.linalg.pinv(columns @ columns.T) @ columns
    coefficients = weights @ values
    leverage = wells.leverage + (weights * columns).sum(axis=0)
    # a well that is alone in its treatment says nothing, and has weight 0
    residual = (values - coefficients @ columns) / np.maximum(1 - leverage, 1e-6)
    return float(coefficients[0]), float(np.sqrt(((weights[0] * residual) ** 2).sum()))


def in_words(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Some columns under the names that a reader sees, numbers with an interval as "0.96 [0.94,
    0.97]".

    ``columns`` maps names in the table to those to show.
    """
    shown = {}
    for name, title in columns.items():
        values = table[name].tolist()
        if f"{name}_low" in table:
            ends = table[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
            values = [Estimate(*three).text(2) for three in ends]
        elif pd.api.types.is_float_dtype(table[name]):
            values = ["none" if pd.isna(value) else f"{value:.3g}" for value in values]
        shown[title] = values
    return pd.DataFrame(shown)


def hit_sentences(hits: pd.DataFrame) -> list[str]:
    """What the table of :func:`call_hits` says, one sentence per compound, in words."""
    said = []
    for row in hits.to_dict("records"):
        effects = []
        for word, name in (("takes away", "protection"), ("adds", "toxicity")):
            if np.isfinite(row[name]):
                ends = f"{100 * row[f'{name}_low']:.0f} to {100 * row[f'{name}_high']:.0f}"
                effects.append(f"{word} {100 * row[name]:.0f} % ({ends})")
        text = f"{row['compound']}: {row['call']}."
        if effects:
            text += (
                f" Its highest dose {' and '.join(effects)} of the damage of amyloid-beta; "
                f"{row['n_wells']} wells."
            )
        if np.isfinite(row["ec50_uM"]):
            ends = [
                f"{end:.2g}" if np.isfinite(end) else "no bound"
                for end in (row["ec50_low"], row["ec50_high"])
            ]
            text += f" EC50 {row['ec50_uM']:.2g} uM ({' to '.join(ends)})."
        elif row["ec50_note"]:
            text += f" No EC50: {row['ec50_note']}."
        if row["note"]:
            text += f" {row['note'][0].upper()}{row['note'][1:]}."
        said.append(text)
    return said
