"""Kinds of images and the defects that are planted in them, to score an audit on.

Only phantoms and pictures that come with scikit-image and scikit-learn, so anybody can make the
same pixels and score another tool: docs/audit_benchmark.md tells how. Constants of the audit were
chosen on the kinds in ``TUNED_ON``; ``REPORTED`` were only reported. Both lists were fixed first.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate, shift

TUNED_ON = (
    "photographs of people, cup, palace",
    "textures of brick and gravel",
    "fundus with dark corners",
    "spine masks",
    "EM of synapses",
    "PAS glomeruli",
    "fluorescent plates",
)
REPORTED = (
    "photographs of cat, flower, rocket, motorcycle",
    "textures of grass and moon",
    "sky",
    "masks of blobs",
    "EM of neuropil",
    "IHC tissue",
    "fluorescent nuclei",
)
TILE_PX = 64
MOST = 240  # images of a kind
FLAT = 4.0  # standard deviation in grey levels below which nothing is there to be copied


# The kinds: (n, channel, y, x) uint8


def _pictures(folder: Path, names: tuple[str, ...]) -> np.ndarray:
    """Tiles of pictures, next to each other and without overlap, picture by picture."""
    found = []
    for name in names:
        picture = np.asarray(Image.open(folder / name))
        picture = picture[None] if picture.ndim == 2 else np.moveaxis(picture[..., :3], -1, 0)
        for top in range(0, picture.shape[1] - TILE_PX + 1, TILE_PX):
            for left in range(0, picture.shape[2] - TILE_PX + 1, TILE_PX):
                found.append(picture[:, top : top + TILE_PX, left : left + TILE_PX])
    return np.stack(found)


def _skimage(*names: str) -> np.ndarray:
    import skimage.data

    return _pictures(Path(skimage.data.__file__).parent, names)


def _sklearn(*names: str) -> np.ndarray:
    import sklearn.datasets

    return _pictures(Path(sklearn.datasets.__file__).parent / "images", names)


def _people(seed: int) -> np.ndarray:
    return np.concatenate([_skimage("astronaut.png", "coffee.png"), _sklearn("china.jpg")])


def _things(seed: int) -> np.ndarray:
    pictures = _skimage("chelsea.png", "rocket.jpg", "motorcycle_left.png")
    return np.concatenate([pictures, _sklearn("flower.jpg")])


def _spines(seed: int) -> np.ndarray:
    from nbhelpers.phantoms.spine import make_spine_phantoms

    masks, _ = make_spine_phantoms(MOST, seed)
    return masks[:, None, ::2, ::2]


def _synapses(seed: int) -> np.ndarray:
    from nbhelpers.phantoms.synapse import make_synapse_patches

    return make_synapse_patches(MOST, neurons=40, size_px=96, seed=seed).pixels


def _glomeruli(seed: int) -> np.ndarray:
    from nbhelpers.phantoms.glomerulus import make_glomerulus_phantoms

    return make_glomerulus_phantoms(MOST, seed=seed, size_px=96).pixels


def _plates(seed: int) -> np.ndarray:
    from nbhelpers.phantoms.plate import make_plates

    return make_plates(3, seed=seed, size_px=96).pixels[:MOST]


def _blobs(seed: int) -> np.ndarray:
    """Black and white: smooth noise above its own 70th percentile."""
    noise = np.random.default_rng(seed).normal(size=(MOST, 1, 80, 80))
    smooth = gaussian_filter(noise, (0, 0, 6, 6))
    above = smooth > np.quantile(smooth, 0.7, axis=(2, 3), keepdims=True)
    return above.astype(np.uint8) * 255


def _neuropil(seed: int) -> np.ndarray:
    from nbhelpers.phantoms.synapse import make_synapse_volume

    found = []
    for number in range(2):
        volume = make_synapse_volume((24, 704, 704), synapses=40, seed=seed + number)
        section = volume.pixels[12]
        for top in range(0, 704, TILE_PX):
            for left in range(0, 704, TILE_PX):
                found.append(section[None, top : top + TILE_PX, left : left + TILE_PX])
    return np.stack(found)


def _nuclei(seed: int) -> np.ndarray:
    """Bright ellipses with texture on a dark ground, shot noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96]
    found = np.empty((MOST, 1, 96, 96), np.uint8)
    for number in range(MOST):
        light = np.full((96, 96), rng.uniform(6, 10))
        for _ in range(rng.integers(3, 9)):
            down, across, turn = rng.uniform([4, 4, 0], [92, 92, np.pi])
            long, short = rng.uniform([7, 5], [13, 9])
            along = (x - across) * np.cos(turn) + (y - down) * np.sin(turn)
            aside = (y - down) * np.cos(turn) - (x - across) * np.sin(turn)
            inside = np.clip(2.5 - 2.5 * np.hypot(along / long, aside / short), 0, 1)
            grain = gaussian_filter(rng.normal(size=(96, 96)), 1.5) * 2
            light += rng.uniform(60, 140) * inside * (1 + grain)
        light = rng.poisson(gaussian_filter(np.clip(light, 0, None), 0.8) * 2) / 2
        found[number, 0] = np.clip(light + rng.normal(0, 1.5, light.shape), 0, 255)
    return found


