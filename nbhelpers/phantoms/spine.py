"""Phantoms of dendritic spines: binary masks drawn from injected head, neck and length."""

import numpy as np
import pandas as pd

from nbhelpers.core.errors import check_range
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import derive_seed, generator_for

CLASSES = ("Mushroom", "Stubby", "Thin")
SHARES = (0.632, 0.248, 0.121)  # of the classes in the public set

# Medians and spreads in pixels of a 250-pixel image, so that heights, widths and width profiles
# fall where those of hand-drawn masks fall. The three classes share one parametrisation: a stubby
# spine is a head whose "neck" is as wide as the head. That makes shapes between two classes
# possible.
#               length  sd   head  sd   height/width sd  neck/head sd   base flare  bend (degree)
_SHAPES = {
    "Mushroom": ((75.0, 0.16), (48.0, 0.21), (1.04, 0.13), (0.45, 0.11), (7.0, 0.55), 9.0),
    "Stubby": ((50.0, 0.20), (49.0, 0.20), (1.05, 0.18), (0.98, 0.07), (11.0, 0.60), 7.0),
    "Thin": ((124.0, 0.13), (34.0, 0.20), (1.24, 0.18), (0.42, 0.11), (4.0, 0.60), 24.0),
}
_NEIGHBOURS = {"Mushroom": ("Stubby", "Thin"), "Stubby": ("Mushroom",), "Thin": ("Mushroom",)}
AREA_PX = 3500.0  # median area of matched spines in a 250-pixel image
ROUGH_PX = 10.0
CLEAR_PX = 3  # from the borders
_GOLDEN = 0.6180339887498949
_SMOOTH = np.hanning(9)[1:-1] / np.hanning(9).sum()


