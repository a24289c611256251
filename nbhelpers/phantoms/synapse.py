"""Phantoms of excitatory and inhibitory synapses in electron microscopy: patches, cubes and whole
volumes.

Excitatory: round vesicles and a thick postsynaptic density. Inhibitory: flattened vesicles and a
thin one. Each neuron has a style of its own (density, vesicles, brightness), so that the errors of
a model are correlated within a neuron, as they are in real tissue. Synthetic images: scores on them
show that a method works, not biology.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import ParameterError, check_choice, check_range
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import derive_seed, generator_for
from nbhelpers.phantoms.drawn import Phantoms, drawn_once
from nbhelpers.phantoms.matched import match_photometry
from nbhelpers.phantoms.synapse_draw import draw
from nbhelpers.phantoms.synapse_scene import Scene, Synapse, Warp, build

CLASSES = ("excitatory", "inhibitory")
CUES = ("all", "3d")
PIXEL_NM = 8.0  # of a patch, as of MICrONS at mip 0
_MARGIN_NM = 420.0  # neurites are laid out this far beyond what is seen
_FIRST_ROOT = 864691135000000000
_FIRST_NUCLEUS = 262000
_FIRST_SYNAPSE = 185000000


@dataclass
class SynapseVolume:
    """A volume with labelled neurons, their synapses and the truth behind them.

    pixels : (z, y, x) uint8. cause : (z, y, x) bool, as that of patches, of all synapses.
    origin_nm : (x, y, z) of the outer corner of voxel 0. voxel_nm : (z, y, x).
    neurons : ``root_id``, ``nucleus_id`` (int64), ``cell_type``, soma ``x_nm``, ``y_nm``, ``z_nm``.
    synapses : ``id``, ``pre_root_id``, ``post_root_id`` (int64; a quarter of the latter are no
        neuron of the table), ``x_nm`` .. (centre of the cleft), ``pre_x_nm`` .., ``post_x_nm`` ..,
        ``size``, and what was injected: ``psd_nm``, ``flattened``, ``cleft_radius_nm``,
        ``tilt_degree``.
    """

    pixels: np.ndarray
    cause: np.ndarray
    voxel_nm: tuple[float, float, float]
    origin_nm: tuple[float, float, float]
    neurons: pd.DataFrame
    synapses: pd.DataFrame


@dataclass(frozen=True)
class _Neuron:
    """The style that the synapses of one neuron share."""

    name: str
    label: str
    psd: float
    flattened: float
    vesicles: float
    vesicle_scale: float
    darkness: float
    brightness: float


def make_synapse_patches(
    count: int,
    *,
    neurons: int = 24,
    size_px: int = 128,
    pixel_nm: float = PIXEL_NM,
    seed: int = 0,
    difficulty: float = 1.0,
    matched: bool = True,
) -> Phantoms:
    """Draw ``count`` single sections of 40 nm through synapses of ``neurons`` neurons, half of each
    class.

    Each patch is centred on the cleft of its synapse: (n, 1, y, x) uint8, membranes and densities
    dark; the cause (n, y, x) is vesicles, cleft and postsynaptic density of that synapse. Patch
    ``i`` depends on all parameters but ``count``: it is the same however many are drawn. The table
    has ``id``, ``label``, ``group`` (presynaptic neuron), ``x_nm``, ``y_nm``, ``z_nm``, then what
    was injected: ``brightness``, ``contrast``, ``noise`` (grey values), ``blur`` (pixels),
    ``psd_nm`` (thickness of the density), ``flattened`` (share of flattened vesicles),
    ``cleft_radius_nm``, ``tilt_degree`` (of the cleft out of the upright), ``second`` (class of an
    unlabelled second synapse, or ""), ``dense_sections`` (one 0 or 1 a section, only with cue "3d")
    and ``seed``.

    Parameters
    ----------
    difficulty : 0 (clean, upright clefts, classes far apart), 1 (default) to 2 (noisy, tilted,
        overlapping).

    matched : take the short cuts out (see :mod:`nbhelpers.phantoms.matched`): grey values, their
        radial profile and the power spectrum carry no class. Otherwise only the mean and spread of
        the grey values carry none, as it may be in real tissue.

    Raises ParameterError on values out of range.
    """
    shape = (1, size_px, size_px)
    voxel = (40.0, pixel_nm, pixel_nm)
    return _make(count, neurons, shape, voxel, seed, difficulty, "all", matched)


def make_synapse_cubes(
    count: int,
    *,
    neurons: int = 24,
    shape_px: tuple[int, int, int] = (16, 128, 128),
    voxel_nm: tuple[float, float, float] = (40.0, 8.0, 8.0),
    seed: int = 0,
    difficulty: float = 1.0,
    cue: str = "all",
    matched: bool = True,
) -> Phantoms:
    """Draw ``count`` cubes (z, y, x) of consecutive sections; as ``make_synapse_patches`` else.

    Parameters
    ----------
    cue : "all" (everything that tells the classes apart in a section too) or "3d": half of the
        sections show the thick density and half the thin one, in both classes, vesicles are mixed
        in both; the thick sections follow one another in excitatory cubes (cyclically, at a random
        phase) and are scattered in inhibitory ones. Each section for itself, and the sections in
        any other order, carry no class, so there is nothing to match; flips and turns change
        nothing.

    Raises ParameterError on values out of range.
    """
    voxel = tuple(map(float, voxel_nm))
    return _make(count, neurons, tuple(shape_px), voxel, seed, difficulty, cue, matched)


def _make(count, neurons, shape, voxel, seed, difficulty, cue, matched) -> Phantoms:
    _checked(count, neurons, shape, voxel, difficulty)
    check_choice("parameter cue", cue, CUES)
    if cue == "3d" and shape[0] < 4:
        raise ParameterError(
            "parameter shape_px", f"{shape[0]} sections cannot carry the 3D cue.", "Give 4 or more."
        )
    pixels = np.empty((count, *shape), np.uint8)
    cause = np.empty((count, *shape), bool)
    rows = []
    for index in range(count):
        neuron = _neuron(seed, index % neurons, difficulty)
        own = derive_seed(seed, "synapse", index)
        settings = (shape, voxel, difficulty, cue)
        drawn, cause[index], truth = _one(np.random.default_rng(own), neuron, *settings)
        if matched and cue == "all":
            other = _neuron(seed, index % neurons, difficulty, twin=True)
            twin, _, _ = _one(np.random.default_rng(own), other, *settings)
            drawn = match_photometry(drawn, drawn, twin)
        pixels[index] = _as_bytes(drawn)
        rows.append(
            {
                "id": f"phantom-{index:06d}",
                "label": neuron.label,
                "group": neuron.name,
                **truth,
                "seed": own,
            }
        )
    flat = shape[1:] if shape[0] == 1 else shape
    return Phantoms(
        pixels.reshape(count, 1, *flat), cause.reshape(count, *flat), pd.DataFrame(rows)
    )


def _checked(count, neurons, shape, voxel, difficulty, name="count", most=1_000_000) -> None:
    check_range(f"parameter {name}", count, 1, most)
    check_range("parameter neurons", neurons, 2, 100_000)  # one of each class
    check_range("parameter difficulty", difficulty, 0, 2)
    name = "size_px" if shape[0] == 1 else "shape_px"
    if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < 32 or max(shape) > 4096:
        raise ParameterError(
            f"parameter {name}",
            f"{tuple(shape)} is no usable shape.",
            "Give at least 32 pixels in y and x, 1 section, and at most 4096 of each.",
        )
    if len(voxel) != 3 or not 1 <= min(voxel) <= max(voxel) <= 200:
        raise ParameterError(
            "parameter voxel_nm" if shape[0] > 1 else "parameter pixel_nm",
            f"{tuple(voxel)} is no voxel of an electron microscope.",
            "Give 1 to 200 nm each.",
        )


def _neuron(seed: int, number: int, difficulty: float, twin: bool = False) -> _Neuron:
    """The style of a neuron: the same for patches, cubes and volumes of a seed; or of its ``twin``,
    the same in the other class.

    Of two neurons in a row one is of each class, which comes first is drawn: the order of files
    tells nothing.
    """
    rng = generator_for(seed, "synapse neuron", number)
    first = derive_seed(seed, "first of two neurons", number // 2) % 2
    label = CLASSES[(number + first + twin) % 2]
    normal = rng.normal(size=6)
    excitatory = label == CLASSES[0]
    psd = (
        (46.0 if excitatory else 11.0)
        + (2.0 + 1.5 * difficulty) * normal[0]
        + (-2.0, 2.0)[not excitatory] * difficulty
    )
    flattened = (
        0.04 + 0.06 * difficulty if excitatory else 0.92 - 0.08 * difficulty
    ) + 0.03 * difficulty * normal[1]
    return _Neuron(
        f"neuron-{number:03d}",
        label,
        psd,
        float(np.clip(flattened, 0, 1)),
        5600 * np.exp(0.15 * normal[2]),
        np.exp(0.05 * normal[3]),
        float(np.clip(0.86 + 0.04 * normal[4], 0.7, 0.97)),
        3.0 * normal[5],
    )


def _synapse(rng, neuron: _Neuron, centre, difficulty: float, small: float = 1.0) -> Synapse:
    normal = rng.normal(size=6)
    turn = rng.uniform(0, 2 * np.pi)
    tilt = np.clip(0.1 + 0.38 * difficulty, 0, 0.9) * rng.uniform(-1, 1)
    flat = np.sqrt(1 - tilt**2)
    return Synapse(
        np.asarray(centre, float),
        np.array([tilt, flat * np.sin(turn), flat * np.cos(turn)]),
        cleft_radius=small * float(np.clip(185 * np.exp(0.14 * normal[0]), 130, 250)),
        pre_radius=small * float(np.clip(275 * np.exp(0.12 * normal[1]), 215, 350)),
        post_radius=small * float(np.clip(255 * np.exp(0.16 * normal[2]), 190, 340)),
        psd=float(np.clip(neuron.psd + (1.5 + 2.5 * difficulty) * normal[3], 5, 60)),
        flattened=float(np.clip(neuron.flattened + 0.05 * difficulty * normal[4], 0, 1)),
        vesicles_per_um3=neuron.vesicles * np.exp(0.15 * normal[5]),
        vesicle_scale=neuron.vesicle_scale,
        darkness=neuron.darkness,
    )


def _truth(one: Synapse) -> dict:
    return {
        "psd_nm": one.psd,
        "flattened": one.flattened,
        "cleft_radius_nm": one.cleft_radius,
        "tilt_degree": float(np.rad2deg(np.arcsin(one.normal[0]))),
    }


def _place(places, prefix: str = "") -> dict:
    """(..., 3) x, y, z in nm as columns of a table."""
    return {f"{prefix}{axis}_nm": values for axis, values in zip("xyz", places.T, strict=True)}


def _axes(shape, voxel):
    """Centres of the voxels in nm, 0 in the middle of the box."""
    return [
        (np.arange(length) - (length - 1) / 2) * step
        for length, step in zip(shape, voxel, strict=True)
    ]


def _one(rng, neuron: _Neuron, shape, voxel, difficulty: float, cue: str):
    """One patch or cube, its cause and the truth behind it."""
    half = np.array(shape) * voxel / 2
    place = rng.uniform((400_000, 300_000, 700_000), (1_100_000, 900_000, 1_400_000))
    warp = Warp(rng, 0.3 if cue == "3d" else 0.5)
    synapse = _synapse(rng, neuron, warp.at(np.zeros((1, 3)))[0], difficulty)
    order = _order(rng, shape[0], neuron.label) if cue == "3d" else np.zeros(0, bool)
    if cue == "3d":
        synapse.normal = np.array([0.0, *(synapse.normal[1:] / np.linalg.norm(synapse.normal[1:]))])
        # Nothing but the order of the sections may tell the class.
        synapse.tall = True
        synapse.dense_sections = order
        synapse.psd = 46.0
        synapse.psd_thin = 9.0
        synapse.flattened = 0.5
    synapses = [synapse]
    second = ""
    other = _second(rng, synapse, neuron, half, difficulty)
    wanted = rng.random() < 0.35 * difficulty
    label = CLASSES[int(rng.random() < 0.5)]
    if cue == "all" and wanted and _apart(synapse, other[label]):
        second = label
        synapses.append(other[label])
    scene = build(rng, -half - _MARGIN_NM, half + _MARGIN_NM, synapses, warp, (-half, half))
    grey, cause = draw(
        scene,
        *_axes(shape, voxel),
        shift=_jitter(rng, shape[0], voxel, difficulty),
        texture=_texture(rng, shape),
        block=(1, 64, 64) if shape[0] == 1 else (8, 32, 32),
    )
    exposure = _exposure(rng, difficulty)
    exposure["brightness"] += neuron.brightness
    pixels = _expose(rng, grey, exposure, grey.mean(), grey.std())
    truth = {
        **_place(place),
        **exposure,
        **_truth(synapse),
        "second": second,
        "dense_sections": "".join("01"[int(one)] for one in order),
    }
    return pixels, cause == 1, truth


def _second(rng, first: Synapse, neuron: _Neuron, half, difficulty: float) -> dict[str, Synapse]:
    """A second synapse of an unlabelled neuron away from the centre, as it would be in either
    class.
    """
    turn = rng.uniform(0, 2 * np.pi)
    away = rng.uniform(0.75, 1.0) * np.clip(half[1:].min(), 430, 650)
    centre = first.centre + np.array(
        [rng.uniform(-60, 60), away * np.sin(turn), away * np.cos(turn)]
    )
    state = rng.integers(2**62)
    found = {}
    for twin in (False, True):
        style = _neuron(state, 0, difficulty, twin)
        own = np.random.default_rng(state)
        found[style.label] = _synapse(own, style, centre, difficulty, 0.85)
    return found


def _order(rng, sections: int, label: str) -> np.ndarray:
    """Which sections show the thick density: a cyclic run, or scattered; each section is as likely
    in both.
    """
    chosen = np.arange(sections) < sections // 2
    if label != CLASSES[0]:
        while np.count_nonzero(chosen != np.roll(chosen, 1)) < 2 + 0.55 * (2 * (sections // 2) - 2):
            chosen = rng.permutation(chosen)
    return np.roll(chosen, rng.integers(sections))


def _jitter(rng, sections: int, voxel, difficulty: float) -> np.ndarray:
    """Misalignment of the sections in nm (z, 2)."""
    jitter = rng.normal(0, 0.35 * difficulty, (sections, 2)) * np.array(voxel[1:])
    return jitter * (sections > 1)


def _texture(rng, shape) -> np.ndarray:
    """Noise of unit variance: filaments and grains of the cytosol, independent in every section."""
    from scipy.ndimage import gaussian_filter

    def grain(width: float, truncate: float) -> np.ndarray:
        noise = rng.standard_normal(shape, dtype=np.float32)
        return gaussian_filter(noise, (0, width, width), truncate=truncate)

    return 0.85 * grain(0.9, 3) * 3.19 + 0.5 * grain(3.0, 2.5) * 10.6


def _exposure(rng, difficulty: float) -> dict:
    normal = rng.normal(size=4)
    return {
        "brightness": float(148 + 10 * normal[0]),
        "contrast": float(np.clip(37 + 3.5 * normal[1], 26, 48)),
        "noise": float((2.5 + 4.5 * difficulty) * np.exp(0.2 * normal[2])),
        "blur": float((0.35 + 0.25 * difficulty) * np.exp(0.2 * normal[3])),
    }


def _expose(rng, grey: np.ndarray, exposure: dict, mean: float, spread: float) -> np.ndarray:
    """Grey values of the wanted brightness and contrast. Setting both for the whole image keeps
    the class out of them, although a thick density is darker than a thin one."""
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(grey, (0, exposure["blur"], exposure["blur"]), truncate=3)
    gain = exposure["contrast"] / spread
    offset = exposure["brightness"] - mean * gain
    sections = len(grey)
    if sections > 1:  # staining and beam vary from section to section
        gain = gain * (1 + 0.04 * rng.standard_normal((sections, 1, 1), dtype=np.float32))
        offset = offset + 3 * rng.standard_normal((sections, 1, 1), dtype=np.float32)
    noise = rng.standard_normal(grey.shape, dtype=np.float32)
    noise = 0.86 * noise + 0.5 * np.roll(
        noise, 1, axis=-1
    )  # neighbours along a scanned line share some
    return blurred * gain + offset + exposure["noise"] * noise


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8; black is kept for what is missing."""
    return np.clip(np.rint(pixels), 1, 255).astype(np.uint8)


