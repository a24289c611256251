"""Phantoms of culture plates: four-stain fields of neurons, with injected effects of amyloid-beta
and compounds.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import check_choice, check_range
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import derive_seed, generator_for
from nbhelpers.phantoms.drawn import Phantoms, drawn_once
from nbhelpers.phantoms.layouts import (
    AMYLOID_UM,
    CLASSES,
    FIELD_COLUMNS,
    STAINS,
    read_layout,
    training_labels,
    treatment_names,
)
from nbhelpers.phantoms.matched import match_photometry

KINDS = ("protective", "inert", "toxic")
EFFECTS = ("all", "colocalisation")
PIXEL_NM = 325.0  # of a 20x objective
COMPOUNDS = 3  # that plates go round: one of each kind
BEADS_PX = 9.0  # from bead to bead along a neurite
PRESENT = 0.4  # from which brightness on a neurite or punctum is there, in the injected cause
TRUTH = ["kind", "ec50_uM", "largest_effect", "slope", "normalised_effect", "edge", "seed"]


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
        """Share of the effect of amyloid-beta taken away (protective) or added (toxic) at these
        doses, 0 to 1; inert: 0.
        """
        dose = np.asarray(dose_uM, np.float64)
        if self.kind == "inert":
            return np.zeros_like(dose)
        with np.errstate(divide="ignore", over="ignore"):
            return self.largest_effect / (1 + (self.ec50_uM / dose) ** self.slope)

    def normalised_effect(
        self, dose_uM: np.ndarray | float, amyloid_uM: np.ndarray | float
    ) -> np.ndarray:
        """From 0, as the negative controls, to 1, as the positive ones (30 uM amyloid-beta, no
        compound).
        """
        from_amyloid = np.clip(np.asarray(amyloid_uM, np.float64) / AMYLOID_UM, 0, 1)
        effect = self.effect(dose_uM)
        if self.kind == "protective":
            return from_amyloid * (1 - effect)
        return np.minimum(1.0, from_amyloid + effect)


def make_compounds(
    count: int, seed: int = 0, kinds: tuple[str, ...] = KINDS
) -> tuple[Compound, ...]:
    """``count`` compounds whose kinds go round ``kinds``: EC50 1 to 5 uM, largest effect 0.75 to 1,
    slope 1 to 2.
    """
    found = []
    for number in range(count):
        rng = generator_for(seed, "compound", number)
        kind = kinds[number % len(kinds)]
        ec50 = np.exp(rng.uniform(0, np.log(5)))
        largest = rng.uniform(0.75, 1)
        slope = rng.uniform(1, 2)
        name = f"C{number + 1:02d}"
        if kind == "inert":
            found.append(Compound(name, kind, np.nan, 0.0, np.nan))
        else:
            found.append(Compound(name, kind, float(ec50), float(largest), float(slope)))
    return tuple(found)


@dataclass(frozen=True)
class Nuisance:
    """How far plates differ in staining and light, and wells by their place; 0: not at all.

    ``matched``: the short cuts of the effect are taken out (see :mod:`nbhelpers.phantoms.matched`):
    brightness, radial profile and power spectrum of each stain are those of no effect and full
    effect midway, whatever the treatment. Otherwise sick neurites are darker, as they are.
    """

    plate: float = 1.0
    edge: float = 1.0
    matched: bool = True

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def make_plates(
    plates: int = 6,
    *,
    seed: int = 0,
    size_px: int = 96,
    fields: int = 2,
    layout: str = "published",
    effect: str = "all",
    strength: float = 1.0,
    nuisance: Nuisance = Nuisance(),
) -> Phantoms:
    """Draw whole plates of 48 wells and the truth behind each. A field depends on the seed, its
    place and the settings.

    Amyloid-beta makes neurites thinner, fainter and beaded and takes synapses: pairs of a PSD-95
    and a Synaptophysin punctum at one place; single puncta stay. A toxic compound takes nuclei too.

    Parameters
    ----------
    plates : each tests one compound in 4 doses, without and with amyloid-beta; plates go round
        three compounds in turn, see :func:`make_compounds`.
    size_px, fields : height and width of a field, fields per well.
    layout : "published" (every plate alike, so that the position gives the treatment away) or
        "randomised" (anew on every plate).
    effect : "all"; or "colocalisation": amyloid-beta only tears the pairs apart. Then each stain by
        itself is the same with and without it, and only stains seen together differ.
    strength : how much of the effect shows; 0: nothing.

    Pixels are (n, 4, y, x) uint8, stains in the order of ``STAINS``; the cause is that of each:
    neurites in MAP2, puncta in PSD-95 and Synaptophysin, nothing in Hoechst.

    The table has ``id``, ``label`` (only wells without compound: "control", "amyloid-beta"),
    ``group`` (= ``plate``), ``plate``, ``well``, ``row``, ``column``, ``field``, ``treatment``,
    ``compound``, ``dose_uM``, ``amyloid_uM``, and the injected truth ``kind``, ``ec50_uM``,
    ``largest_effect``, ``slope``, ``normalised_effect`` (0 to 1), ``edge`` (0 to 1), ``seed``.
    Raises ParameterError on values out of range.
    """
    check_range("parameter plates", plates, 1, 500)
    check_range("parameter size_px", size_px, 32, 2048)
    check_range("parameter fields", fields, 1, 100)
    check_range("parameter strength", strength, 0, 1)
    check_range("parameter nuisance", nuisance.plate, 0, 3)
    check_range("parameter nuisance", nuisance.edge, 0, 3)
    check_choice("parameter effect", effect, EFFECTS)
    check_choice("parameter layout", layout, ("published", "randomised"))
    truth = make_compounds(COMPOUNDS, seed)
    wells = read_layout("published")
    tables = []
    for number in range(plates):
        compound = truth[number % COMPOUNDS]
        rng = generator_for(seed, "layout", number)
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
                normalised_effect=compound.normalised_effect(table["dose_uM"], table["amyloid_uM"]),
            )
        )
    table = pd.concat(tables, ignore_index=True)
    table["edge"] = _edge(wells)[np.tile(np.arange(len(wells)), plates)]
    table = table.loc[table.index.repeat(fields)].reset_index(drop=True)
    table["field"] = np.tile(np.arange(1, fields + 1), len(table) // fields)
    table["id"] = [f"{row.plate}/{row.well}/{row.field}" for row in table.itertuples()]
    table["label"] = training_labels(table)
    table["group"] = table["plate"]
    table["treatment"] = treatment_names(table)
    table["seed"] = [derive_seed(seed, "field", name) for name in table["id"]]
    lights = [_plate_light(seed, number, nuisance.plate) for number in range(plates)]
    pixels = np.empty((len(table), len(STAINS), size_px, size_px), np.uint8)
    cause = np.zeros(pixels.shape, bool)
    for index, row in enumerate(table.itertuples()):
        well_rng = generator_for(seed, "well", row.plate, row.well)
        shown = row.normalised_effect * strength
        nuclei_lost = shown if row.kind == "toxic" and row.dose_uM > 0 else 0.0
        light = _well_light(lights[row.plate_number], row, well_rng, nuisance.edge)
        settings = (size_px, effect, nuclei_lost, light)
        drawn, cause[index, :3] = _draw_field(row.seed, shown, *settings)
        if nuisance.matched and effect == "all":  # torn pairs change no stain by itself anyway
            twins = [_draw_field(row.seed, strength * end, *settings)[0] for end in (0, 1)]
            drawn = match_photometry(drawn, *twins)
        pixels[index] = np.clip(np.rint(drawn * 255), 0, 255)
    return Phantoms(pixels, cause, table[FIELD_COLUMNS + TRUTH])


def load_phantom_plates(data_folder: str | Path, **settings: object) -> ImageSet:
    """Plates as :func:`make_plates` draws them with these settings, drawn once; pixels
    memory-mapped.
    """
    table, arrays = drawn_once(data_folder, "plates", "plate*", make_plates, settings)
    about = ", ".join(f"{name} {value}" for name, value in sorted(settings.items()))
    return ImageSet(
        name="plate phantoms",
        table=table,
        pixels=arrays["pixels"],
        classes=CLASSES,
        source=f"{table['plate'].nunique()} synthetic plates drawn by nbhelpers.phantoms.plate, "
        f"{about}",
        synthetic=True,
        channels=STAINS,
        pixel_size_nm=(PIXEL_NM, PIXEL_NM),
    )


def _edge(wells: pd.DataFrame) -> np.ndarray:
    """(wells,) 1 at the border of the wells in use, falling to 0 in their middle."""
    # letters are ranked: I is passed over on these plates
    down = wells["row"].rank(method="dense").to_numpy() - 1
    across = wells["column"].rank(method="dense").to_numpy() - 1
    steps = np.minimum.reduce([down, down.max() - down, across, across.max() - across])
    return np.exp(-steps)


def _plate_light(seed: int, plate: int, plate_effect: float) -> dict:
    """How strongly a plate is stained, its background light, and how both tilt over the plate."""
    rng = generator_for(seed, "plate", plate)
    return {
        "gain": np.exp(plate_effect * rng.normal(0, 0.15, 4)),
        "background": np.exp(plate_effect * rng.normal(0, 0.2, 4)),
        "tilt": plate_effect * rng.normal(0, 0.05, 2),
    }


def _well_light(plate: dict, place, rng: np.random.Generator, edge_effect: float) -> dict:
    """Wells at the border dry out a little: brighter background, weaker stain."""
    tilt = 1 + plate["tilt"] @ [(ord(place.row) - ord("E")) / 4, (place.column - 4.5) / 3]
    weaker = 1 - 0.12 * edge_effect * place.edge
    brighter = 1 + 0.25 * edge_effect * place.edge
    return {
        "gain": plate["gain"] * tilt * weaker * np.exp(rng.normal(0, 0.04, 4)),
        "background": plate["background"] * brighter * np.exp(rng.normal(0, 0.03, 4)),
        "uneven": rng.normal(0, 0.12, 2),
    }


def _draw_field(
    seed: int,
    shown: float,
    size_px: int,
    effect: str,
    nuclei_lost: float,
    light: dict,
) -> tuple[np.ndarray, np.ndarray]:
    """(4, y, x) float of one field, and (3, y, x) bool: where its neurites and both kinds of puncta
    are.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    structural = shown if effect == "all" else 0.0
    lost = nuclei_lost if effect == "all" else 0.0
    paths = _paths(rng, size_px)
    width = 1.5 * (1 - 0.35 * structural) * np.exp(rng.normal(0, 0.05))
    # a point each half pixel: 1 per pixel of path, gathered into beads where neurites are sick
    phase = rng.uniform(0, 2 * np.pi, (len(paths), 1))
    beads = (1 + np.sin(np.pi * np.arange(paths.shape[1]) / BEADS_PX + phase)) ** 2 / 1.5
    amounts = 0.5 * (1 - structural + structural * beads)
    ridges = gaussian_filter(_splat(paths.reshape(-1, 2), amounts.ravel(), size_px), width)
    neurites = ridges * np.sqrt(2 * np.pi) * width
    count = rng.poisson(8 * (size_px / 128) ** 2 * (1 - 0.5 * lost)) + 1
    places = rng.uniform(0, size_px, (count, 2))
    radii = rng.uniform(4.0, 5.5, count)
    nuclei = np.minimum(1.0, 2.5 * _bumps(places, radii * 0.75, size_px)) * rng.uniform(0.85, 1.15)
    half = slice(count // 2 + 1)
    somata = np.minimum(1.0, _bumps(places[half], radii[half] * 1.5, size_px))
    psd, synaptophysin = _puncta(rng, paths, size_px, shown, effect)
    strength = np.exp(rng.normal(0, 0.06, 4))
    stains = np.stack(
        [
            0.5 * (1 - 0.3 * structural) * np.minimum(neurites, 1.6) + 0.35 * somata,
            psd + 0.08 * np.minimum(neurites, 1.5),
            synaptophysin + 0.08 * np.minimum(neurites, 1.5),
            0.7 * nuclei + 0.03 * somata,
        ]
    )
    line = np.linspace(-1, 1, size_px)
    illumination = 1 + light["uneven"][0] * line[:, None] + light["uneven"][1] * line
    image = (
        stains * (0.55 * light["gain"] * strength)[:, None, None]
        + (0.07 * light["background"])[:, None, None]
    )
    image = image * illumination
    image += rng.standard_normal(image.shape, np.float32) * np.sqrt(
        0.0002 + 0.0015 * np.maximum(image, 0)
    )
    cause = np.stack([neurites, psd, synaptophysin]) > PRESENT
    return image, cause


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


def _splat(places: np.ndarray, amounts: np.ndarray, size_px: int) -> np.ndarray:
    """(y, x): each place adds its amount to its four nearest pixels; outside the field nothing is
    added.
    """
    found = np.zeros(size_px * size_px)
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
    rng: np.random.Generator, paths: np.ndarray, size_px: int, shown: float, effect: str
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
        lost = round(0.6 * shown * paired)
        total -= lost
        paired -= lost
    else:  # synapses are torn apart: as many puncta as before, at as likely places
        paired -= round(0.9 * shown * paired)
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
        spots = gaussian_filter(_splat(places, amounts, size_px), 1.1) * 2 * np.pi * 1.1**2
        drawn.append(0.8 * np.minimum(2.0, spots))
    return drawn[0], drawn[1]
