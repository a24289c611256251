"""Sheets of images: what the data look like, and what a model got right and wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.core.errors import InputError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import PROBABILITY_PREFIX, Predictions
from nbhelpers.figures.style import (
    FAINT,
    RIGHT,
    SMALL,
    WIDTH,
    WRONG,
    new_figure,
    picture_grid,
    row_title,
    shortened,
    styled,
)

# One light per channel of a composite; the first two and the first three stay apart in any colour
# vision.
CHANNEL_COLOURS = ("#4da6ff", "#ff9d2e", "#3ddc97", "#ff6fd8", "#f5f06a")
PER_ROW = 5  # pictures of predictions
RGB = ({"red", "green", "blue"}, {"r", "g", "b"})


def to_display(image: np.ndarray, channels: Sequence[str] = ()) -> np.ndarray:
    """An image as matplotlib shows it: (y, x) grey or (y, x, 3) colour, float64 in 0..1.

    ``image`` is (y, x), (c, y, x) or (c, z, y, x) of 1 to 5 channels, bool, uint8, uint16 or float;
    of a 3D image the middle section is shown. Two-valued images (masks) become black and white. One
    channel of uint8, and three named red, green, blue, are shown over their full range; everything
    else is stretched per channel from its 0.5th to its 99.5th percentile. Several channels are
    added up as coloured lights (``CHANNEL_COLOURS``). Raises InputError on other axes.
    """
    image = np.asarray(image)
    if image.ndim == 4:
        image = image[:, image.shape[1] // 2]
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or not 1 <= len(image) <= len(CHANNEL_COLOURS):
        raise InputError(
            "image",
            f"the shape {image.shape} cannot be shown.",
            "Give (y, x), (c, y, x) or (c, z, y, x) with 1 to 5 channels.",
        )
    if is_colour(image, channels):
        return np.moveaxis(image, 0, -1) / 255.0
    lights = [_stretched(channel, full_range=len(image) == 1) for channel in image]
    return lights[0] if len(lights) == 1 else composite(np.stack(lights))


def composite(channels: np.ndarray) -> np.ndarray:
    """(c, y, x) in 0..1 to (y, x, 3): the channels as coloured lights, added up."""
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(colour) for colour in CHANNEL_COLOURS[: len(channels)]])
    return np.clip(np.einsum("cyx,ck->yxk", channels, colours), 0, 1)


def is_colour(image: np.ndarray, channels: Sequence[str]) -> bool:
    """Whether the first axis is the red, green and blue of a photograph."""
    return (
        len(image) == 3
        and image.dtype == np.uint8
        and {str(name).lower() for name in channels} in RGB
    )


def _stretched(channel: np.ndarray, full_range: bool) -> np.ndarray:
    values = channel.astype(np.float64)
    low = values.min()
    high = values.max()
    if channel.dtype == bool or (high > low and ((values == low) | (values == high)).all()):
        # a mask, whatever its two values
        return (values > low).astype(np.float64) if high > low else values
    if full_range and channel.dtype == np.uint8:
        return values / 255
    low, high = np.percentile(values, [0.5, 99.5])
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


@styled
def image_sheet(images: ImageSet, *, per_class: int = 6, seed: int = 0) -> Figure:
    """Some images of each class, one class per row, drawn at random by ``seed``.

    Shows the number of images of the class, a scale bar where ``pixel_size_nm`` is known, and the
    colour of each channel where there are several.
    """
    rng = np.random.default_rng(seed)
    labels = images.labels
    rows = [(name, np.flatnonzero(labels == index)) for index, name in enumerate(images.classes)]
    if (labels < 0).any():
        rows.append(("no label", np.flatnonzero(labels < 0)))
    size = WIDTH / (per_class + 1.1)
    legend = 0.3 * _is_composite(images)
    height = max(1.2, size * _aspect(images) * len(rows) + 0.1 + legend)
    figure, axes = picture_grid(WIDTH, height, len(rows), per_class)
    for (name, positions), line in zip(rows, axes, strict=True):
        chosen = rng.choice(positions, min(per_class, len(positions)), replace=False)
        for axis, position in zip(line, chosen, strict=False):
            show_picture(axis, images, position)
        title = "\n".join(textwrap.wrap(name, 14, max_lines=3, placeholder="…"))
        row_title(line[0], f"{title}\nn = {len(positions)}")
        if len(chosen) and images.pixel_size_nm:
            scale_bar(line[0], images.pixels.shape[-2:], images.pixel_size_nm[-1])
    channel_legend(figure, images)
    return figure


def _aspect(images: ImageSet) -> float:
    return images.pixels.shape[-2] / images.pixels.shape[-1]


def show_picture(axis, images: ImageSet, position: int) -> None:
    """An image of the set, as :func:`to_display` makes it, in axes without ticks."""
    picture = to_display(images.pixels[position], images.channels)
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()


def scale_bar(axis, shape: tuple[int, int], nm_per_pixel: float) -> None:
    """A bar of a round length, about a quarter of the width, in the lower right corner of a picture
    of ``shape``; white with a dark outline, so that it is seen on any grey.
    """
    from matplotlib.patheffects import withStroke

    height, width = shape
    wanted = 0.3 * width * nm_per_pixel
    power = 10.0 ** np.floor(np.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    text = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    end = 0.95 * width
    # Butt ends: the bar has exactly this length. The text ends with it, else it would be cut.
    axis.plot(
        [end - length / nm_per_pixel, end],
        [0.95 * height] * 2,
        color="white",
        linewidth=2.5,
        solid_capstyle="butt",
        path_effects=[withStroke(linewidth=4, foreground="black")],
    )
    axis.text(
        end,
        0.9 * height,
        text,
        color="white",
        fontsize=SMALL,
        ha="right",
        va="bottom",
        path_effects=[withStroke(linewidth=2, foreground="black")],
    )
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _is_composite(images: ImageSet) -> bool:
    return images.pixels.shape[1] > 1 and not is_colour(images.pixels[0], images.channels)


def channel_legend(figure: Figure, images: ImageSet) -> None:
    """Below the pictures: which colour is which channel; nothing where there is but one."""
    from matplotlib.patches import Patch

    if not _is_composite(images):
        return
    handles = [
        Patch(facecolor=colour, edgecolor=FAINT, label=name)
        for name, colour in zip(images.channels, CHANNEL_COLOURS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=1)


def wrong_and_right(predictions: Predictions, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The wrong predictions, the surest first, and the right ones in an order drawn by ``seed``,
    with ``sure``, the probability of the predicted class. With repeats the first prediction of each
    image.
    """
    table = predictions.table.sort_values(["repeat", "fold"], kind="stable").drop_duplicates("id")
    table = table.reset_index(drop=True)
    columns = PROBABILITY_PREFIX + table["predicted"]
    table["sure"] = [table.at[row, column] for row, column in columns.items()]
    right = table["predicted"] == table["label"]
    wrong = table[~right].sort_values("sure", ascending=False, kind="stable")
    return wrong, table[right].sample(frac=1, random_state=seed % 2**32)


