"""Figures of volumes and of where synapses lie in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError
from nbhelpers.core.predictions import PROBABILITY_PREFIX, Predictions
from nbhelpers.figures.style import (
    FAINT,
    INK,
    RIGHT,
    SMALL,
    WIDTH,
    WRONG,
    class_colours,
    new_figure,
    shortened,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nbhelpers.core.imageset import ImageSet

MARKERS = "os^Dv"


@styled
def synapse_map(table: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Where the synapses lie, seen along z and along y, in um; a colour and a mark per class.

    ``table`` has label and x_nm, y_nm, z_nm. Raises InputError when it is empty.
    """
    if not len(table):
        raise InputError("synapse map", "there are no synapses to draw.")
    figure = new_figure(WIDTH, 3.8)
    axes = figure.subplots(1, 2)
    colours = class_colours(classes)
    for axis, other in zip(axes, ("y", "z"), strict=True):
        for mark, name in zip(MARKERS, classes, strict=False):
            rows = table[table["label"] == name]
            axis.scatter(
                rows["x_nm"] / 1000,
                rows[f"{other}_nm"] / 1000,
                s=14,
                marker=mark,
                alpha=0.75,
                color=colours[name],
                edgecolors="none",
                label=f"{name} ({len(rows)})",
            )
        axis.set_xlabel("x (µm)")
        axis.set_ylabel(f"{other} (µm)")
        axis.set_aspect("equal", adjustable="datalim")
        axis.invert_yaxis()
    axes[0].set_title("seen along z")
    axes[1].set_title("seen along y")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(classes)
    )
    return figure


@styled
def synapses_per_neuron(table: pd.DataFrame, classes: Sequence[str], most: int = 40) -> Figure:
    """Bars: how many synapses each presynaptic neuron gives, by class; at most ``most`` neurons per
    class, the largest first.

    ``table`` has label and group.
    """
    if not len(table):
        raise InputError("synapses per neuron", "there are no synapses to count.")
    counts = {name: table.loc[table["label"] == name, "group"].value_counts() for name in classes}
    rows = max(1, max(min(len(found), most) for found in counts.values()))
    figure = new_figure(WIDTH, 1.1 + 0.2 * rows)
    axes = figure.subplots(1, len(classes), sharex=True, squeeze=False)[0]
    colours = class_colours(classes)
    for axis, (name, found) in zip(axes, counts.items(), strict=True):
        shown = found.head(most)
        axis.barh(np.arange(len(shown)), shown.to_numpy(), color=colours[name], height=0.75)
        axis.set_yticks(np.arange(len(shown)), [shortened(group, 20) for group in shown.index])
        axis.set_ylim(rows - 0.4, -0.6)
        left_out = f", the {most} largest" if len(found) > most else ""
        axis.set_title(f"{name}: {len(found)} neurons{left_out}, {int(found.sum())} synapses")
        axis.set_xlabel("synapses")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("presynaptic neuron")
    return figure