KINDS: dict[str, Callable[[int], np.ndarray]] = {
    "photographs of people, cup, palace": _people,
    "textures of brick and gravel": lambda seed: _skimage("brick.png", "gravel.png"),
    "fundus with dark corners": lambda seed: _skimage("retina.jpg"),
    "spine masks": _spines,
    "EM of synapses": _synapses,
    "PAS glomeruli": _glomeruli,
    "fluorescent plates": _plates,
    "photographs of cat, flower, rocket, motorcycle": _things,
    "textures of grass and moon": lambda seed: _skimage("grass.png", "moon.png"),
    "sky": lambda seed: _skimage("hubble_deep_field.jpg"),
    "masks of blobs": _blobs,
    "EM of neuropil": _neuropil,
    "IHC tissue": lambda seed: _skimage("ihc.png"),
    "fluorescent nuclei": _nuclei,
}


def make_kind(name: str, seed: int) -> np.ndarray:
    """At most ``MOST`` images of a kind, (n, channel, y, x) uint8, evenly from all there are."""
    pixels = np.asarray(KINDS[name](seed))
    if len(pixels) > MOST:
        pixels = pixels[np.linspace(0, len(pixels) - 1, MOST).astype(int)]
    return np.ascontiguousarray(pixels)


def pixel_hash(pixels: np.ndarray) -> str:
    """The sha256 of the values, in C order, with the shape before them."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def worth_copying(pixels: np.ndarray) -> np.ndarray:
    """(n,) bool: not a flat image, in which nothing is there to be found again."""
    return pixels.mean(axis=1).std(axis=(1, 2)) >= FLAT


# Copies: image (channel, y, x) uint8 and a random generator to image


def _cast(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _resized(image: np.ndarray, shape: tuple[int, int], how=Image.Resampling.BILINEAR):
    planes = [Image.fromarray(plane).resize(shape[::-1], how) for plane in image]
    return np.stack([np.asarray(plane) for plane in planes])


def _cropped(share: float) -> Callable:
    """This share of height and width, from anywhere, enlarged to the old size."""

    def change(image: np.ndarray, rng) -> np.ndarray:
        sides = [round(share * side) for side in image.shape[1:]]
        top, left = [rng.integers(0, image.shape[1 + at] - sides[at] + 1) for at in range(2)]
        part = np.ascontiguousarray(image[:, top : top + sides[0], left : left + sides[1]])
        return _resized(part, image.shape[1:])

    return change


def _shifted(share: float) -> Callable:
    """By this share of height and of width; the rim that comes free is filled in one of three
    ways.
    """

    def change(image: np.ndarray, rng) -> np.ndarray:
        ways = rng.choice([-1, 1], 2)
        by = [0, *np.rint(share * np.array(image.shape[1:])).astype(int) * ways]
        fill = rng.choice(["nearest", "constant", "grid-wrap"])
        return shift(image, by, order=0, mode=fill)

    return change


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Saved as JPEG and read again: colour as colour, other channels each as a grey image."""
    if len(image) == 3:
        planes = [np.moveaxis(image, 0, -1)]
    else:
        planes = list(image)
    found = []
    for plane in planes:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(plane)).save(file, "JPEG", quality=quality)
        read = np.asarray(Image.open(file))
        found.append(read[None] if read.ndim == 2 else np.moveaxis(read, -1, 0))
    return np.concatenate(found)