@styled
def predictions_sheet(images: ImageSet, predictions: Predictions, *, seed: int = 0) -> Figure:
    """Two rows of wrong predictions, the surest first, and a row of right ones drawn by ``seed``.

    Over each image: the true class, the predicted class and its probability. With repeats the first
    prediction of each image is shown and counted.
    """
    wrong, right = wrong_and_right(predictions, seed)
    total = len(wrong) + len(right)
    size = WIDTH / PER_ROW
    blocks = []
    heights = []
    for title, colour, block, order, most in (
        ("Wrong", WRONG, wrong, "the surest first", 2),
        ("Right", RIGHT, right, "drawn at random", 1),
    ):
        lines = min(most, -(-len(block) // PER_ROW))
        note = f"{title}: {len(block) or 'none'} of {total}"
        if lines:
            note += f", {order}; true class → predicted class and its probability"
        blocks.append((note, colour, block, lines))
        heights.append(lines * (size * _aspect(images) + 0.28) + 0.35)
    figure = new_figure(WIDTH, sum(heights) + 0.3 * _is_composite(images))
    parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)
    for part, (note, colour, block, lines) in zip(parts[:, 0], blocks, strict=True):
        part.suptitle(note, color=colour, x=0.01, ha="left", fontsize=10)
        if not lines:
            continue
        axes = part.subplots(lines, PER_ROW, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        shown = block.head(lines * PER_ROW)
        positions = images.positions(shown["id"])
        for axis, row, position in zip(axes, shown.itertuples(), positions, strict=False):
            show_picture(axis, images, position)
            said = f"→ {shortened(row.predicted, 13)} {row.sure:.2f}"
            axis.set_title(f"{shortened(row.label, 20)}\n{said}", fontsize=SMALL, pad=3)
    channel_legend(figure, images)
    return figure
