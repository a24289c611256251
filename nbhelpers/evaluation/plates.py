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
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, PredictionsError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.intervals import mean_interval
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import binned_shares

if TYPE_CHECKING:
    from nbhelpers.core.imageset import ImageSet

SURE = 0.999  # a probability beyond it, or below 1 less it, is called saturated
FEWEST_WELLS = 3  # of each control, for a spread
WELL_KEYS = ["plate", "well"]
CONDITION = ["compound", "dose_uM", "amyloid_uM"]
# Where the plateau of a dose-response curve may lie: beyond the controls it has little meaning.
LIMITS = (-0.5, 1.5)
SLOPES = (0.5, 4.0)  # Hill's slope
BEYOND = 3.0  # the EC50 is looked for up to this factor beyond the doses tested
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
        logarithms = np.log(np.clip(scores.probabilities, 1e-7, 1))
        table = images.table.iloc[images.positions(scores.table["id"])].reset_index(drop=True)
        log_odds = logarithms[:, 1] - logarithms[:, 0]
    else:
        table = images.table
        scores = np.asarray(scores, np.float64)
        if len(scores) != len(images) or scores.shape[1:] not in ((), (2,)):
            raise InputError(
                "scores",
                f"their shape is {scores.shape} for {len(images)} fields.",
                "Give (n, 2) logits or (n,) log-odds, in the order of the images.",
            )
        log_odds = scores[:, 1] - scores[:, 0] if scores.ndim == 2 else scores
    if not np.isfinite(log_odds).all():
        raise InputError(
            f"field {table['id'].iloc[int(np.flatnonzero(~np.isfinite(log_odds))[0])]}",
            "its score is not a finite number.",
            "Check the network and its input.",
        )
    return table.assign(log_odds=log_odds, probability=_sigmoid(log_odds))


