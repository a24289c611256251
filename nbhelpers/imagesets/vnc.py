"""Real electron microscopy: synapses and mitochondria of the Drosophila nerve cord, cut into
patches and cubes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, ParameterError, check_choice, check_range
from nbhelpers.core.imageset import ImageSet, failure_table
from nbhelpers.core.seeds import generator_for
from nbhelpers.imagesets import downloads
from nbhelpers.imagesets.reader import read_image

KINDS = {"synapse": "synapses", "mitochondrion": "mitochondria"}  # and the folder with their masks
VOXEL_NM = (47.5, 4.6, 4.6)  # z, y, x; the sections are 45 to 50 nm thick
SECTIONS = 20
SIDE_PX = 1024
ACROSS = 2  # blocks along each side of the plane
MOST_SECTIONS = 8  # of each object
FEWEST_PX = 60  # of an object in a section: less is the tip of it
VNC_SOURCE = (
    "20 sections of the Drosophila larval ventral nerve cord (ssTEM, 4.6 x 4.6 x 45-50 nm), "
    "Gerhard, Funke, "
    "Martel, Cardona and Fetter 2013, figshare 856713, licence CC BY-NC-SA 3.0, commit "
    f"{downloads.VNC_COMMIT[:12]}"
)


def read_vnc(
    kind: str, *, data_folder: str | Path, data_dir: str | Path = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Sections and masks of one kind of object: (20, 1024, 1024) uint8 and bool.

    Downloaded once into ``data_folder`` and checked by sha256, or read from ``data_dir``, a folder
    that holds the published ``stack1``. A mask is whatever is not 0: in most files of synapses the
    foreground is 1 or 255, and which of the two differs between sections. Raises ParameterError,
    DownloadError, UnreadableImageError.
    """
    check_choice("parameter kind", kind, KINDS)
    stacks = []
    for part in ("raw", KINDS[kind]):
        files = downloads.fetch(
            f"vnc_sstem_{part}", Path(data_folder) / "downloads", given_folder=data_dir or None
        )
        stacks.append(np.stack([read_image(files[name])[0] for name in sorted(files)]))
    pixels = stacks[0]
    mask = stacks[1] > 0
    if (
        pixels.shape != (SECTIONS, SIDE_PX, SIDE_PX)
        or mask.shape != pixels.shape
        or pixels.dtype != np.uint8
    ):
        raise InputError(
            "vnc_sstem",
            f"sections are {pixels.shape} {pixels.dtype} and masks {mask.shape}.",
            "Delete the folder and download again.",
        )
    return pixels, mask


def load_vnc(
    data: str = "vnc_synapse",
    *,
    data_folder: str | Path,
    data_dir: str | Path = "",
    size_px: int = 128,
    seed: int = 0,
) -> ImageSet:
    """Patches around synapses or mitochondria, and others that hold none: classes ("other", kind).

    Parameters
    ----------
    data : "vnc_synapse" or "vnc_mitochondrion".
    size_px : height and width of a patch, at 4.6 nm per px.

    The plane is parted into four square blocks, through all sections: the groups of the split. What
    touches in 3D (26 neighbours) is one object, and an object belongs to the block of its centre;
    up to eight of its sections are used, evenly spread. A patch is centred on its object; at the
    edge of the image it gives way by up to an eighth of its size, and where that is not enough
    there is none. No pixel of a patch or an object of one block is, in any section, in a patch of
    another block: objects that would break this are left out and listed in ``failures``. As many
    "other" patches come from the same blocks. Half of them are centred anywhere; half, the
    look-alikes, are centred where it is as dark as at the centre of an object of that block (mean
    over about 20 px), on membranes, other organelles and vesicles. None holds a pixel of an object
    in its section or the ones next to it.

    The table has block (also the group), object (touching patches share it), section, y_px and x_px
    (of the patch's centre), x_nm, y_nm, z_nm, drawn ("object", "anywhere", "look-alike") and
    object_px (mask pixels in the patch). Raises ParameterError; errors of :func:`read_vnc`.
    """
    return _load(data, (1, size_px, size_px), data_folder, data_dir, others=1, seed=seed)


