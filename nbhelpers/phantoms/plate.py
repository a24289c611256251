"""Phantoms of culture plates: four-stain fields of neurons, with injected amyloid-beta damage,
compounds and confounds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from nbhelpers.core.errors import ParameterError
from nbhelpers.core.seeds import derive_seed
from nbhelpers.phantoms.layouts import (
    AMYLOID_UM,
    STAINS,
    read_layout,
    training_labels,
    treatment_names,
)

KINDS = ("protective", "inert", "toxic")
EFFECTS = ("all", "colocalisation")
PIXEL_NM = 325.0  # of a 20x objective
PRESENT = 0.4  # from which brightness on a neurite or punctum is there, in the injected cause


@dataclass(frozen=True)
class Compound:
    """Injected truth of one compound: ``kind``, the dose of half effect, the largest effect (0 to
    1), Hill's slope.
    """

    name: str
    kind: str
    ec50_uM: float
    largest_effect: float
    slope: float

    def effect(self, dose_uM: np.ndarray | float) -> np.ndarray:
        """Share of the damage taken away (protective) or added (toxic) at these doses, 0 to 1;
        inert: 0.
        """
        dose = np.asarray(dose_uM, np.float64)
        if self.kind == "inert":
            return np.zeros_like(dose)
        with np.errstate(divide="ignore", over="ignore"):
            return self.largest_effect / (1 + (self.ec50_uM / dose) ** self.slope)

    def damage(self, dose_uM: np.ndarray | float, amyloid_uM: np.ndarray | float) -> np.ndarray:
        """What the culture suffers, 0 (healthy) to 1 (as with 30 uM amyloid-beta and
        no compound)."""
        from_amyloid = np.clip(np.asarray(amyloid_uM, np.float64) / AMYLOID_UM, 0, 1)
        effect = self.effect(dose_uM)
        if self.kind == "protective":
            return from_amyloid * (1 - effect)
        return np.minimum(1.0, from_amyloid + effect)


@dataclass(frozen=True)
class PlatePhantoms:
    """``pixels`` (n, 4, y, x) uint8 or uint16, stains in the order of ``STAINS``; ``table``;
    ``compounds``: the truth; ``cause`` (n, 4, y, x) bool: neurites in MAP2, puncta in PSD-95 and
    Synaptophysin, nothing in Hoechst."""

    pixels: np.ndarray
    table: pd.DataFrame
    compounds: tuple[Compound, ...]
    cause: np.ndarray


def make_compounds(
    count: int, seed: int = 0, kinds: tuple[str, ...] = KINDS
) -> tuple[Compound, ...]:
    """``count`` compounds whose kinds go round ``kinds``: EC50 1 to 5 uM, largest effect 0.75 to 1,
    slope 1 to 2.
    """
    found = []
    for number in range(count):
        rng = np.random.default_rng(derive_seed(seed, "compound", number))
        kind = kinds[number % len(kinds)]
        ec50 = np.exp(rng.uniform(0, np.log(5)))
        largest = rng.uniform(0.75, 1)
        slope = rng.uniform(1, 2)
        found.append(
            Compound(
                f"C{number + 1:02d}",
                kind,
                *(
                    (np.nan, 0.0, np.nan)
                    if kind == "inert"
                    else (float(ec50), float(largest), float(slope))
                ),
            )
        )
    return tuple(found)


def make_plates(
    plates: int = 6,
    *,
    seed: int = 0,
    size_px: int = 96,
    fields: int = 2,
    compounds: int = 3,
    effect: str = "all",
    layout: str = "published",
    strength: float = 1.0,
    plate_effect: float = 1.0,
    edge_effect: float = 1.0,
    bits: int = 8,
) -> PlatePhantoms:
    """Draw whole plates of 48 wells and the truth behind each. A field depends on the seed, its
    place and the settings.

    Damaged neurons have thinner, fainter neurites and fewer synapses, which are pairs of a PSD-95
    and a Synaptophysin punctum at one place; puncta that stand alone stay. A toxic compound also
    takes nuclei.

    Parameters
    ----------
    plates : each tests one compound in 4 doses, without and with amyloid-beta; plates go round the
        compounds in turn.
    size_px, fields : height and width of a field, fields per well.
    compounds : of the kinds protective, inert, toxic in turn, see :func:`make_compounds`.
    effect : "all"; or "colocalisation": damage only tears the pairs apart. Then each stain by
        itself is the same with and without damage, and only stains seen together tell.
    layout : "published" (every plate alike, so position tells the treatment) or "randomised" (anew
        on every plate).
    strength : how much damage shows; 0: not at all.
    plate_effect, edge_effect : how far plates differ in staining and light, and wells by their
        place on the plate.
    bits : 8 or 16.

    The table has ``id``, ``label`` (only wells without compound: "control", "amyloid-beta"),
    ``group`` (= ``plate``), ``plate``, ``well``, ``row``, ``column``, ``field``, ``treatment``,
    ``compound``, ``dose_uM``, ``amyloid_uM``, and the injected truth ``kind``, ``ec50_uM``,
    ``largest_effect``, ``slope``, ``damage`` (0 to 1), ``edge`` (0 to 1), ``seed``. Raises
    ParameterError on values out of range.
    """
    _check(
        plates=plates,
        size_px=size_px,
        fields=fields,
        compounds=compounds,
        strength=strength,
        plate_effect=plate_effect,
        edge_effect=edge_effect,
    )
    for name, value, known in (
        ("effect", effect, EFFECTS),
        ("layout", layout, ("published", "randomised")),
        ("bits", bits, (8, 16)),
    ):
        if value not in known:
            raise ParameterError(
                f"parameter {name}", f"{value!r} is unknown.", f"Give one of {list(known)}."
            )
    truth = make_compounds(compounds, seed)
    wells = read_layout("published")
    tables = []
    for number in range(plates):
        compound = truth[number % compounds]
        rng = np.random.default_rng(derive_seed(seed, "layout", number))
        table = wells.copy()
        if layout == "randomised":
            treatment = ["dose_uM", "amyloid_uM"]
            table[treatment] = wells[treatment].to_numpy()[rng.permutation(len(wells))]
        about = {key: value for key, value in asdict(compound).items() if key != "name"}
        tables.append(
            table.assign(
                plate=f"plate{number + 1:02d}",
                plate_number=number,
                compound=compound.name,
                **about,
                damage=compound.damage(table["dose_uM"], table["amyloid_uM"]),
            )
        )
    table = pd.concat(tables, ignore_index=True)
    table["edge"] = _edge(wells)[np.tile(np.arange(len(wells)), plates)]
    table = table.loc[table.index.repeat(fields)].reset_index(drop=True)
    table["field"] = np.tile(np.arange(1, fields + 1), len(table) // fields)
    table["id"] = [f"{row.plate}/{row.well}/{row.field}" for row in table.itertuples()]
    table["label"], table["group"] = training_labels(table), table["plate"]
    table["treatment"] = treatment_names(table)
    table["seed"] = [derive_seed(seed, "field", name) for name in table["id"]]
    lights = [_plate_light(seed, number, plate_effect) for number in range(plates)]
    pixels = np.empty(
        (len(table), len(STAINS), size_px, size_px), np.uint8 if bits == 8 else np.uint16
    )
    cause = np.zeros(pixels.shape, bool)
    for index, row in enumerate(table.itertuples()):
        well_rng = np.random.default_rng(derive_seed(seed, "well", row.plate, row.well))
        pixels[index], cause[index, :3] = _draw_field(
            np.random.default_rng(row.seed),
            size_px,
            row.damage * strength,
            effect,
            row.damage * strength if row.kind == "toxic" and row.dose_uM > 0 else 0.0,
            _well_light(lights[row.plate_number], row, well_rng, edge_effect),
            bits,
        )
    columns = [
        "id",
        "label",
        "group",
        "plate",
        "well",
        "row",
        "column",
        "field",
        "treatment",
        "compound",
        "dose_uM",
        "amyloid_uM",
        "kind",
        "ec50_uM",
        "largest_effect",
        "slope",
        "damage",
        "edge",
        "seed",
    ]
    return PlatePhantoms(pixels, table[columns], truth, cause)


def _check(**values) -> None:
    spans = {
        "plates": (1, 500),
        "size_px": (32, 2048),
        "fields": (1, 100),
        "compounds": (1, 200),
        "strength": (0, 1),
        "plate_effect": (0, 3),
        "edge_effect": (0, 3),
    }
    for name, value in values.items():
        low, high = spans[name]
        if not np.isfinite(value) or not low <= value <= high:
            raise ParameterError(
                f"parameter {name}", f"{value} is out of range.", f"Give {low} to {high}."
            )


def _edge(wells: pd.DataFrame) -> np.ndarray:
    """(wells,) 1 at the border of the wells in use, falling to 0 in their middle."""
    down = (
        wells["row"].rank(method="dense").to_numpy() - 1
    )  # letters are ranked: I is passed over on these plates
    across = wells["column"].rank(method="dense").to_numpy() - 1
    steps = np.minimum.reduce([down, down.max() - down, across, across.max() - across])
    return np.exp(-steps)


def _plate_light(seed: int, plate: int, plate_effect: float) -> dict:
    """How strongly a plate is stained, its background light, and how both tilt over the plate."""
    rng = np.random.default_rng(derive_seed(seed, "plate", plate))
    return {
        "gain": np.exp(plate_effect * rng.normal(0, 0.15, 4)),
        "background": np.exp(plate_effect * rng.normal(0, 0.2, 4)),
        "tilt": plate_effect * rng.normal(0, 0.05, 2),
    }


def _well_light(plate: dict, place, rng: np.random.Generator, edge_effect: float) -> dict:
    """Wells at the border dry out a little: brighter background, weaker stain."""
    tilt = 1 + plate["tilt"] @ [(ord(place.row) - ord("E")) / 4, (place.column - 4.5) / 3]
    return {
        "gain": plate["gain"]
        * tilt
        * (1 - 0.12 * edge_effect * place.edge)
        * np.exp(rng.normal(0, 0.04, 4)),
        "background": plate["background"]
        * (1 + 0.25 * edge_effect * place.edge)
        * np.exp(rng.normal(0, 0.03, 4)),
        "uneven": rng.normal(0, 0.12, 2),
    }


def _draw_field(
    rng: np.random.Generator,
    size_px: int,
    damage: float,
    effect: str,
    nuclei_lost: float,
    light: dict,
    bits: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(4, y, x) of one field, and (3, y, x) bool: where its neurites and both kinds
    of puncta are."""
    from scipy.ndimage import gaussian_filter

    structural = damage if effect == "all" else 0.0
    paths = _paths(rng, size_px)
    width = 1.5 * (1 - 0.35 * structural) * np.exp(rng.normal(0, 0.05))
    neurites = (
        gaussian_filter(_splat(paths.reshape(-1, 2), None, size_px), width)
        * np.sqrt(2 * np.pi)
        * width
    )
    count = (
        rng.poisson(
            8 * (size_px / 128) ** 2 * (1 - 0.5 * (nuclei_lost if effect == "all" else 0.0))
        )
        + 1
    )
    places = rng.uniform(0, size_px, (count, 2))
    radii = rng.uniform(4.0, 5.5, count)
    nuclei = np.minimum(1.0, 2.5 * _bumps(places, radii * 0.75, size_px)) * rng.uniform(0.85, 1.15)
    somata = np.minimum(
        1.0, _bumps(places[: count // 2 + 1], radii[: count // 2 + 1] * 1.5, size_px)
    )
    psd, synaptophysin = _puncta(rng, paths, size_px, damage, effect)
    strength = np.exp(rng.normal(0, 0.06, 4))
    stains = np.stack(
        [
            0.5 * (1 - 0.3 * structural) * np.minimum(neurites, 1.6) + 0.35 * somata,
            psd + 0.08 * np.minimum(neurites, 1.5),
            synaptophysin + 0.08 * np.minimum(neurites, 1.5),
            0.7 * nuclei + 0.03 * somata,
        ]
    )
    down, across = np.meshgrid(
        np.linspace(-1, 1, size_px), np.linspace(-1, 1, size_px), indexing="ij"
    )
    illumination = 1 + light["uneven"][0] * down + light["uneven"][1] * across
    image = (
        stains * (0.55 * light["gain"] * strength)[:, None, None]
        + (0.07 * light["background"])[:, None, None]
    )
    image = image * illumination
    image += rng.standard_normal(image.shape, np.float32) * np.sqrt(
        0.0002 + 0.0015 * np.maximum(image, 0)
    )
    top = 2**bits - 1
    cause = np.stack([neurites, psd, synaptophysin]) > PRESENT
    return np.clip(np.rint(image * top), 0, top).astype(np.uint8 if bits == 8 else np.uint16), cause


def _paths(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """(neurites, points, 2) winding paths across the field, a point each half pixel; they may leave
    it.
    """
    count = max(3, rng.poisson(8 * size_px / 128))
    points = int(2.6 * size_px)
    turn = rng.normal(0, 0.045, (count, points)).cumsum(axis=1)
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) + turn - turn[:, points // 2, None]
    steps = 0.5 * np.stack([np.sin(angle), np.cos(angle)], axis=2)
    path = steps.cumsum(axis=1)
    return path - path[:, points // 2, None] + rng.uniform(0.1, 0.9, (count, 1, 2)) * size_px


def _splat(places: np.ndarray, amounts: np.ndarray | None, size_px: int) -> np.ndarray:
    """(y, x): each place adds its amount to its four nearest pixels; outside the field nothing is
    added.
    """
    found = np.zeros(size_px * size_px)
    amounts = (
        np.full(len(places), 0.5) if amounts is None else amounts
    )  # a point each half pixel: 1 per pixel of path
    corner = np.floor(places).astype(int)
    part = places - corner
    for down in (0, 1):
        for across in (0, 1):
            y = corner[:, 0] + down
            x = corner[:, 1] + across
            share = np.where(down, part[:, 0], 1 - part[:, 0]) * np.where(
                across, part[:, 1], 1 - part[:, 1]
            )
            inside = (y >= 0) & (y < size_px) & (x >= 0) & (x < size_px)
            found += np.bincount(
                y[inside] * size_px + x[inside], (share * amounts)[inside], size_px * size_px
            )
    return found.reshape(size_px, size_px)


def _bumps(places: np.ndarray, widths: np.ndarray, size_px: int) -> np.ndarray:
    """(y, x): Gaussian bumps of height 1, added up."""
    at = np.arange(size_px)
    down, across = (
        np.exp(-0.5 * ((at - places[:, axis, None]) / widths[:, None]) ** 2) for axis in (0, 1)
    )
    return down.T @ across


def _puncta(
    rng: np.random.Generator, paths: np.ndarray, size_px: int, damage: float, effect: str
) -> tuple[np.ndarray, np.ndarray]:
    """Two (y, x) pictures of puncta: PSD-95 and Synaptophysin, in part at the same places
    (synapses).
    """
    from scipy.ndimage import gaussian_filter

    def along(count: int) -> np.ndarray:
        """(count, 2) places on the neurites."""
        return paths[rng.integers(len(paths), size=count), rng.integers(paths.shape[1], size=count)]

    def beside(places: np.ndarray) -> np.ndarray:
        return places + rng.normal(0, 1.3, places.shape)

    total = max(4, rng.poisson(0.07 * 0.5 * paths.shape[0] * paths.shape[1]))
    paired = round(0.75 * total)
    if effect == "all":  # synapses are lost
        total = total - round(0.6 * damage * paired)
        paired = paired - round(0.6 * damage * paired)
    else:  # synapses are torn apart: as many puncta as before, at as likely places
        paired -= round(0.9 * damage * paired)
    first = beside(along(total))
    second = np.concatenate(
        [
            first[:paired] + rng.normal(0, 0.3, (paired, 2)),
            beside(along(total - paired)) + rng.normal(0, 0.3, (total - paired, 2)),
        ]
    )
    drawn = []
    for places in (first, second):
        amounts = np.exp(rng.normal(0, 0.3, total))
        drawn.append(
            0.8
            * np.minimum(
                2.0, gaussian_filter(_splat(places, amounts, size_px), 1.1) * 2 * np.pi * 1.1**2
            )
        )
    return drawn[0], drawn[1]