def _sigmoid(log_odds: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(log_odds)


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
    wells = fields.groupby(WELL_KEYS).ngroup().to_frame("group")
    wells = wells.assign(repeat=0, id=np.arange(len(wells)))
    hits = sure.to_numpy(float)
    share = binned_shares(wells, hits, np.zeros(len(wells), int))[0]
    return share, (
        f"{sure.sum()} of {len(fields)} fields ({100 * share.value:.0f} %) have a probability "
        f"above {SURE} or below {1 - SURE:.3f}: wells are averaged and compared as log-odds."
    )


def well_scores(fields: pd.DataFrame) -> pd.DataFrame:
    """One row per well: mean ``log_odds`` of its fields, ``probability`` of that,
    ``mean_probability`` (the published way), ``n_fields``, ``field_sd``, and ``damage`` (see
    :func:`normalised_effect`).
    """
    constant = [
        name
        for name in ("label", "row", "column", "treatment", "part", "kind", "ec50_uM", *CONDITION)
        if name in fields
    ]
    grouped = fields.groupby(WELL_KEYS, sort=True)
    table = fields.drop_duplicates(WELL_KEYS).set_index(WELL_KEYS)[constant].sort_index()
    table = table.assign(
        n_fields=grouped.size(),
        log_odds=grouped["log_odds"].mean(),
        field_sd=grouped["log_odds"].std(),
        mean_probability=grouped["probability"].mean(),
    )
    table["probability"] = _sigmoid(table["log_odds"].to_numpy())
    table = table.reset_index()
    return table.assign(damage=normalised_effect(table))


def _controls(wells: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool each: negative controls, and positive ones (the most amyloid-beta); both without
    compound."""
    plain = (wells["dose_uM"] == 0).to_numpy()
    amyloid = wells["amyloid_uM"].to_numpy()
    return plain & (amyloid == 0), plain & (amyloid > 0) & (amyloid == amyloid.max())


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


def condition_scores(
    wells: pd.DataFrame, by: Sequence[str] = CONDITION, *, seed: int = 0
) -> pd.DataFrame:
    """One row per condition: ``n_wells``, ``n_plates``, mean ``log_odds``, ``probability`` and
    ``damage`` of its wells, each with ``_low`` and ``_high`` (bootstrap by well, 95 %; missing for
    a single well), and a ``note``. Damage is that of the wells that have one, which the note counts
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
            if not len(values):
                found = Estimate.undefined("no plate with both controls")
            else:
                found = mean_interval(values)
            for column, number in found.columns(name, f"{name}_low", f"{name}_high").items():
                row[column] = np.nan if number is None else number
            row["note"] = row["note"] or _note_on_wells(found, len(part))
        for side in ("", "_low", "_high"):
            row[f"probability{side}"] = float(_sigmoid(np.float64(row[f"log_odds{side}"])))
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


def control_quality(wells: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Z'-factor (Zhang et al. 1999) and SSMD (Zhang 2007) of the controls of each plate, on
    log-odds.

    Columns: ``plate``, ``n_negative``, ``n_positive`` wells, ``z_prime`` and ``ssmd``, each with
    ``_low`` and ``_high`` (bootstrap by well), ``verdict``: "excellent" (Z' of .5 or more),
    "marginal" (above 0), "not separated", or why there is none.
    """
    columns = ["plate", "n_negative", "n_positive"]
    for name in ("z_prime", "ssmd"):
        columns += [name, f"{name}_low", f"{name}_high"]
    negative, positive = _controls(wells)
    rows = []
    for plate in sorted(wells["plate"].unique()):
        here = (wells["plate"] == plate).to_numpy()
        low = wells.loc[here & negative, "log_odds"].to_numpy()
        high = wells.loc[here & positive, "log_odds"].to_numpy()
        row = {"plate": plate, "n_negative": len(low), "n_positive": len(high)}
        rows.append(row)
        scarce = [
            name
            for name, values in (("negative", low), ("positive", high))
            if len(values) < FEWEST_WELLS
        ]
        if scarce:
            few = " and ".join(scarce)
            row["verdict"] = f"not known: fewer than {FEWEST_WELLS} {few} control wells"
            continue
        z_prime, ssmd = _separation(low.mean(), low.std(ddof=1), high.mean(), high.std(ddof=1))
        row |= Estimate(float(z_prime)).columns(*columns[3:6])
        row |= Estimate(float(ssmd)).columns(*columns[6:9])
        row["verdict"] = "not separated"
        if z_prime > 0:
            row["verdict"] = "excellent" if z_prime >= 0.5 else "marginal"
    return pd.DataFrame(rows).reindex(columns=[*columns, "verdict"])


def _separation(mean_low, sd_low, mean_high, sd_high):
    """Z'-factor and SSMD."""
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = mean_high - mean_low
        z_prime = np.where(gap != 0, 1 - 3 * (sd_low + sd_high) / abs(gap), -np.inf)
        return z_prime, gap / np.hypot(sd_low, sd_high)


# Dose and response


def hill(
    dose: np.ndarray | float, at_zero: float, at_most: float, ec50: float, slope: float
) -> np.ndarray:
    """Hill's curve: ``at_zero`` without the compound, ``at_most`` far above its EC50."""
    dose = np.asarray(dose, np.float64)
    with np.errstate(divide="ignore", over="ignore"):
        return at_zero + (at_most - at_zero) / (1 + (ec50 / dose) ** slope)


def fit_dose_response(dose_uM: np.ndarray, response: np.ndarray) -> dict:
    """Hill's curve of four parameters through the wells, or why there is none.

    ``fitted`` (bool) and ``reason``; ``at_zero``, ``at_most``, ``slope``; ``ec50_uM`` with ``low``
    and ``high`` (95 %, profile likelihood; None on a side where the doses set no bound); ``p`` (F
    test against no response at all); ``n_wells``, ``doses``. Least squares (scipy's ``curve_fit``)
    within bounds: EC50 up to 3 times beyond the doses tested, slope 0.5 to 4, plateau -0.5 to 1.5.
    There is no fit for fewer than 4 doses or 6 wells, when the response does not change beyond
    chance (p .05), and when the EC50 falls on a bound. The EC50 is that of the network's score,
    which need not be proportional to the damage.
    """
    from scipy.optimize import curve_fit
    from scipy.stats import f as f_distribution

    dose = np.asarray(dose_uM, np.float64)
    response = np.asarray(response, np.float64)
    known = np.isfinite(response)
    dose = dose[known]
    response = response[known]
    doses = np.unique(dose)
    found = dict.fromkeys(("ec50_uM", "low", "high", "at_zero", "at_most", "slope", "p"))
    found |= {"fitted": False, "reason": "", "n_wells": len(dose), "doses": doses.tolist()}
    if len(doses) < 4 or len(dose) < 6:
        found["reason"] = f"{len(doses)} doses in {len(dose)} wells are too few for a curve"
        return found
    lowest = doses[doses > 0].min() / BEYOND
    highest = doses.max() * BEYOND
    grid = np.geomspace(lowest, highest, 121)
    slopes = np.geomspace(*SLOPES, 15)
    errors, ends = _linear_part(dose, response, grid, slopes)
    at, slope_at = np.unravel_index(errors.argmin(), errors.shape)
    free = len(dose) - 4
    total = ((response - response.mean()) ** 2).sum()
    scale = max(errors.min(), 1e-12 * total + 1e-300)
    found["p"] = float(f_distribution.sf((total - errors.min()) / 3 / (scale / free), 3, free))
    if not found["p"] < 0.05:
        found["reason"] = f"no change with the dose beyond chance (p {found['p']:.2f})"
        return found
    bounds = (
        [-np.inf, LIMITS[0], np.log(lowest), SLOPES[0]],
        [np.inf, LIMITS[1], np.log(highest), SLOPES[1]],
    )
    start = np.clip([*ends[at, slope_at], np.log(grid[at]), slopes[slope_at]], *bounds)
    (at_zero, at_most, log_ec50, slope), _ = curve_fit(
        lambda x, zero, most, log_ec50, slope: hill(x, zero, most, np.exp(log_ec50), slope),
        dose,
        response,
        p0=start,
        bounds=bounds,
        maxfev=5000,
    )
    ec50 = float(np.exp(log_ec50))
    found |= {"at_zero": float(at_zero), "at_most": float(at_most), "slope": float(slope)}
    inside = grid[errors.min(axis=1) <= scale * (1 + f_distribution.ppf(0.95, 1, free) / free)]
    found["low"] = None if inside[0] == grid[0] else float(min(inside[0], ec50))
    found["high"] = None if inside[-1] == grid[-1] else float(max(inside[-1], ec50))
    if not 1.02 * lowest < ec50 < highest / 1.02:
        side = f"above {doses.max():g}"
        if ec50 < doses.max():
            side = f"below {doses[doses > 0].min():g}"
        found["reason"] = f"the half effect lies {side} uM, outside the doses tested"
        return found
    return found | {"fitted": True, "ec50_uM": ec50}


def _linear_part(dose: np.ndarray, response: np.ndarray, ec50: np.ndarray, slope: np.ndarray):
    """Squared error (ec50, slope) and best ends (ec50, slope, 2): at a given EC50 and slope that is
    a straight line.
    """
    with np.errstate(divide="ignore", over="ignore"):
        share = 1 / (1 + (ec50[:, None, None] / dose) ** slope[:, None])
    mean = share.mean(axis=2, keepdims=True)
    centred = response - response.mean()
    spread = ((share - mean) ** 2).sum(axis=2)
    change = ((share - mean) * centred).sum(axis=2) / np.maximum(spread, 1e-12)
    at_most = response.mean() + change * (1 - mean[..., 0])
    limited = np.clip(at_most, *LIMITS)
    rest = 1 - share  # where the plateau is at its limit, only the other end is free
    alone = (rest * (response - limited[..., None] * share)).sum(axis=2)
    alone = alone / np.maximum((rest**2).sum(axis=2), 1e-12)
    at_zero = np.where(limited == at_most, response.mean() - change * mean[..., 0], alone)
    fitted = at_zero[..., None] + (limited - at_zero)[..., None] * share
    return ((response - fitted) ** 2).sum(axis=2), np.stack([at_zero, limited], axis=2)


# Compounds


def call_hits(wells: pd.DataFrame) -> pd.DataFrame:
    """What each compound does, with the rate of false discoveries over compounds and directions
    held down to a tenth.

    Protective: damage falls with the dose in wells with amyloid-beta. Toxic: damage rises with the
    dose in wells without it. Each is a one-sided test of the trend over the ranks of the doses,
    plates apart (least squares with robust HC3 errors), and all p-values together are adjusted by
    Benjamini and Hochberg (1995). A ``call`` needs an adjusted p of at most ``FALSE_DISCOVERIES``
    and an effect of at least ``LEAST_EFFECT``: "protective", "toxic", "protective and toxic", "no
    effect", or "not tested" where a direction has fewer than two doses or six wells.

    Columns: ``compound``, ``call``, ``n_wells``, ``n_plates``; ``protection`` (damage taken away at
    the highest dose) and ``toxicity`` (damage added), each with ``_low``, ``_high`` (95 %), ``_p``,
    ``_q``; ``ec50_uM``, ``ec50_low``, ``ec50_high`` of the direction called, and ``ec50_note``.
    Wells stand for the culture: with one plate per compound they say nothing about the next plate.
    Wells at dose 0 belong to every compound on their plate, whatever name, as DMSO, stands there.
    """
    from statsmodels.stats.multitest import multipletests

    most = wells["amyloid_uM"].max()
    rows = []
    judged = wells[wells["damage"].notna()]
    for compound in sorted(judged["compound"].unique()):
        part = with_controls(judged, compound)
        row = {"compound": compound, "n_wells": len(part), "n_plates": part["plate"].nunique()}
        row |= _trend(part[part["amyloid_uM"] == most], "protection", -1.0)
        row |= _trend(part[part["amyloid_uM"] == 0], "toxicity", 1.0)
        rows.append(row)
    if not rows:
        raise InputError(
            "wells",
            "no plate has both controls with a higher score for amyloid-beta, so no compound can "
            "be judged.",
            "Give plates with wells without compound, with and without amyloid-beta.",
        )
    table = pd.DataFrame(rows)
    p_values = table[[f"{name}_p" for name in DIRECTIONS]].to_numpy(np.float64)
    tested = np.isfinite(p_values)
    adjusted = np.full(p_values.shape, np.nan)
    if tested.any():
        adjusted[tested] = multipletests(p_values[tested], method="fdr_bh")[1]
    for column, name in enumerate(DIRECTIONS):
        table[f"{name}_q"] = adjusted[:, column]
    effects = table[list(DIRECTIONS)].to_numpy(np.float64)
    called = (adjusted <= FALSE_DISCOVERIES) & (effects >= LEAST_EFFECT)
    words = np.array(list(DIRECTIONS.values()))
    calls = []
    fits = []
    for compound, chosen, any_test in zip(
        table["compound"], called, tested.any(axis=1), strict=True
    ):
        otherwise = "no effect" if any_test else "not tested"
        calls.append(" and ".join(words[chosen]) or otherwise)
        fit = {"reason": "it acts both ways" if chosen.all() else ""}
        if chosen.sum() == 1:
            fit = _fit_of(wells, compound, most if chosen[0] else 0.0)
        fits.append(fit)
    table["call"] = calls
    for column, key in (("ec50_uM", "ec50_uM"), ("ec50_low", "low"), ("ec50_high", "high")):
        table[column] = pd.to_numeric(pd.Series([fit.get(key) for fit in fits], dtype=object))
    table["ec50_note"] = [fit.get("reason", "") for fit in fits]
    first = ["compound", "call", "n_wells", "n_plates"]
    return table[[*first, *table.columns.drop(first)]]


def with_controls(wells: pd.DataFrame, compound: str) -> pd.DataFrame:
    """The wells of a compound, and those at dose 0 on its plates whatever they are called."""
    own = wells["compound"] == compound
    plates = wells.loc[own & (wells["dose_uM"] > 0), "plate"]
    return wells[own | ((wells["dose_uM"] == 0) & wells["plate"].isin(plates))]


def _fit_of(wells: pd.DataFrame, compound: str, amyloid_uM: float) -> dict:
    part = with_controls(wells, compound)
    part = part[part["amyloid_uM"] == amyloid_uM]
    return fit_dose_response(part["dose_uM"], part["damage"])


def dose_responses(wells: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """Compound to the fits of its wells "without amyloid-beta" and "with amyloid-beta", for figure
    and metrics.
    """
    most = wells["amyloid_uM"].max()
    return {
        compound: {
            "without amyloid-beta": _fit_of(wells, compound, 0.0),
            "with amyloid-beta": _fit_of(wells, compound, most),
        }
        for compound in sorted(wells.loc[wells["dose_uM"] > 0, "compound"].unique())
    }


def _trend(part: pd.DataFrame, name: str, sign: float) -> dict:
    """Effect of the highest dose and one-sided p of the trend, ``sign`` is the direction that
    counts.
    """
    import statsmodels.api as sm

    doses = np.sort(part["dose_uM"].unique())
    columns = (name, f"{name}_low", f"{name}_high")
    plates = pd.get_dummies(part["plate"], dtype=float).to_numpy()
    if len(doses) < 2 or len(part) < max(6, len(doses) + plates.shape[1] + 2):
        return dict.fromkeys((*columns, f"{name}_p"), np.nan)
    values = sign * part["damage"].to_numpy()
    rank = np.searchsorted(doses, part["dose_uM"])
    if np.ptp(values) < 1e-12:
        return Estimate(0.0, np.nan, np.nan).columns(*columns) | {f"{name}_p": 1.0}
    robust = {"cov_type": "HC3", "use_t": True}
    trend = sm.OLS(values, np.column_stack([rank / rank.max(), plates])).fit(**robust)
    # one column per dose above the lowest, the highest first
    steps = np.eye(len(doses))[rank][:, :0:-1]
    fitted = sm.OLS(values, np.column_stack([steps, plates])).fit(**robust)
    low, high = fitted.conf_int(0.05)[0]
    p = trend.pvalues[0] / 2 if trend.params[0] > 0 else 1 - trend.pvalues[0] / 2
    effect = Estimate(float(fitted.params[0]), float(low), float(high))
    return effect.columns(*columns) | {f"{name}_p": float(p)}


def in_words(table: pd.DataFrame, columns: Mapping[str, str], decimals: int = 2) -> pd.DataFrame:
    """Some columns under the names that a reader sees, numbers with an interval as "0.96 [0.94,
    0.97]".

    ``columns`` maps names in the table to those to show.
    """
    shown = {}
    for name, title in columns.items():
        values = table[name].tolist()
        if f"{name}_low" in table:
            ends = table[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
            values = [Estimate(*three).text(decimals) for three in ends]
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
        elif row["call"] not in ("no effect", "not tested"):
            text += f" No EC50: {row['ec50_note']}."
        said.append(text)
    return said
