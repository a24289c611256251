"""Sheets of images: what the data look like, and what a model got right and wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nbhelpers.core.errors import InputError
from nbhelpers.core.predictions import PROBABILITY_PREFIX, Predictions
from nbhelpers.figures.style import FAINT, RIGHT, SMALL, WIDTH, WRONG, new_figure, shortened, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nbhelpers.core.imageset import ImageSet

# One light per channel of a composite; the first two and the first three stay apart in any colour
# vision.
CHANNEL_COLOURS = ("#4da6ff", "#ff9d2e", "#3ddc97", "#ff6fd8", "#f5f06a")
RGB = ({"red", "green", "blue"}, {"r", "g", "b"})


def to_display(image: np.ndarray, channels: Sequence[str] = ()) -> np.ndarray:
    """An image as matplotlib shows it: (y, x) grey or (y, x, 3) colour, float64 in 0..1.

    ``image`` is (y, x), (c, y, x) or (c, z, y, x) of 1 to 5 channels, bool, uint8, uint16 or float;
    of a 3D image the middle section is shown. Two-valued images (masks) become black and white. One
    channel of uint8, and three named red, green, blue, are shown over their full range; everything
    else is stretched per channel from its 0.5th to its 99.5th percentile. Several channels are
    added up as coloured lights (``CHANNEL_COLOURS``). Raises InputError on other axes.
    """
    from matplotlib.colors import to_rgb

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
    if len(lights) == 1:
        return lights[0]
    colours = np.array([to_rgb(colour) for colour in CHANNEL_COLOURS[: len(lights)]])
    return np.clip(np.einsum("cyx,ck->yxk", np.stack(lights), colours), 0, 1)


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
        return (
            (values > low).astype(np.float64) if high > low else values
        )  # a mask, whatever its two values
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
    aspect = images.pixels.shape[-2] / images.pixels.shape[-1]
    composite = images.pixels.shape[1] > 1 and not is_colour(images.pixels[0], images.channels)
    figure = new_figure(WIDTH, max(1.2, size * aspect * len(rows) + 0.1 + 0.3 * composite))
    axes = figure.subplots(len(rows), per_class, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for (name, positions), line in zip(rows, axes, strict=True):
        chosen = rng.choice(positions, min(per_class, len(positions)), replace=False)
        for axis in line:
            axis.set_axis_off()
        for axis, position in zip(line, chosen, strict=False):
            _show(axis, images.pixels[position], images.channels)
        title = "\n".join(textwrap.wrap(name, 14, max_lines=3, placeholder="…"))
        line[0].text(
            -0.06,
            0.5,
            f"{title}\nn = {len(positions)}",
            transform=line[0].transAxes,
            ha="right",
            va="center",
        )
        if len(chosen) and images.pixel_size_nm:
            _scale_bar(line[0], images.pixels.shape[-2:], images.pixel_size_nm[-1])
    if composite:
        _channel_legend(figure, images.channels)
    return figure


def _show(axis, image: np.ndarray, channels: Sequence[str]) -> None:
    axis.imshow(to_display(image, channels), cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()


def _scale_bar(axis, shape: tuple[int, int], nm_per_pixel: float) -> None:
    """A bar of a round length, about a quarter of the width, in the lower right corner."""
    height, width = shape
    wanted = 0.3 * width * nm_per_pixel
    exponent = 10 ** np.floor(np.log10(wanted))
    length = max(step * exponent for step in (1, 2, 5) if step * exponent <= wanted)
    text = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    end = 0.95 * width
    axis.plot(
        [end - length / nm_per_pixel, end],
        [0.95 * height] * 2,
        color="white",
        linewidth=2.5,
        solid_capstyle="butt",
    )
    axis.text(
        end - length / nm_per_pixel / 2,
        0.92 * height,
        text,
        color="white",
        fontsize=SMALL,
        ha="center",
        va="bottom",
    )
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _channel_legend(figure: Figure, channels: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        handles=[
            Patch(facecolor=colour, edgecolor=FAINT, label=name)
            for name, colour in zip(channels, CHANNEL_COLOURS, strict=False)
        ],
        loc="outside lower center",
        ncols=len(channels),
        handlelength=1,
    )


@styled
def predictions_sheet(
    images: ImageSet, predictions: Predictions, *, per_row: int = 5, rows: int = 2, seed: int = 0
) -> Figure:
    """Wrong predictions, the surest first, in up to ``rows`` rows, and one row of right ones drawn
    by ``seed``.

    Over each image: the true class, the predicted class and its probability. With repeats the first
    prediction of each image is shown and counted.
    """
    table = predictions.table.sort_values(["repeat", "fold"], kind="stable").drop_duplicates("id")
    table = table.reset_index(drop=True)
    columns = table["predicted"].map(lambda name: PROBABILITY_PREFIX + name)
    table["sure"] = [table.at[row, column] for row, column in columns.items()]
    right = table["predicted"] == table["label"]
    wrong = table[~right].sort_values("sure", ascending=False, kind="stable")
    some = table[right].sample(frac=1, random_state=seed % 2**32)
    blocks = []
    for title, colour, block, order, most in (
        ("Wrong", WRONG, wrong, "the surest first", rows),
        ("Right", RIGHT, some, "drawn at random", 1),
    ):
        count = min(most, -(-len(block) // per_row))
        note = (
            f"{title}: {len(block)} of {len(table)}" if count else f"{title}: none of {len(table)}"
        )
        if count:
            note += f", {order}; true class → predicted class and its probability"
        blocks.append((note, colour, block, count))
    lines = [count for *_, count in blocks]
    size = WIDTH / per_row
    composite = images.pixels.shape[1] > 1 and not is_colour(images.pixels[0], images.channels)
    aspect = images.pixels.shape[-2] / images.pixels.shape[-1]
    heights = [count * (size * aspect + 0.28) for count in lines]
    figure = new_figure(WIDTH, sum(heights) + 0.35 * len(blocks) + 0.3 * composite)
    parts = figure.subfigures(
        len(blocks), 1, height_ratios=[height + 0.35 for height in heights], squeeze=False
    )
    for part, (note, colour, block, count) in zip(parts[:, 0], blocks, strict=True):
        part.suptitle(note, color=colour, x=0.01, ha="left", fontsize=10)
        if not count:
            continue
        axes = part.subplots(count, per_row, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        shown = block.head(count * per_row)
        for axis, row, position in zip(
            axes, shown.itertuples(), images.positions(shown["id"]), strict=False
        ):
            _show(axis, images.pixels[position], images.channels)
            axis.set_title(
                f"{shortened(row.label, 20)}\n→ {shortened(row.predicted, 13)} {row.sure:.2f}",
                fontsize=SMALL,
                pad=3,
            )
    if composite:
        _channel_legend(figure, images.channels)
    return figure