def make_spine_phantoms(
    n: int,
    seed: int = 0,
    *,
    size_px: int = 250,
    difficulty: float = 0.5,
    matched: bool = False,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Draw ``n`` binary masks of dendritic spines, the dendrite at the bottom, and the truth behind
    each.

    Image ``i`` depends on the seed and on ``i`` alone: it is the same whatever ``n`` is. Every
    prefix of the set has about the same share of each class.

    Parameters
    ----------
    difficulty : 0 (clear-cut shapes) to 1; 0.35 times it is the share of shapes
        that lean to another class, by a fifth to a half of the way.
    matched : take the short cuts out: area, place and roughness of the outline, drawn independently
        of the class, hide it from grey level, radial profile, power spectrum and border. ``length``
        and the other lengths in pixels are those before the outline is roughened.

    Returns
    -------
    masks : (n, size_px, size_px) uint8, 0 and 255.
    table : ``id``, ``label``, ``group`` (a dendrite with 4 to 10 spines and a scale of its own),
        the injected truth ``head_width_px``, ``neck_width_px`` (narrowest place below the head),
        ``length_px`` (along the midline), ``base_width_px``, ``head_height_px``, ``bend_degree``,
        ``tilt_degree``, ``cut_off`` (reaches beyond the lower border), ``between`` and ``mix`` (the
        class that the shape leans to, and how far, 0 = not at all), then ``dendrite_scale`` and
        ``seed``.

    Raises ParameterError on values out of range.
    """
    check_range("parameter n", n, 1, 100_000)
    check_range("parameter size_px", size_px, 32, 4096)
    check_range("parameter difficulty", difficulty, 0, 1)
    limits = np.cumsum(SHARES) / np.sum(SHARES)
    start = generator_for(seed, "spine classes").random()
    masks = np.zeros((n, size_px, size_px), dtype=np.uint8)
    rows = []
    dendrites = _dendrites(seed)
    for index in range(n):
        dendrite, dendrite_scale = next(dendrites)
        image_seed = derive_seed(seed, "spine", index)
        # The golden-ratio sequence fills [0, 1) evenly, so that small sets have their share of each
        # class too.
        place = np.searchsorted(limits, (start + index * _GOLDEN) % 1, side="right")
        label = CLASSES[int(place.clip(0, 2))]
        rng = np.random.default_rng(image_seed)
        masks[index], truth = _draw(rng, label, difficulty, dendrite_scale, size_px)
        if matched:
            own = generator_for(seed, "matched spine", index)
            area = (size_px / 250) ** 2 * AREA_PX * np.exp(own.normal(0, 0.35))
            scale = dendrite_scale
            for _ in range(2):  # at the border a spine may be cut off, so once is not enough
                scale *= np.sqrt(area / np.count_nonzero(masks[index]))
                rng = np.random.default_rng(image_seed)
                masks[index], truth = _draw(rng, label, difficulty, scale, size_px)
            masks[index] = _roughened(own, _moved(own, masks[index]))
        rows.append(
            {
                "id": f"phantom-{index:05d}",
                "label": label,
                "group": dendrite,
                **truth,
                "dendrite_scale": dendrite_scale,
                "seed": image_seed,
            }
        )
    return masks, pd.DataFrame(rows)


def load_phantom_spines(count: int, seed: int, matched: bool = False) -> ImageSet:
    """``count`` masks as :func:`make_spine_phantoms` draws them: (n, 1, 250, 250) uint8."""
    masks, table = make_spine_phantoms(count, seed, matched=matched)
    return ImageSet(
        name="spine phantoms",
        table=table,
        pixels=masks[:, None],
        classes=CLASSES,
        source=f"{count} synthetic spine masks drawn by nbhelpers.phantoms.spine, seed {seed}",
        synthetic=True,
        channels=("mask",),
    )


def _dendrites(seed: int):
    """Yield (name, scale) once per spine: 4 to 10 spines in a row share a dendrite."""
    number = 0
    while True:
        rng = generator_for(seed, "dendrite", number)
        spines = int(rng.integers(4, 11))
        scale = float(np.exp(rng.normal(0, 0.10)))
        for _ in range(spines):
            yield f"dendrite-{number:03d}", scale
        number += 1


def _shape(rng: np.random.Generator, label: str) -> np.ndarray:
    """Length, head width, height/width, neck/head, left and right flare, bend: one draw of a class,
    pixels.
    """
    length, head, aspect, neck, flare, bend = _SHAPES[label]
    normal = rng.normal(size=7)
    return np.array(
        [
            length[0] * np.exp(length[1] * normal[0]),
            head[0] * np.exp(head[1] * normal[1]),
            np.clip(aspect[0] + aspect[1] * normal[2], 0.7, 1.8),
            np.clip(neck[0] + neck[1] * normal[3], 0.18, 1.15),
            flare[0] * np.exp(flare[1] * normal[4]),
            flare[0] * np.exp(flare[1] * normal[5]),
            bend * normal[6],
        ]
    )


def _moved(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """The mask with its box somewhere about the middle, clear of the borders."""
    size_px = len(mask)
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box = box[: size_px - 2 * CLEAR_PX, : size_px - 2 * CLEAR_PX]
    corner = (size_px - np.array(box.shape)) / 2 + rng.uniform(-0.14, 0.14, 2) * size_px
    top, left = np.clip(corner.astype(int), CLEAR_PX, size_px - CLEAR_PX - np.array(box.shape))
    found = np.zeros_like(mask)
    found[top : top + box.shape[0], left : left + box.shape[1]] = box
    return found


def _roughened(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """The mask with an outline that wanders in and out, by up to ``ROUGH_PX`` and over 2 to 10 px:
    the power of every frequency then hangs on that more than on the shape.
    """
    from scipy import ndimage

    unit = len(mask) / 250
    grain = np.exp(rng.uniform(np.log(2), np.log(10))) * unit
    noise = ndimage.gaussian_filter(rng.normal(size=mask.shape), grain, mode="wrap")
    inside = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(mask == 0)
    rough = inside + rng.uniform(0, ROUGH_PX) * unit * noise / noise.std() > 0
    rough[:CLEAR_PX] = rough[-CLEAR_PX:] = False
    rough[:, :CLEAR_PX] = rough[:, -CLEAR_PX:] = False
    parts, count = ndimage.label(rough)
    if count == 0:
        return mask
    rough = ndimage.binary_fill_holes(parts == np.bincount(parts.flat)[1:].argmax() + 1)
    return rough * np.uint8(255)


def _draw(rng: np.random.Generator, label: str, difficulty: float, scale: float, size_px: int):
    """One mask and its injected truth."""
    from PIL import Image, ImageDraw
    from scipy import ndimage

    # Every draw happens whether it is used or not, so that difficulty 0 and 1 show the same spine,
    # mixed or not.
    shape = _shape(rng, label)
    other = _NEIGHBOURS[label][int(rng.integers(len(_NEIGHBOURS[label])))]
    other_shape = _shape(rng, other)
    mixed = rng.random()
    mix = rng.uniform(0.2, 0.5)
    if mixed < 0.35 * difficulty:
        shape += mix * (other_shape - shape)
    else:
        other = ""
        mix = 0.0
    length, head_width, aspect, neck_ratio, flare_left, flare_right, bend = shape
    unit = scale * size_px / 250
    length = length * unit
    head_width = head_width * unit
    half_height = min(0.5 * head_width * aspect, 0.46 * length)
    neck_width = neck_ratio * head_width

    # Half width along the midline: the wider of neck and head ellipse, rounded where the two meet.
    along = np.concatenate(
        [np.linspace(0, 0.85, 46)[:-1], 0.85 + 0.15 * np.sin(np.linspace(0, np.pi / 2, 22))]
    )
    distance = along * length
    centre = length - half_height
    head = 0.5 * head_width * np.sqrt(np.clip(1 - ((distance - centre) / half_height) ** 2, 0, 1))
    neck = np.where(distance < centre, 0.5 * neck_width, 0.0)
    half = np.maximum(head, neck)
    half[1:42] = np.convolve(half, _SMOOTH, mode="same")[1:42]
    half[0] = half[1]
    decay = np.exp(-distance / ((0.07 * length + 2 * unit) * np.exp(rng.normal(0, 0.35))))
    sides = half + np.array([[flare_left], [flare_right]]) * unit * decay  # left, right
    below = distance <= centre
    truth = {
        "head_width_px": 2 * float(half[distance > 0.5 * centre].max()),
        "neck_width_px": float(sides.sum(0)[below].min()),
        "length_px": float(length),
        "base_width_px": float(sides[:, 0].sum()),
        "head_height_px": float(2 * half_height),
        "bend_degree": float(bend),
    }

    # An outline drawn by hand: a slow waviness and a fine jitter, which dies out at the tip.
    phases = rng.uniform(0, 2 * np.pi, (2, 3))
    waves = rng.normal(0, (0.030, 0.022, 0.015), (2, 3))
    turns = 2 * np.pi * np.outer((1.3, 2.7, 4.6), along)
    slow = 1 + (waves[:, :, None] * np.sin(turns[None] + phases[:, :, None])).sum(axis=1)
    jitter = rng.normal(0, 0.6, (2, len(along))) * unit * (1 - along**8)
    sides = np.maximum(sides * slow + jitter, 0.9 * (1 - along**12))

    # The midline leaves the dendrite upwards, leans by the tilt, and bends.
    tilt = rng.normal(0, 7.0)
    angle = np.deg2rad(90 + tilt + bend * (along - 0.5) * 2)
    step = np.diff(distance, prepend=0)
    line = np.cumsum([np.cos(angle) * step, -np.sin(angle) * step], axis=1)  # x, y
    across = np.stack([np.sin(angle), np.cos(angle)])
    # The foot of a spine follows the dendrite, which lies nearly level, whatever the tilt of the
    # spine.
    level = np.exp(-along / 0.06) * 0.7
    across = across * (1 - level) + np.stack([level, np.zeros_like(level)])
    middle = np.argmin(abs(distance - centre))
    place = size_px * (np.array([[0.5], [0.484]]) + rng.normal(0, 0.022, (2, 1)))
    line = line - line[:, [middle]] + place
    x, y = np.stack(
        [line - sides[0] * across, line + sides[1] * across], axis=1
    )  # each left, right
    margin = 3.0
    low = x.min()
    high = x.max()
    if high - low > size_px - 2 * margin:  # only at extreme draws: narrow it rather than cut it
        squeeze = (size_px - 2 * margin) / (high - low)
        x = margin + (x - low) * squeeze
    else:
        x += max(0.0, margin - low) - max(0.0, high - (size_px - 1 - margin))
    y += max(0.0, margin - y.min())

    # Slices between neighbouring points of the midline: unlike one polygon, these cannot leave
    # holes where a strongly bent outline crosses itself.
    picture = Image.new("L", (size_px, size_px))
    pen = ImageDraw.Draw(picture)
    left, right = np.stack([x, y], axis=2).tolist()
    for one in range(len(along) - 1):
        corners = [*left[one], *left[one + 1], *right[one + 1], *right[one]]
        pen.polygon(corners, fill=255, outline=255)
    truth |= {
        "tilt_degree": float(tilt),
        "cut_off": bool(y.max() >= size_px),
        "between": other,
        "mix": float(mix),
    }
    # Pillow now and then sets a lone pixel below the lowest row of a polygon: keep the spine only.
    mask = np.array(picture)
    left, upper, right, lower = picture.getbbox()
    parts, count = ndimage.label(mask[upper:lower, left:right], structure=np.ones((3, 3)))
    if count > 1:
        mask[upper:lower, left:right][parts != np.bincount(parts.flat)[1:].argmax() + 1] = 0
    return mask, truth
