"""Figures of volumes and of where synapses lie in them."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.core.errors import InputError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.figures.images import scale_bar, wrong_and_right
from nbhelpers.figures.legend import legend_below
from nbhelpers.figures.style import (
    INK,
    PALETTE,
    RIGHT,
    SMALL,
    WIDTH,
    WRONG,
    class_colours,
    new_figure,
    picture_grid,
    row_title,
    shortened,
    something_to_draw,
    styled,
)

MOST_NEURONS = 40
MOST_SECTIONS = 32
COLUMNS = 8  # sections in a row


@styled
def synapse_map(table: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Where the synapses lie, seen along z and along y, in µm; a colour and a mark per class.

    ``table`` has label and x_nm, y_nm, z_nm. Raises InputError when it is empty.
    """
    import seaborn

    something_to_draw(table, "synapses")
    figure = new_figure(WIDTH, 3.8)
    axes = figure.subplots(1, 2)
    counts = table["label"].value_counts()
    names = [f"{name} ({counts.get(name, 0)})" for name in classes]
    places = table[["x_nm", "y_nm", "z_nm"]] / 1000
    places["class"] = table["label"].map(dict(zip(classes, names, strict=True)))
    for axis, other in zip(axes, "yz", strict=True):
        seaborn.scatterplot(
            places,
            x="x_nm",
            y=f"{other}_nm",
            hue="class",
            style="class",
            hue_order=names,
            style_order=names,
            palette=PALETTE[: len(names)],
            s=18,
            alpha=0.75,
            linewidth=0,
            legend=axis is axes[0],
            ax=axis,
        )
        axis.set(xlabel="x (µm)", ylabel=f"{other} (µm)")
        axis.set_aspect("equal", adjustable="datalim")
        axis.invert_yaxis()
    axes[0].set_title("seen along z")
    axes[1].set_title("seen along y")
    legend_below(axes[0], len(classes))
    return figure


