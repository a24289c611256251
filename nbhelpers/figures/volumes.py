"""Figures of volumes and of where synapses lie in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.errors import InputError
from nbhelpers.figures.style import FAINT, INK, SMALL, WIDTH, class_colours, new_figure, shortened, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "os^Dv"


@styled
def synapse_map(table: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Where the synapses lie, seen along z and along y, in um; a colour and a mark per class.

    ``table`` has label and x_nm, y_nm, z_nm. Raises InputError when it is empty. Introduced in notebook 01.
    """
    if not len(table):
        raise InputError("synapse map", "there are no synapses to draw.")
    figure = new_figure(WIDTH, 3.8)
    axes = figure.subplots(1, 2)
    colours = class_colours(classes)
    for axis, other in zip(axes, ("y", "z"), strict=True):
        for mark, name in zip(MARKERS, classes, strict=False):
            rows = table[table["label"] == name]
            axis.scatter(rows["x_nm"] / 1000, rows[f"{other}_nm"] / 1000, s=14, marker=mark, alpha=0.75,
                         color=colours[name], edgecolors="none", label=f"{name} ({len(rows)})")
        axis.set_xlabel("x (µm)")
        axis.set_ylabel(f"{other} (µm)")
        axis.set_aspect("equal", adjustable="datalim")
        axis.invert_yaxis()
    axes[0].set_title("seen along z")
    axes[1].set_title("seen along y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(classes))
    return figure


@styled
def synapses_per_neuron(table: pd.DataFrame, classes: Sequence[str], most: int = 40) -> Figure:
    """Bars: how many synapses each presynaptic neuron gives, by class; at most ``most`` neurons per class, the
    largest first.

    ``table`` has label and group. Introduced in notebook 01.
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
def cube_strip(cube: np.ndarray, voxel_nm: Sequence[float], *, title: str = "", columns: int = 8,
               most: int = 32) -> Figure:
    """The sections of one cube side by side, in order, each with its depth in nm; a scale bar in the first.

    ``cube`` is (z, y, x) uint8 or uint16, ``voxel_nm`` (z, y, x). Of more than ``most`` sections evenly spaced ones are
    shown. Introduced in notebook 01.
    """
    cube = np.asarray(cube)
    if cube.ndim != 3 or not len(cube):
        raise InputError("cube", f"it has the shape {cube.shape}.", "Give the axes (z, y, x) with at least one section.")
    chosen = np.unique(np.linspace(0, len(cube) - 1, min(len(cube), most)).round().astype(int))
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    side = WIDTH / columns
    figure = new_figure(WIDTH, rows * (side * cube.shape[1] / cube.shape[2] + 0.25) + (0.35 if title else 0.1))
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
    axes[0].plot([cube.shape[2] * 0.06, cube.shape[2] * 0.06 + bar_px], [bottom, bottom], color="white", linewidth=3.5,
                 solid_capstyle="butt")
    axes[0].plot([cube.shape[2] * 0.06, cube.shape[2] * 0.06 + bar_px], [bottom, bottom], color="black", linewidth=1.5,
                 solid_capstyle="butt")
    figure.suptitle(f"{title}{'; ' if title else ''}bar {bar_nm:g} nm", fontsize=SMALL, color=FAINT if not title else INK)
    return figure


def cube_frames(cube: np.ndarray, *, least_px: int = 256) -> np.ndarray:
    """(z, y, x) uint8 or uint16 to (z, height, width) uint8: the sections as frames of a moving picture, with the grey
    values of :func:`cube_strip`, enlarged by a whole number to at least ``least_px``. A bar below shows the depth.

    Introduced in notebook 01.
    """
    cube = np.asarray(cube)
    if cube.ndim != 3 or not len(cube):
        raise InputError("cube", f"it has the shape {cube.shape}.", "Give the axes (z, y, x) with at least one section.")
    low, high = _grey_range(cube)
    grey = (np.clip((cube.astype(np.float32) - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)
    by = max(1, -(-least_px // cube.shape[2]))
    frames = np.pad(grey.repeat(by, axis=1).repeat(by, axis=2), ((0, 0), (0, 8), (0, 0)))
    for at, frame in enumerate(frames):
        frame[-6:-2, :round(frame.shape[1] * (at + 1) / len(frames))] = 255
    return frames


def _grey_range(cube: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(cube[cube > 0] if (cube > 0).any() else cube, [0.5, 99.5])
    return float(low), float(max(high, low + 1))


def _round_length(nm: float) -> float:
    """The largest of 1, 2, 5, 10, 20 ... that is not above ``nm``."""
    power = 10.0 ** np.floor(np.log10(nm))
    return float(max(step * power for step in (1, 2, 5) if step * power <= nm))