def make_synapse_volume(
    shape_px: tuple[int, int, int] = (64, 768, 768),
    *,
    voxel_nm: tuple[float, float, float] = (40.0, 8.0, 8.0),
    neurons: int = 16,
    synapses: int = 240,
    seed: int = 0,
    difficulty: float = 1.0,
    missing_sections: Iterable[int] = (),
) -> SynapseVolume:
    """Draw a volume of neuropil with ``synapses`` synapses of ``neurons`` labelled neurons, half of
    each class.

    Nine of ten synapses lie at least 540 nm from the sides and 340 nm from top and bottom, as far
    as the volume is large enough; the others lie anywhere. Boutons of one neuron are not joined by
    an axon within the volume.

    Parameters
    ----------
    missing_sections : these are all 0; no other voxel is. All sections are jittered by about a
        third of a pixel.

    Raises ParameterError on values out of range, and where so many synapses find no room.
    """
    shape = tuple(shape_px)
    voxel = tuple(map(float, voxel_nm))
    _checked(synapses, neurons, shape, voxel, difficulty, "synapses", 30_000)
    if synapses < neurons:
        raise ParameterError(
            "parameter synapses",
            f"{synapses} synapses cannot belong to {neurons} neurons.",
            "Give at least one a neuron.",
        )
    missing = list(missing_sections)
    outside = [one for one in missing if not 0 <= one < shape[0]]
    if outside:
        raise ParameterError(
            "parameter missing_sections",
            f"there is no section {outside[0]}.",
            f"Give numbers from 0 to {shape[0] - 1}.",
        )
    rng = generator_for(seed, "synapse volume")
    half = np.array(shape) * voxel / 2
    warp = Warp(rng, 0.46)
    styles = [_neuron(seed, number, difficulty) for number in range(neurons)]
    shares = np.exp(rng.normal(0, 0.4, neurons))
    owners = np.concatenate(
        [np.arange(neurons), rng.choice(neurons, synapses - neurons, p=shares / shares.sum())]
    )
    owners = rng.permutation(owners)
    placed = _placed(rng, [styles[one] for one in owners], half, warp, difficulty)
    scene = build(rng, -half - _MARGIN_NM, half + _MARGIN_NM, placed, warp, (-half, half))

    # To pixels and back, as the published volumes were drawn: another rounding is another volume.
    moved = -_jitter(rng, shape[0], voxel, difficulty) / voxel[1:]
    pixels = np.empty(shape, np.uint8)
    cause = np.empty(shape, bool)
    z, y, x = _axes(shape, voxel)
    exposure = {
        "brightness": 148.0,
        "contrast": 37.0,
        "noise": 2.5 + 4.5 * difficulty,
        "blur": 0.35 + 0.25 * difficulty,
    }
    level = None
    for first in range(0, shape[0], 8):
        at = slice(first, first + 8)
        texture = _texture(rng, (len(z[at]), *shape[1:]))
        grey, which = draw(scene, z[at], y, x, shift=-moved[at] * voxel[1:], texture=texture)
        level = level or (grey.mean(), grey.std())  # one scale for the whole volume
        pixels[at] = _as_bytes(_expose(rng, grey, exposure, *level))
        cause[at] = which > 0
    pixels[missing] = 0
    cause[missing] = False

    origin = np.rint(np.array([684_800.0, 521_600.0, 812_000.0]) / voxel[::-1]) * voxel[::-1]
    neuron_table = _neuron_table(rng, styles, origin, half)
    roots = neuron_table["root_id"].to_numpy()
    synapse_table = _synapse_table(rng, scene, roots, owners, origin, half)
    place = tuple(map(float, origin))
    return SynapseVolume(pixels, cause, voxel, place, neuron_table, synapse_table)