@styled
def synapses_per_neuron(table: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Bars: how many synapses each presynaptic neuron gives, by class; at most 40 neurons per
    class, the largest first.

    ``table`` has label and group.
    """
    import seaborn

    something_to_draw(table, "synapses")
    counts = {name: table.loc[table["label"] == name, "group"].value_counts() for name in classes}
    rows = np.clip(max(len(found) for found in counts.values()), 1, MOST_NEURONS)
    figure = new_figure(WIDTH, 1.1 + 0.2 * rows)
    axes = figure.subplots(1, len(classes), sharex=True, squeeze=False)[0]
    colours = class_colours(classes)
    for axis, (name, found) in zip(axes, counts.items(), strict=True):
        shown = found.head(MOST_NEURONS)
        look = {"color": colours[name], "saturation": 1, "ax": axis}
        seaborn.barplot(x=shown, y=shown.index, orient="y", **look)
        axis.set_yticks(range(len(shown)), [shortened(group, 20) for group in shown.index])
        axis.set(ylim=(rows - 0.4, -0.6), xlabel="synapses", ylabel="")
        left_out = f", the {MOST_NEURONS} largest" if len(found) > MOST_NEURONS else ""
        axis.set_title(f"{name}: {len(found)} neurons{left_out}, {int(found.sum())} synapses")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("presynaptic neuron")
    return figure


@styled
def cube_strip(cube: np.ndarray, voxel_nm: Sequence[float], *, title: str = "") -> Figure:
    """The sections of one cube side by side, in order, each with its depth in nm; a scale bar in
    the first.

    ``cube`` is (z, y, x) uint8 or uint16, ``voxel_nm`` (z, y, x). Of more than 32 sections evenly
    spaced ones are shown.
    """
    cube = _checked_cube(cube)
    chosen = spread_sections(len(cube), MOST_SECTIONS)
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    side = WIDTH / columns * cube.shape[1] / cube.shape[2]
    figure, axes = picture_grid(WIDTH, rows * (side + 0.25) + 0.35, rows, columns)
    low, high = grey_range(cube)
    for axis, section in zip(axes.flat, chosen, strict=False):
        axis.imshow(cube[section], cmap="gray", vmin=low, vmax=high)
    depth_titles(axes.flat, chosen, voxel_nm)
    scale_bar(axes[0, 0], cube.shape[1:], voxel_nm[2])
    figure.suptitle(title, fontsize=SMALL)
    return figure


def _checked_cube(cube: np.ndarray) -> np.ndarray:
    cube = np.asarray(cube)
    if cube.ndim != 3 or not len(cube):
        raise InputError(
            "cube",
            f"it has the shape {cube.shape}.",
            "Give the axes (z, y, x) with at least one section.",
        )
    return cube


def cube_frames(cube: np.ndarray, *, least_px: int = 256) -> np.ndarray:
    """(z, y, x) uint8 or uint16 to (z, height, width) uint8: the sections as frames of a moving
    picture, with the grey values of :func:`cube_strip`, enlarged by a whole number to at least
    ``least_px``. A bar below shows the depth.
    """
    cube = _checked_cube(cube)
    low, high = grey_range(cube)
    share = np.clip((cube.astype(np.float32) - low) / (high - low), 0, 1)
    grey = (share * 255).round().astype(np.uint8)
    by = max(1, -(-least_px // cube.shape[2]))
    frames = np.pad(grey.repeat(by, axis=1).repeat(by, axis=2), ((0, 0), (0, 8), (0, 0)))
    for at, frame in enumerate(frames):
        frame[-6:-2, : round(frame.shape[1] * (at + 1) / len(frames))] = 255
    return frames


@styled
def cube_sheet(images: ImageSet, *, seed: int = 0) -> Figure:
    """Two cubes of each class, drawn by ``seed``: a row each, with evenly spaced sections and,
    last, a side view: z down, x across, at the middle of y. There, sections that do not belong
    together show as stripes.

    Raises InputError for images that are no cubes.
    """
    draw = np.random.default_rng(seed)
    rows = []
    for index, name in enumerate(images.classes):
        positions = np.flatnonzero(images.labels == index)
        text = f"{shortened(name, 14)}\nn = {len(positions)}"
        for at in draw.choice(positions, min(2, len(positions)), replace=False):
            rows.append((at, text, INK))
            text = ""  # only beside the first of its class
    return _rows_of_cubes(images, rows)


@styled
def cube_predictions(images: ImageSet, predictions: Predictions, *, seed: int = 0) -> Figure:
    """The four surest wrong predictions and three right ones, drawn by ``seed``: a row each, as in
    :func:`cube_sheet`, with the true class, the predicted class and its probability. With repeats
    the first prediction of each cube.
    """
    chosen = chosen_predictions(predictions, seed=seed)
    rows = []
    for row, at in zip(chosen.itertuples(), images.positions(chosen["id"]), strict=True):
        text = (
            f"{'right' if row.right else 'wrong'}: {shortened(row.label, 13)}\n"
            f"→ {shortened(row.predicted, 13)} {row.sure:.2f}"
        )
        rows.append((at, text, RIGHT if row.right else WRONG))
    return _rows_of_cubes(images, rows)


def chosen_predictions(
    predictions: Predictions, *, wrong: int = 4, right: int = 3, seed: int = 0
) -> pd.DataFrame:
    """The rows of ``cube_predictions``: id, label, predicted, sure (probability of the predicted
    class), right.
    """
    mistakes, hits = wrong_and_right(predictions, seed)
    parts = [mistakes.head(wrong).assign(right=False), hits.head(right).assign(right=True)]
    columns = ["id", "label", "predicted", "sure", "right"]
    return pd.concat(parts, ignore_index=True)[columns]


def _rows_of_cubes(images: ImageSet, rows: Sequence[tuple[int, str, str]]) -> Figure:
    """A row per (position, text, colour of the text)."""
    if images.pixels.ndim != 5 or not rows:
        raise InputError(
            images.name,
            f"there is no cube to draw ({len(rows)} rows, shape {tuple(images.pixels.shape)}).",
        )
    depth, height = images.pixels.shape[2:4]
    voxel = images.pixel_size_nm or (height / depth, 1.0, 1.0)
    shown = spread_sections(depth, COLUMNS)
    side = WIDTH / (len(shown) + 2.6)
    figure, lines = picture_grid(WIDTH, len(rows) * side * 1.06 + 0.35, len(rows), len(shown) + 1)
    for line, (position, text, colour) in zip(lines, rows, strict=True):
        cube = np.asarray(images.pixels[position])[0]
        low, high = grey_range(cube)
        grey = {"cmap": "gray", "vmin": low, "vmax": high}
        for axis, section in zip(line, shown, strict=False):
            axis.imshow(cube[section], **grey)
        # A section is thicker than a pixel is wide.
        line[-1].imshow(cube[:, height // 2], aspect=voxel[0] / voxel[2], **grey)
        row_title(line[0], text, colour=colour)
    depth_titles(lines[0], shown, images.pixel_size_nm)
    lines[0][-1].set_title("side view", fontsize=SMALL)
    return figure


def frames_side_by_side(cubes: Sequence[np.ndarray], *, least_px: int = 160) -> np.ndarray:
    """(n, height, width) uint8: the frames of :func:`cube_frames` of several cubes of one shape,
    scrolled through at the same time, with a white line between them."""
    if not len(cubes) or len({np.shape(cube) for cube in cubes}) > 1:
        raise InputError(
            "cubes",
            f"they have the shapes {sorted({np.shape(cube) for cube in cubes})}.",
            "Give one or more of one shape.",
        )
    parts = [
        np.pad(cube_frames(cube, least_px=least_px), ((0, 0), (0, 0), (0, 4)), constant_values=255)
        for cube in cubes
    ]
    return np.concatenate(parts, axis=2)[:, :, :-4]


def spread_sections(depth: int, most: int) -> np.ndarray:
    """Numbers of at most ``most`` sections, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, depth - 1, min(depth, most)).round().astype(int))


def depth_titles(
    axes: Iterable, sections: np.ndarray, voxel_nm: Sequence[float] | None = None
) -> None:
    """How deep each section lies, over its picture; in sections where the voxel is not known."""
    for axis, section in zip(axes, sections, strict=False):
        depth = f"{section * voxel_nm[0]:.0f} nm" if voxel_nm else f"{section} sections"
        axis.set_title(f"z {depth}", fontsize=SMALL)


def grey_range(cube: np.ndarray) -> tuple[float, float]:
    """The grey values that are shown black and white; missing (black) pixels do not count."""
    low, high = np.percentile(cube[cube > 0] if (cube > 0).any() else cube, [0.5, 99.5])
    return float(low), float(max(high, low + 1))
