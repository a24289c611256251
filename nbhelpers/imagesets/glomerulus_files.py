"""Image files of single glomeruli: what can be used, brought to one size."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from nbhelpers.core.errors import UnreadableImageError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets.folder import FileList
from nbhelpers.imagesets.from_files import read_files
from nbhelpers.imagesets.marks import with_marks
from nbhelpers.imagesets.reader import stored_size

SIZE_PX = 224  # the published input, and the size of the public patches
CHANNELS = ("red", "green", "blue")
LARGEST_PX = 4096  # a longer side is a slide or a large part of one, not one glomerulus
SMALLEST_PX = 32
LONGEST_ASPECT = 4.0


def is_drawing(pixels: np.ndarray) -> bool:
    """Whether a colour image, (3, y, x) uint8, is a drawing, a label image, a plot or a screen
    shot: neighbours are alike, and a few flat colours beside the background make up much of it.

    Of the pixels that differ from the commonest colour, 16 colours have at most 1.1 % in 484
    published glomeruli, 2.1 % after JPEG, 18 % cut out onto black or white and saved as JPEG; in
    drawings 25 % and more, also after JPEG. Heat maps of many colours and JPEG are not told.
    """
    rows = pixels[:, ::16]
    if (rows[:, :, 1:] == rows[:, :, :-1]).all(0).mean() < 0.4:
        return False
    red, green, blue = pixels.astype(np.int64)
    codes, counts = np.unique(red << 16 | green << 8 | blue, return_counts=True)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255])
    background = colours[:, [counts.argmax()]]
    rest = np.sort(counts[(abs(colours - background) > 12).any(0)])
    return rest.sum() > 0.01 * red.size and rest[-16:].sum() > 0.2 * rest.sum()


def prepare_glomerulus(pixels: np.ndarray, path: object, size_px: int = SIZE_PX) -> np.ndarray:
    """One glomerulus, (3, y, x) uint8 or full-range uint16 of any size, to (3, size_px, size_px)
    uint8.

    An image that is no square is first continued to one by reflection at its edges, so that no
    shape changes; then it is resized with an antialiased bicubic filter. Raises
    UnreadableImageError for grey images (the stain is part of what is seen), images of one colour,
    drawings, whole slides, strips, very small images, and 16-bit images that do not use their
    range.
    """
    height, width = pixels.shape[1:]
    if max(height, width) > LARGEST_PX:
        raise UnreadableImageError(
            path,
            f"the image is {width} x {height} px, a whole slide perhaps.",
            "Cut out the single glomeruli first, for example in QuPath, and give those.",
        )
    if min(height, width) < SMALLEST_PX:
        raise UnreadableImageError(
            path,
            f"the image is only {width} x {height} px.",
            f"A glomerulus needs {SMALLEST_PX} px or more to each side.",
        )
    if max(height, width) > LONGEST_ASPECT * min(height, width):
        raise UnreadableImageError(
            path,
            f"the image is a strip of {width} x {height} px.",
            "Cut out the glomerulus as about a square.",
        )
    if all(channel.min() == channel.max() for channel in pixels):
        raise UnreadableImageError(
            path, "the image is of one colour.", "Leave it out, or export it again."
        )
    if len(pixels) == 1 or (len(pixels) == 3 and (pixels == pixels[:1]).all()):
        raise UnreadableImageError(
            path,
            "the image is grey, but the colours of the stain are needed.",
            "Export the image of the stained section in colour.",
        )
    if len(pixels) != 3:
        raise UnreadableImageError(
            path, f"the image has {len(pixels)} channels.", "Save it as RGB."
        )
    if pixels.dtype == np.uint16:
        if pixels.max() < 2**14:
            raise UnreadableImageError(
                path,
                f"it has 16 bit, but its brightest value is {pixels.max()}: which value is "
                "white cannot be known.",
                "Save it as RGB with 8 bit.",
            )
        pixels = (pixels >> 8).astype(np.uint8)
    if is_drawing(pixels):
        raise UnreadableImageError(
            path,
            "this is a drawing, not a stained section: it is made of a few flat colours.",
            "Give the image of the section, and no labels, plots or screen shots.",
        )
    return _square(pixels, size_px)


def _square(pixels: np.ndarray, size_px: int) -> np.ndarray:
    from PIL import Image

    height, width = pixels.shape[1:]
    side = max(height, width)
    if height != width:
        margins = [
            ((side - length) // 2, side - length - (side - length) // 2)
            for length in (height, width)
        ]
        pixels = np.pad(pixels, [(0, 0), *margins], mode="symmetric")
    if side == size_px:
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
    return np.ascontiguousarray(
        np.moveaxis(np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC)), -1, 0)
    )


def from_files(
    listed: FileList, data_folder: str | Path, *, size_px: int = SIZE_PX, **about: object
) -> ImageSet:
    """Read image files of glomeruli; copies share a group where none is given.

    Copies of one image under different labels are left out and listed; copies under one label stay
    and are named in the column ``copy_of`` (the id of the first). ``width_px`` and ``height_px``
    are those of the file. Images onto which something was drawn stay; ``drawn_on`` says where
    ("y 200 to 210, x 10 to 60", in pixels of the file, "" for none), ``marked`` whether, and
    ``source`` names them. Raises InputError when no file of a class can be used.
    """
    found = read_files(
        listed,
        data_folder,
        partial(prepare_glomerulus, size_px=size_px),
        name=f"glomerulus {size_px} px, 2",
        shape=(3, size_px, size_px),
        longest_px=LARGEST_PX,
    )
    sizes = [stored_size(Path(path)) or (np.nan, np.nan) for path in found.table["path"]]
    sizes = np.array(sizes, dtype=np.float64).reshape(-1, 2)
    table = found.table.assign(width_px=sizes[:, 0], height_px=sizes[:, 1])
    found = replace(found, table=table).without_copies(found.pixels)
    found.check_classes(listed)
    table = found.table
    first = table.groupby("print")["id"].transform("first")
    table = table.assign(copy_of=np.where(first == table["id"], "", first))
    if "group" not in table:  # copies must not be trained on and tested on
        table = table.assign(group="image-" + table["print"])
    sides = table[["height_px", "width_px"]].fillna(size_px).to_numpy()
    return with_marks(replace(found, table=table), sides).image_set(channels=CHANNELS, **about)
