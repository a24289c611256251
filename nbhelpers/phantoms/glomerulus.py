"""Phantoms of glomeruli: capsule, tuft and nuclei in two stains; sclerosis and the variation of
the stain are injected.
"""

from copy import deepcopy

import numpy as np
import pandas as pd

from nbhelpers.core.errors import check_range
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import derive_seed, generator_for
from nbhelpers.phantoms.drawn import Phantoms
from nbhelpers.phantoms.matched import match_photometry

CLASSES = ("nonGS", "GS")
CENTRES = 2
SLIDES = 10  # images go round them in turn
SCLEROSED = 0.4  # share of the class GS
# optical density per unit of stain in red, green, blue: what haematoxylin and periodic acid-Schiff
# take away
HAEMATOXYLIN = np.array([0.62, 0.70, 0.36])
SCHIFF = np.array([0.22, 0.90, 0.38])


def make_glomerulus_phantoms(
    count: int,
    *,
    seed: int = 0,
    size_px: int = 224,
    difficulty: float = 0.5,
    matched: bool = True,
) -> Phantoms:
    """Draw ``count`` glomeruli and the truth behind each. Image ``i`` depends on the seed, ``i``
    and the settings alone.

    A healthy tuft is lobed, full of open capillaries and nuclei, with urinary space around it; in
    global sclerosis matrix fills the tuft up to the capsule, capillaries close and nuclei vanish.
    Ten slides of two centres differ in stain.

    Parameters
    ----------
    size_px : height and width.
    difficulty : 0 (clear-cut) to 1: partly sclerosed tufts on both sides of the border between the
        classes, fainter matrix, and capillaries, nuclei and urinary space that follow the sclerosis
        only loosely.
    matched : take the short cuts out (see :mod:`nbhelpers.phantoms.matched`): colours, their radial
        profile and the power spectrum carry no class. Otherwise a sclerosed tuft is darker and more
        even, as in a kidney.

    Returns pixels (n, 3, y, x) uint8, cause (n, y, x), the tuft, which alone decides the class, and
    the table with ``id``, ``label``, ``group`` (= ``slide``), ``slide``,
    ``centre``, and the injected truth ``sclerosis`` (share of the tuft that is matrix; GS above one
    half), ``nuclei``, ``capillaries``, ``tuft_radius_px``, ``capsule_radius_px``, ``haematoxylin``
    and ``schiff`` (strength of the stains), ``copy_of`` (always empty), ``seed``. Raises
    ParameterError on values out of range.
    """
    check_range("parameter count", count, 1, 100_000)
    check_range("parameter size_px", size_px, 48, 1024)
    check_range("parameter difficulty", difficulty, 0, 1)
    pixels = np.empty((count, 3, size_px, size_px), np.uint8)
    cause = np.empty((count, size_px, size_px), bool)
    rows = []
    stains = [_stain_of_slide(seed, slide, slide % CENTRES) for slide in range(SLIDES)]
    for index in range(count):
        slide = index % SLIDES
        image_seed = derive_seed(seed, "glomerulus", index)
        rng = np.random.default_rng(image_seed)
        label = CLASSES[int(rng.random() < SCLEROSED)]
        if index < 2 * SLIDES:  # so that small sets hold both classes on each slide
            first = derive_seed(seed, "first on the slide", slide)
            label = CLASSES[(first + index // SLIDES) % 2]
        twin_rng = deepcopy(rng)
        settings = (size_px, difficulty, stains[slide])
        drawn, cause[index], truth = _draw(rng, label, *settings)
        if matched:
            other = CLASSES[1 - CLASSES.index(label)]
            twin, _, _ = _draw(twin_rng, other, *settings)
            drawn = match_photometry(drawn, drawn, twin)
        pixels[index] = np.clip(drawn, 0, 255).round()
        name = f"C{slide % CENTRES + 1}_{slide + 1:02d}"
        rows.append(
            {
                "id": f"{label}/{name}-{index:05d}",
                "label": label,
                "group": name,
                "slide": name,
                "centre": f"C{slide % CENTRES + 1}",
                **truth,
                "copy_of": "",
                "seed": image_seed,
            }
        )
    return Phantoms(pixels, cause, pd.DataFrame(rows))


def load_phantom_glomeruli(
    count: int, seed: int, *, size_px: int = 224, **settings: object
) -> ImageSet:
    """``count`` images as :func:`make_glomerulus_phantoms` draws them; group is the slide."""
    made = make_glomerulus_phantoms(count, seed=seed, size_px=size_px, **settings)
    return ImageSet(
        name="glomerulus phantoms",
        table=made.table,
        pixels=made.pixels,
        classes=CLASSES,
        source=f"{count} synthetic glomeruli drawn by nbhelpers.phantoms.glomerulus, seed {seed}",
        synthetic=True,
        channels=("red", "green", "blue"),
    )


def _stain_of_slide(seed: int, slide: int, centre: int) -> dict:
    """Strength and colour of both stains: each centre has its own, and its slides
    vary about that."""
    at_centre = generator_for(seed, "centre", centre)
    on_slide = generator_for(seed, "slide", slide)
    strength = np.exp(at_centre.normal(0, 0.22, 2) + on_slide.normal(0, 0.10, 2))
    drift = at_centre.normal(0, 0.05, (2, 3)) + on_slide.normal(0, 0.02, (2, 3))
    colours = np.stack([HAEMATOXYLIN, SCHIFF]) + drift
    return {
        "strength": strength,
        "colours": np.clip(colours, 0.02, 1.2),
        "lamp": 1 - 0.04 * at_centre.random(),
    }


def _smooth_noise(rng: np.random.Generator, size_px: int, grain_px: float) -> np.ndarray:
    """(y, x) of mean 0 and standard deviation 1, smooth over about ``grain_px``."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.normal(size=(size_px, size_px)), max(grain_px, 0.5), mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _discs(size_px: int, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """(y, x) from 0 to 1: discs with soft edges, each drawn within its own box."""
    found = np.zeros((size_px, size_px))
    for (y, x), radius in zip(centres, radii, strict=True):
        reach = int(np.ceil(radius + 3))
        top = max(0, int(y) - reach)
        left = max(0, int(x) - reach)
        bottom = min(size_px, int(y) + reach + 1)
        right = min(size_px, int(x) + reach + 1)
        if top >= bottom or left >= right:
            continue
        rows, columns = np.mgrid[top:bottom, left:right]
        disc = np.clip((radius - np.hypot(rows - y, columns - x)) + 0.5, 0, 1)
        found[top:bottom, left:right] = np.maximum(found[top:bottom, left:right], disc)
    return found


def _scattered(
    rng: np.random.Generator, inside: np.ndarray, count: int, low: float, high: float
) -> np.ndarray:
    """(y, x) from 0 to 1: ``count`` discs drawn where ``inside`` is true, with radii from ``low``
    to ``high`` on an image of 224 px.
    """
    size_px = len(inside)
    places = np.argwhere(inside)
    centres = places[rng.integers(max(1, len(places)), size=count)] + rng.random((count, 2))
    return _discs(size_px, centres, rng.uniform(low, high, count) * (size_px / 224))


def _draw(rng: np.random.Generator, label: str, size_px: int, difficulty: float, stain: dict):
    """One image, its tuft, and its injected truth."""
    unit = size_px / 224
    # the border between the classes is at one half: difficulty lets both come nearer to it
    mixed = rng.beta(2, 4) * (0.44 - 0.32 * (1 - difficulty))
    sclerosis = 1 - mixed if label == "GS" else mixed
    rows, columns = np.mgrid[:size_px, :size_px]
    middle = size_px / 2 + rng.normal(0, 5 * unit, 2)
    distance = np.hypot(rows - middle[0], columns - middle[1])
    angle = np.arctan2(rows - middle[0], columns - middle[1])
    capsule_radius = rng.uniform(78, 98) * unit
    phases = rng.uniform(0, 2 * np.pi, 4)
    waves = rng.normal(0, 1, 4)
    outline = 1 + 0.03 * sum(
        wave * np.cos((order + 2) * angle + phase)
        for order, (wave, phase) in enumerate(zip(waves, phases, strict=True))
    )
    capsule = distance < capsule_radius * outline
    ring = np.exp(-(((distance - capsule_radius * outline) / (2.2 * unit)) ** 2))
    lobes = 1 + 0.10 * (1 - sclerosis) * np.cos(rng.integers(4, 8) * angle + rng.uniform(0, 6.3))
    # what goes with sclerosis goes with it loosely: only the matrix itself is the class
    loose = np.exp(difficulty * rng.normal(0, 0.45, 2))
    tuft_radius = capsule_radius * np.clip(
        0.80 + 0.17 * sclerosis + difficulty * rng.normal(0, 0.06), 0.7, 0.98
    )
    matrix_stain = 1.05 - 0.40 * difficulty * rng.random()
    tuft = (distance < tuft_radius * outline * lobes) & capsule

    # capillaries close and nuclei vanish as matrix takes their place, patch by patch
    matrix = tuft & (_smooth_noise(rng, size_px, 27 * unit) < _quantile(sclerosis))
    area = tuft.sum() / unit**2
    free = tuft & ~matrix
    capillaries = int(area / 1530 * (1 - 0.85 * sclerosis) * loose[0])
    nuclei = int(area / 760 * (1 - 0.65 * sclerosis) * loose[1])
    capillaries = capillaries if free.any() else 0
    lumens = _scattered(rng, free, capillaries, 7.5, 18.0)
    tuft_nuclei = _scattered(rng, tuft, nuclei, 4.0, 7.0)
    outside = ~capsule
    stroma = int(outside.sum() / unit**2 / 1040)
    other_nuclei = _scattered(rng, outside, stroma, 4.0, 7.0)

    texture = _smooth_noise(rng, size_px, 3 * unit)
    fine = _smooth_noise(rng, size_px, 0.8 * unit)
    schiff = np.where(outside, 0.45 + 0.12 * texture, 0.03)
    schiff = np.where(tuft, 0.50 + 0.10 * texture, schiff)
    schiff = np.where(matrix, matrix_stain + 0.10 * texture, schiff) * (1 - 0.93 * lumens)
    schiff = schiff + 1.1 * ring + 0.04 * fine
    haematoxylin = np.where(outside | tuft, 0.14, 0.02) * (1 - 0.9 * lumens)
    haematoxylin = haematoxylin + 1.25 * np.maximum(tuft_nuclei, other_nuclei) + 0.02 * fine
    strength = stain["strength"] * np.exp(rng.normal(0, 0.05, 2))
    density = (
        np.clip(haematoxylin, 0, None)[..., None] * strength[0] * stain["colours"][0]
        + np.clip(schiff, 0, None)[..., None] * strength[1] * stain["colours"][1]
    )
    image = 245 * stain["lamp"] * np.exp(-density) + rng.normal(0, 2.0, (size_px, size_px, 3))
    truth = {
        "sclerosis": float(matrix.sum() / tuft.sum()),
        "nuclei": nuclei,
        "capillaries": capillaries,
        "tuft_radius_px": float(tuft_radius),
        "capsule_radius_px": float(capsule_radius),
        "haematoxylin": float(strength[0]),
        "schiff": float(strength[1]),
    }
    return np.moveaxis(image, -1, 0), tuft, truth


def _quantile(share: float) -> float:
    """The value of a standard normal that ``share`` of all draws stay below."""
    from scipy.special import ndtri

    return float(ndtri(np.clip(share, 1e-6, 1 - 1e-6)))