def _placed(rng, styles: list[_Neuron], half, warp: Warp, difficulty: float) -> list[Synapse]:
    """Synapses with room for their boutons."""
    inner = np.minimum((360.0, 550.0, 550.0), half / 2)
    placed: list[Synapse] = []
    for style in styles:
        inside = rng.random() < 0.9
        for attempt in range(800):
            margin = inner if inside and attempt < 400 else np.minimum(60.0, half / 2)
            spot = warp.at(where := rng.uniform(margin - half, half - margin)[None])[0] + where[0]
            one = _synapse(rng, style, spot, difficulty, small=0.75 * 0.9995**attempt)
            if all(_apart(one, other) for other in placed):
                placed.append(one)
                break
        else:
            raise ParameterError(
                "parameter synapses",
                f"only {len(placed)} of {len(styles)} synapses find room.",
                "Ask for fewer or for a larger volume.",
            )
    return placed


def _apart(one: Synapse, other: Synapse) -> bool:
    """Neither bouton nor what it lies on reaches into the cleft of the other."""
    gap = np.linalg.norm(one.centre - other.centre)
    if gap > 1000:
        return True
    if gap < 1.4 * (one.cleft_radius + other.cleft_radius):
        return False
    for first, second in ((one, other), (other, one)):
        for size in (-first.pre_radius, first.post_radius):
            if (
                np.linalg.norm(first.centre + size * first.normal - second.centre)
                < abs(size) + second.cleft_radius + 30
            ):
                return False
    return True