def load_vnc_cubes(
    data: str = "vnc_synapse",
    *,
    data_folder: str | Path,
    data_dir: str | Path = "",
    shape_px: tuple[int, int, int] = (8, 128, 128),
    seed: int = 0,
) -> ImageSet:
    """Cubes of ``shape_px`` (z, y, x) around synapses or mitochondria, and others that hold none;
    as :func:`load_vnc`.

    Up to eight sections of each object are in the middle of a cube; at the top and the bottom of
    the stack the cube gives way in z. An object cube holds its object in its middle section
    (section of the table); "other" cubes, two for each of them, as objects are few, hold no pixel
    of an object in any of their sections, and their middle sections are half a cube apart, in z or
    in the plane. The table has first_section, that of the cube, too.
    """
    if len(shape_px) != 3 or shape_px[1] != shape_px[2] or not 2 <= shape_px[0] <= SECTIONS:
        raise ParameterError(
            "parameter shape_px",
            f"{tuple(shape_px)} is no usable shape.",
            f"Give 2 to {SECTIONS} sections, and the same number of pixels in y and x.",
        )
    return _load(data, shape_px, data_folder, data_dir, others=2, seed=seed)


def _load(
    data: str,
    shape_px: tuple[int, int, int],
    data_folder: str | Path,
    data_dir: str | Path,
    *,
    others: int,
    seed: int,
) -> ImageSet:
    """Patches (of one section) or cubes; ``others`` without an object for each with one."""
    kind = data.removeprefix("vnc_")
    depth = shape_px[0]
    size_px = shape_px[1]
    pixels, mask = read_vnc(kind, data_folder=data_folder, data_dir=data_dir)
    check_range("parameter size_px", size_px, 16, mask.shape[1] // ACROSS // 2)
    found, left_out = _objects(kind, mask, size_px)
    other = _others(pixels, mask, found, size_px, others, seed, depth)
    table = pd.concat([found, other], ignore_index=True)
    table = table.sort_values(["block", "section", "y_px", "x_px", "id"], ignore_index=True)
    table["group"] = table["block"]
    for axis, name in enumerate(("section", "y_px", "x_px")):
        table["zyx"[axis] + "_nm"] = (table[name] + 0.5) * VOXEL_NM[axis]
    what = f"patches of {size_px} px"
    if depth > 1:
        what = f"cubes of {depth} sections of {size_px} px"
        table["first_section"] = _first_section(table["section"].to_numpy(), depth, len(mask))
    table["object_px"] = [int(part.sum()) for part in _cut(mask, table, size_px, depth)]
    return ImageSet(
        name=f"{KINDS[kind]} of the fly nerve cord",
        table=table,
        pixels=_cut(pixels, table, size_px, depth)[:, None],
        classes=("other", kind),
        synthetic=False,
        failures=left_out,
        pixel_size_nm=VOXEL_NM[1 if depth == 1 else 0 :],
        source=f"{VNC_SOURCE}; {what} around {found['object'].nunique()} {KINDS[kind]}, and "
        f"{others} for each of them without",
    )


def cause_masks(
    images: ImageSet, *, data_folder: str | Path, data_dir: str | Path = ""
) -> np.ndarray:
    """(n, y, x) or (n, z, y, x) bool: where the object is in each patch or cube; all false in
    "other" ones.
    """
    _, mask = read_vnc(images.classes[1], data_folder=data_folder, data_dir=data_dir)
    depth = images.pixels.shape[2] if images.pixels.ndim == 5 else 1
    return _cut(mask, images.table, images.pixels.shape[-1], depth)


def _first_section(middle: np.ndarray, depth: int, count: int) -> np.ndarray:
    """Where cubes of ``depth`` sections begin so that ``middle`` is in their middle, as far as the
    stack has sections.
    """
    return np.clip(middle - depth // 2, 0, count - depth)


def _cut(volume: np.ndarray, table: pd.DataFrame, size_px: int, depth: int = 1) -> np.ndarray:
    """(n, y, x), or (n, z, y, x) for a ``depth`` above 1: what is around each row's section, y_px,
    x_px.
    """
    half = size_px // 2
    first = _first_section(table["section"].to_numpy(), depth, len(volume))
    cubes = np.stack(
        [
            volume[z : z + depth, y - half : y - half + size_px, x - half : x - half + size_px]
            for z, y, x in zip(first, table["y_px"], table["x_px"], strict=True)
        ]
    )
    return cubes[:, 0] if depth == 1 else cubes


def _objects(kind: str, mask: np.ndarray, size_px: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table of patches centred on objects, and what was left out because two blocks would share
    pixels.
    """
    from scipy import ndimage

    labelled, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    half = size_px // 2
    side = mask.shape[1]
    tile = side // ACROSS
    rows = []
    boxes = {}
    blocks = {}
    failures = []
    for number, box in enumerate(ndimage.find_objects(labelled), start=1):
        name = f"{kind} {number:03d}"
        own = labelled[box] == number
        areas = own.sum((1, 2))
        clear = np.flatnonzero(areas >= FEWEST_PX)
        if not len(clear):
            failures.append(
                (name, f"no section shows {FEWEST_PX} px of it.", "It is the tip of an object.")
            )
            continue
        middle = [float(value) for value in ndimage.center_of_mass(own)]
        block = tuple(
            min(int((middle[axis] + box[axis].start) // tile), ACROSS - 1) for axis in (1, 2)
        )
        at = []
        spread = np.linspace(0, len(clear) - 1, min(MOST_SECTIONS, len(clear)))
        for z in clear[np.unique(spread.round().astype(int))]:
            inside = np.argwhere(own[z])
            # the middle of a bent object may be outside of it: take the nearest pixel of it
            nearest = inside[np.square(inside - inside.mean(0)).sum(1).argmin()]
            wanted = nearest + np.array([box[1].start, box[2].start])
            y, x = (int(value) for value in np.clip(wanted, half, side - size_px + half))
            if max(abs(wanted - (y, x))) > size_px // 8:
                continue
            at.append((y, x))
            rows.append(
                {
                    "id": f"{kind}-{number:03d}-section-{z + box[0].start:02d}",
                    "label": kind,
                    "object": name,
                    "block": f"block {block[0] * ACROSS + block[1]}",
                    "section": int(z + box[0].start),
                    "y_px": y,
                    "x_px": x,
                    "drawn": "object",
                }
            )
        if not at:
            failures.append(
                (
                    name,
                    "it lies at the edge of the image, where no patch can be centred on it.",
                    "Use smaller patches.",
                )
            )
            continue
        low = np.min(at, 0) - half
        high = np.max(at, 0) - half + size_px
        boxes[name] = (
            min(low[0], box[1].start),
            max(high[0], box[1].stop),
            min(low[1], box[2].start),
            max(high[1], box[2].stop),
        )
        blocks[name] = block
    clashes = {
        one: {
            two for two in boxes if blocks[one] != blocks[two] and _overlap(boxes[one], boxes[two])
        }
        for one in boxes
    }
    while any(clashes.values()):
        # the one with the most clashes goes first; of equals, the later one
        worst = max(clashes, key=lambda name: (len(clashes[name]), name))
        failures.append(
            (
                worst,
                f"its patches share pixels with those of {len(clashes[worst])} objects of another "
                "block.",
                "Objects at the border of two blocks are left out, so that folds share no pixel.",
            )
        )
        for rest in clashes.pop(worst):
            clashes[rest].discard(worst)
    table = pd.DataFrame(rows)
    table = table[table["object"].isin(clashes)].reset_index(drop=True)
    return table, failure_table(sorted(failures))


def _overlap(one: tuple, two: tuple) -> bool:
    return one[0] < two[1] and two[0] < one[1] and one[2] < two[3] and two[2] < one[3]


def _others(
    pixels: np.ndarray,
    mask: np.ndarray,
    found: pd.DataFrame,
    size_px: int,
    others: int,
    seed: int,
    depth: int,
) -> pd.DataFrame:
    """Table of patches or cubes without an object: ``others`` times as many in each block, half of
    them look-alikes.
    """
    from scipy.ndimage import binary_dilation, uniform_filter

    half = size_px // 2
    side = mask.shape[1]
    tile = side // ACROSS
    near = binary_dilation(mask, np.ones((3, 1, 1)))  # in this section or the next to it
    if depth > 1:  # in any section of the cube around this one
        near = np.stack(
            [
                mask[z : z + depth].any(0)
                for z in _first_section(np.arange(len(mask)), depth, len(mask))
            ]
        )
    holds = np.zeros((len(mask), side + 1, side + 1), np.int64)
    holds[:, 1:, 1:] = near.cumsum(1).cumsum(2)
    darkness = np.stack([uniform_filter(section.astype(np.float32), 21) for section in pixels])
    rows = []
    for block in sorted(found["block"].unique()):
        here = found[found["block"] == block]
        draw = generator_for(seed, "other patches", block)
        row, column = divmod(int(block.split()[1]), ACROSS)
        free = _free_of(found[found["block"] != block], size_px)
        wanted = darkness[here["section"], here["y_px"], here["x_px"]]
        taken: list[tuple[int, int, int]] = []
        tried = 0
        while len(taken) < others * len(here):
            tried += 1
            # where a block is full they may be closer
            apart = size_px // 2 if tried < 2_000 else size_px // 8
            if tried > 4_000:
                raise InputError(
                    f"vnc_sstem, {block}",
                    f"only {len(taken)} patches without an object were found, of "
                    f"{others * len(here)}.",
                    "Use smaller patches.",
                )
            z = draw.integers(len(mask), size=64)
            y = draw.integers(row * tile + half, (row + 1) * tile - size_px + half + 1, size=64)
            x = draw.integers(
                column * tile + half, (column + 1) * tile - size_px + half + 1, size=64
            )
            top = y - half
            left = x - half
            objects = (
                holds[z, top + size_px, left + size_px]
                - holds[z, top, left + size_px]
                - holds[z, top + size_px, left]
                + holds[z, top, left]
            )
            usable = np.flatnonzero((objects == 0) & free(y, x))
            if len(usable) and taken:
                near_z, near_y, near_x = (
                    abs(value[usable, None] - known)
                    for value, known in zip((z, y, x), np.transpose(taken), strict=True)
                )
                usable = usable[
                    ((near_z > max(1, depth // 2)) | (np.maximum(near_y, near_x) >= apart)).all(1)
                ]
            if not len(usable):
                continue
            alike = len(taken) % 2 == 1
            if alike:
                off = abs(darkness[z, y, x][usable] - wanted[len(taken) % len(wanted)])
                if off.min() > 6 and tried < 2_000:
                    continue
                usable = usable[[off.argmin()]]
            chosen = usable[0]
            z0 = int(z[chosen])
            y0 = int(y[chosen])
            x0 = int(x[chosen])
            rows.append(
                {
                    "id": f"other-{block[6:]}-{len(taken):03d}",
                    "label": "other",
                    "block": block,
                    "section": z0,
                    "y_px": y0,
                    "x_px": x0,
                    "drawn": "look-alike" if alike else "anywhere",
                    "object": f"{block} other {y0 // size_px}-{x0 // size_px}",
                }
            )
            taken.append((z0, y0, x0))
    return pd.DataFrame(rows)


def _free_of(others: pd.DataFrame, size_px: int):
    """Whether patches centred at (y, x) share no pixel, in any section, with the patches of
    ``others``.
    """
    at = others[["y_px", "x_px"]].to_numpy()

    def free(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        apart = np.maximum(abs(y[:, None] - at[:, 0]), abs(x[:, None] - at[:, 1]))
        return (apart >= size_px).all(1)

    return free