@styled
def cube_strip(
    cube: np.ndarray,
    voxel_nm: Sequence[float],
    *,
    title: str = "",
    columns: int = 8,
    most: int = 32,
) -> Figure:
    """The sections of one cube side by side, in order, each with its depth in nm; a scale bar in
    the first.

    ``cube`` is (z, y, x) uint8 or uint16, ``voxel_nm`` (z, y, x). Of more than ``most`` sections
    evenly spaced ones are shown.
    """
    cube = np.asarray(cube)
    if cube.ndim != 3 or not len(cube):
        raise InputError(
            "cube",
            f"it has the shape {cube.shape}.",
            "Give the axes (z, y, x) with at least one section.",
        )
    chosen = np.unique(np.linspace(0, len(cube) - 1, min(len(cube), most)).round().astype(int))
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    side = WIDTH / columns
    figure = new_figure(
        WIDTH, rows * (side * cube.shape[1] / cube.shape[2] + 0.25) + (0.35 if title else 0.1)
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    low, high = _grey_range(cube)
    for axis in axes:
        axis.set_axis_off()
    for axis, section in zip(axes, chosen, strict=False):
        axis.imshow(cube[section], cmap="gray", vmin=low, vmax=high)
        axis.set_title(f"z {section * voxel_nm[0]:.0f} nm", fontsize=SMALL, color=INK)
    bar_nm = _round_length(cube.shape[2] * voxel_nm[2] / 3)
    bar_px = bar_nm / voxel_nm[2]
    bottom = cube.shape[1] * 0.93
    axes[0].plot(
        [cube.shape[2] * 0.06, cube.shape[2] * 0.06 + bar_px],
        [bottom, bottom],
        color="white",
        linewidth=3.5,
        solid_capstyle="butt",
    )
    axes[0].plot(
        [cube.shape[2] * 0.06, cube.shape[2] * 0.06 + bar_px],
        [bottom, bottom],
        color="black",
        linewidth=1.5,
        solid_capstyle="butt",
    )
    figure.suptitle(
        f"{title}{'; ' if title else ''}bar {bar_nm:g} nm",
        fontsize=SMALL,
        color=FAINT if not title else INK,
    )
    return figure


def cube_frames(cube: np.ndarray, *, least_px: int = 256) -> np.ndarray:
    """(z, y, x) uint8 or uint16 to (z, height, width) uint8: the sections as frames of a moving
    picture, with the grey values of :func:`cube_strip`, enlarged by a whole number to at least
    ``least_px``. A bar below shows the depth.
    """
    cube = np.asarray(cube)
    if cube.ndim != 3 or not len(cube):
        raise InputError(
            "cube",
            f"it has the shape {cube.shape}.",
            "Give the axes (z, y, x) with at least one section.",
        )
    low, high = _grey_range(cube)
    grey = (
        (np.clip((cube.astype(np.float32) - low) / (high - low), 0, 1) * 255)
        .round()
        .astype(np.uint8)
    )
    by = max(1, -(-least_px // cube.shape[2]))
    frames = np.pad(grey.repeat(by, axis=1).repeat(by, axis=2), ((0, 0), (0, 8), (0, 0)))
    for at, frame in enumerate(frames):
        frame[-6:-2, : round(frame.shape[1] * (at + 1) / len(frames))] = 255
    return frames


@styled
def cube_sheet(images: ImageSet, *, per_class: int = 2, sections: int = 8, seed: int = 0) -> Figure:
    """Some cubes of each class, drawn by ``seed``: a row each, with evenly spaced sections and,
    last, a side view: z down, x across, at the middle of y. There, sections that do not belong
    together show as stripes.

    Raises InputError for images that are no cubes.
    """
    draw = np.random.default_rng(seed)
    rows = []
    for index, name in enumerate(images.classes):
        positions = np.flatnonzero(images.labels == index)
        for number, at in enumerate(
            draw.choice(positions, min(per_class, len(positions)), replace=False)
        ):
            rows.append(
                (at, f"{shortened(name, 14)}\nn = {len(positions)}" if number == 0 else "", INK)
            )
    return _rows_of_cubes(images, rows, sections)


@styled
def cube_predictions(
    images: ImageSet,
    predictions: Predictions,
    *,
    wrong: int = 4,
    right: int = 3,
    sections: int = 8,
    seed: int = 0,
) -> Figure:
    """The surest wrong predictions and some right ones, drawn by ``seed``: a row each, as in
    :func:`cube_sheet`, with the true class, the predicted class and its probability. With repeats
    the first prediction of each cube.
    """
    chosen = chosen_predictions(predictions, wrong=wrong, right=right, seed=seed)
    rows = [
        (
            at,
            f"{'right' if row.right else 'wrong'}: {shortened(row.label, 13)}\n→ "
            f"{shortened(row.predicted, 13)} "
            f"{row.sure:.2f}",
            RIGHT if row.right else WRONG,
        )
        for row, at in zip(chosen.itertuples(), images.positions(chosen["id"]), strict=True)
    ]
    return _rows_of_cubes(images, rows, sections)


def chosen_predictions(
    predictions: Predictions, *, wrong: int = 4, right: int = 3, seed: int = 0
) -> pd.DataFrame:
    """The rows of ``cube_predictions``: id, label, predicted, sure (probability of the predicted
    class), right.
    """
    table = (
        predictions.table.sort_values(["repeat", "fold"], kind="stable")
        .drop_duplicates("id")
        .reset_index(drop=True)
    )
    table["sure"] = [
        table.at[row, PROBABILITY_PREFIX + name] for row, name in table["predicted"].items()
    ]
    table["right"] = table["predicted"] == table["label"]
    some = table[table["right"]].sample(frac=1, random_state=seed % 2**32).head(right)
    worst = table[~table["right"]].sort_values("sure", ascending=False, kind="stable").head(wrong)
    return pd.concat([worst, some], ignore_index=True)[
        ["id", "label", "predicted", "sure", "right"]
    ]


def _rows_of_cubes(images: ImageSet, rows: Sequence[tuple[int, str, str]], sections: int) -> Figure:
    """A row per (position, text, colour of the text)."""
    if images.pixels.ndim != 5 or not rows:
        raise InputError(
            images.name,
            f"there is no cube to draw ({len(rows)} rows, shape {tuple(images.pixels.shape)}).",
        )
    depth, height = images.pixels.shape[2:4]
    voxel = images.pixel_size_nm or (height / depth, 1.0, 1.0)
    shown = np.unique(np.linspace(0, depth - 1, min(depth, sections)).round().astype(int))
    side = WIDTH / (len(shown) + 2.6)
    figure = new_figure(WIDTH, len(rows) * side * 1.06 + 0.35)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    lines = figure.subplots(len(rows), len(shown) + 1, squeeze=False)
    for line, (position, text, colour) in zip(lines, rows, strict=True):
        cube = np.asarray(images.pixels[position])[0]
        low, high = _grey_range(cube)
        cut = {"aspect": voxel[0] / voxel[2]}  # a section is thicker than a pixel is wide
        for axis, picture, more in zip(
            line, [*cube[shown], cube[:, height // 2]], [{}] * len(shown) + [cut], strict=True
        ):
            axis.imshow(picture, cmap="gray", vmin=low, vmax=high, **more)
            axis.set_axis_off()
        line[0].text(
            -0.08,
            0.5,
            text,
            transform=line[0].transAxes,
            ha="right",
            va="center",
            fontsize=SMALL,
            color=colour,
        )
    unit = "nm" if images.pixel_size_nm else "sections"
    for axis, section in zip(lines[0], shown, strict=False):
        axis.set_title(
            f"z {section * (images.pixel_size_nm or [1])[0]:.0f} {unit}", fontsize=SMALL, color=INK
        )
    lines[0][-1].set_title("side view", fontsize=SMALL, color=INK)
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


def _grey_range(cube: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(cube[cube > 0] if (cube > 0).any() else cube, [0.5, 99.5])
    return float(low), float(max(high, low + 1))


def _round_length(nm: float) -> float:
    """The largest of 1, 2, 5, 10, 20 ... that is not above ``nm``."""
    power = 10.0 ** np.floor(np.log10(nm))
    return float(max(step * power for step in (1, 2, 5) if step * power <= nm))