def _neuron_table(rng, styles, origin, half) -> pd.DataFrame:
    soma = origin + half[::-1] + rng.uniform(-60_000, 60_000, (len(styles), 3))
    numbers = np.arange(len(styles))
    return pd.DataFrame(
        {
            "root_id": _FIRST_ROOT + rng.permutation(10 * len(styles))[numbers] * 100_003 + 7,
            "nucleus_id": _FIRST_NUCLEUS + rng.permutation(10 * len(styles))[numbers],
            "cell_type": [style.label for style in styles],
            **_place(soma),
        }
    )


def _synapse_table(rng, scene: Scene, roots, owners, origin, half) -> pd.DataFrame:
    count = len(owners)
    partner = rng.integers(1, len(roots), count)
    post = np.where(
        rng.random(count) < 0.25,
        _FIRST_ROOT + 50_000_000_000 + 13 * np.arange(count),
        roots[(owners + partner) % len(roots)],
    )
    centre, normal = (
        np.array([getattr(one, name) for one in scene.synapses]) for name in ("centre", "normal")
    )
    points = {}
    for name, side in (("", 0), ("pre_", -150), ("post_", 150)):
        seen = scene.warp.undo(centre + side * normal)
        points |= _place((seen + half)[:, ::-1] + origin, name)
    truth = pd.DataFrame([_truth(one) for one in scene.synapses])
    return pd.DataFrame(
        {
            "id": _FIRST_SYNAPSE + rng.permutation(20 * count)[:count],
            "pre_root_id": roots[owners],
            "post_root_id": post,
            **points,
            "size": (truth["cleft_radius_nm"] ** 2 * np.pi * 26 / 1280).round().astype(int),
        }
    ).join(truth)