def _rescaled(factor: int) -> Callable:
    def change(image: np.ndarray, rng) -> np.ndarray:
        small = tuple(side // factor for side in image.shape[1:])
        return _resized(_resized(image, small, Image.Resampling.BOX), image.shape[1:])

    return change


def _turned(angle: float) -> Callable:
    def change(image: np.ndarray, rng) -> np.ndarray:
        return rotate(image, angle, axes=(-1, -2), reshape=False, order=1, mode="constant")

    return change


COPIES: dict[str, Callable] = {
    "inverted": lambda image, rng: 255 - image,
    "cropped to 90 %": _cropped(0.9),
    "cropped to 80 %": _cropped(0.8),
    "shifted by 5 %": _shifted(0.05),
    "shifted by 10 %": _shifted(0.10),
    "JPEG, quality 50": lambda image, rng: jpeg(image, 50),
    "JPEG, quality 30": lambda image, rng: jpeg(image, 30),
    "rescaled to 1/2": _rescaled(2),
    "rescaled to 1/4": _rescaled(4),
    "quarter turn": lambda image, rng: np.rot90(image, rng.choice([1, 2, 3]), (-2, -1)),
    "mirrored": lambda image, rng: image[..., ::-1],
    "contrast halved": lambda image, rng: _cast(64 + image * 0.5),
    "contrast doubled": lambda image, rng: _cast((image - image.mean()) * 2.0 + image.mean()),
}
FURTHER_COPIES: dict[str, Callable] = {
    "turned by 8 degrees": _turned(8),
    "turned by 45 degrees": _turned(45),
    "noise of 10 grey levels": lambda image, rng: _cast(image + rng.normal(0, 10, image.shape)),
    "mirrored, cropped to 90 %, JPEG 50": lambda image, rng: jpeg(
        _cropped(0.9)(image[..., ::-1], rng), 50
    ),
}


def planted_copies(pixels: np.ndarray, names: Sequence[str], count: int, seed: int):
    """The images with ``count`` copies of each of these kinds after them, and which images those
    are of: (n + copies, ...) uint8 and (copies,) int. Every copy is of another image.
    """
    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(worth_copying(pixels))
    chosen = rng.choice(usable, count * len(names), replace=False)
    every = COPIES | FURTHER_COPIES
    copies = []
    for at, row in enumerate(chosen):
        copies.append(every[names[at // count]](pixels[row], rng))
    return np.concatenate([pixels, np.stack(copies)]), chosen


# Short cuts: images (n, channel, y, x) uint8 of one class to such images


def _each(change: Callable) -> Callable:
    return lambda pixels, rng: np.stack([change(image, rng) for image in pixels])


def _frame(image: np.ndarray, rng) -> np.ndarray:
    image = image.copy()
    image[:, [0, -1], :] = 255
    image[:, :, [0, -1]] = 255
    return image


def _scale_bar(image: np.ndarray, rng) -> np.ndarray:
    image = image.copy()
    side = image.shape[-1]
    thick = max(1, round(0.02 * side))
    margin = max(2, round(0.05 * side))
    image[:, -margin - thick : -margin, -margin - round(0.2 * side) : -margin] = 255
    return image


def _hue(image: np.ndarray, rng) -> np.ndarray:
    """8 of 256 steps round the circle of hues."""
    hsv = np.array(Image.fromarray(np.moveaxis(image, 0, -1)).convert("HSV"))
    hsv[..., 0] += 8
    return np.moveaxis(np.asarray(Image.fromarray(hsv, "HSV").convert("RGB")), -1, 0)


SHORT_CUTS: dict[str, Callable] = {
    "frame": _each(_frame),
    "scale bar": _each(_scale_bar),
    "background + 6": lambda pixels, rng: _cast(pixels.astype(float) + 6),
    "file format": _each(lambda image, rng: jpeg(image, 40)),
    "half resolution": _each(_rescaled(2)),
    "hue + 8": _each(_hue),
    "gamma 1.15": lambda pixels, rng: _cast(255 * (pixels / 255.0) ** 1.15),
    "noise": lambda pixels, rng: _cast(pixels + rng.normal(0, 4, pixels.shape)),
    "mirrored": lambda pixels, rng: pixels[..., ::-1],
}


def shaded(pixels: np.ndarray) -> np.ndarray:
    """10 % brighter on the left and darker on the right, as light from one side makes all images of
    an instrument; without anything of that kind a mirrored image cannot be told from another.
    """
    return _cast(pixels * np.linspace(1.1, 0.9, pixels.shape[-1]))


def can_be_planted(name: str, pixels: np.ndarray) -> bool:
    """Hue needs colour; masks have no grey levels to which a gamma or a light could do anything."""
    if name == "hue + 8":
        return pixels.shape[1] == 3
    return name not in ("gamma 1.15", "mirrored") or len(np.unique(pixels)) > 2


def planted_short_cut(pixels: np.ndarray, name: str, labels: np.ndarray, seed: int) -> np.ndarray:
    """The images of class 1 with this defect, those of class 0 without."""
    found = shaded(pixels) if name == "mirrored" else pixels.copy()
    found[labels == 1] = SHORT_CUTS[name](found[labels == 1], np.random.default_rng(seed))
    return found


def dealt(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups (neighbours, six images each, three in sets below 180) and labels (0 or 1, a group has
    one) at random.
    """
    size = 6 if count >= 180 else 3
    group = np.arange(count) // size
    groups = group[-1] + 1
    return group, np.random.default_rng(seed).permutation(np.arange(groups) % 2)[group]