# As image sets, drawn once and kept

_DRAWN_BY = "synapse*.py"
_DEFAULTS = {"neurons": 24, "seed": 0, "difficulty": 1.0}


def load_phantom_synapses(count: int, data_folder: str | Path, **settings: object) -> ImageSet:
    """Patches as :func:`make_synapse_patches` draws them with these ``settings``, drawn once.

    (n, 1, size_px, size_px) uint8, memory-mapped; group is the presynaptic neuron.
    """
    table, arrays = _drawn_patches(count, data_folder, settings)
    return ImageSet(
        name="synapse phantoms",
        table=table,
        pixels=arrays["pixels"],
        classes=CLASSES,
        source=_source(count, settings),
        synthetic=True,
        channels=("EM",),
        pixel_size_nm=(PIXEL_NM, PIXEL_NM),
    )


def phantom_causes(count: int, data_folder: str | Path, **settings: object) -> np.ndarray:
    """(n, size_px, size_px) bool, memory-mapped: the injected cause in each image of
    :func:`load_phantom_synapses` with the same settings.
    """
    _, arrays = _drawn_patches(count, data_folder, settings)
    return arrays["cause"]


def load_phantom_cubes(
    count: int,
    data_folder: str | Path,
    *,
    shape_px: Sequence[int] = (12, 48, 48),
    voxel_nm: Sequence[float] = (40.0, 10.0, 10.0),
    cue: str = "3d",
    **settings: object,
) -> ImageSet:
    """Cubes as :func:`make_synapse_cubes` draws them with these settings, drawn once.

    (n, 1, z, y, x) uint8, memory-mapped; group is the presynaptic neuron.
    """
    settings = {"neurons": 48, **settings}
    wanted = {"count": count, "shape_px": shape_px, "voxel_nm": voxel_nm, "cue": cue, **settings}
    table, arrays = drawn_once(data_folder, "cubes", _DRAWN_BY, make_synapse_cubes, wanted)
    where = "in the order of the sections only" if cue == "3d" else "in every section"
    return ImageSet(
        name="synapse phantoms in 3D",
        table=table,
        pixels=arrays["pixels"],
        classes=CLASSES,
        source=f"{_source(count, settings)}, the class is {where}",
        synthetic=True,
        channels=("EM",),
        pixel_size_nm=tuple(map(float, voxel_nm)),
    )


def _drawn_patches(count: int, data_folder: str | Path, settings: dict) -> tuple:
    wanted = {"count": count, **settings}
    arrays = ("pixels", "cause")
    return drawn_once(data_folder, "synapses", _DRAWN_BY, make_synapse_patches, wanted, arrays)


def _source(count: int, settings: dict) -> str:
    known = _DEFAULTS | settings
    return (
        f"{count} synthetic synapses of {known['neurons']} neurons drawn by "
        f"nbhelpers.phantoms.synapse, seed {known['seed']}, difficulty {known['difficulty']:g}"
    )
