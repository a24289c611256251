"""Figures of where a network looks: images beside their maps, all maps of a figure on one colour
scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError
from nbhelpers.figures.images import to_display
from nbhelpers.figures.style import (
    FAINT,
    INK,
    PALETTE,
    RIGHT,
    SMALL,
    WIDTH,
    WRONG,
    new_figure,
    shortened,
    styled,
)
from nbhelpers.figures.volumes import _grey_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "magma"
CAUSE = "#3ddc97"
# exponent of the colour scale: a fine map has few bright places, and the rest would all be black
SPREAD = 0.4
SPEAKS = "speaks for the class (log-odds)"


@styled
def map_sheet(
    images: np.ndarray,
    maps: np.ndarray,
    titles: Sequence[str],
    right: Sequence[bool],
    *,
    cause: np.ndarray | None = None,
    stamp: str = "",
    per_row: int = 2,
) -> Figure:
    """Each image, its map, and the map laid over the image; one colour scale for all maps, shown as
    a bar.

    ``images`` is (n, c, y, x) as :func:`nbhelpers.figures.images.to_display` takes them, ``maps``
    (n, y, x) raw, ``titles`` one text per image in the colour of right or wrong. ``cause`` (n, y,
    x), 0 to 1, is outlined. ``stamp`` is printed over the figure: say there that the maps failed.
    Raises InputError when they do not belong together. Introduced in notebook 09.
    """
    _check_fits(images, maps, titles, maps.ndim == 3 and len(right) == len(titles))
    top = float(maps.max()) or 1.0
    rows = -(-len(maps) // per_row)
    size = (WIDTH - 0.8) / (3 * per_row)
    figure = new_figure(WIDTH, 0.3 + rows * (size * maps.shape[1] / maps.shape[2] + 0.38))
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(rows, 3 * per_row, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, (image, found, title, good) in enumerate(
        zip(images, maps, titles, right, strict=True)
    ):
        three = axes[number // per_row, 3 * (number % per_row) :][:3]
        shown = to_display(
            image, ("red", "green", "blue") if len(image) == 3 and image.dtype == np.uint8 else ()
        )
        three[0].imshow(shown, cmap="gray", vmin=0, vmax=1)
        drawn = three[1].imshow(found, cmap=COLOURS, norm=_scale(top))
        _overlay(three[2], shown, found, top, None if cause is None else cause[number])
        three[0].set_title(title, fontsize=SMALL, color=RIGHT if good else WRONG, loc="left")
    figure.colorbar(drawn, ax=axes, label=SPEAKS, shrink=min(1, 1.6 / rows), pad=0.01, aspect=18)
    _stamped(figure, stamp)
    return figure


@styled
def section_maps(
    volumes: np.ndarray,
    maps: np.ndarray,
    titles: Sequence[str],
    right: Sequence[bool],
    *,
    voxel_nm: Sequence[float],
    cause: np.ndarray | None = None,
    sections: int = 7,
    stamp: str = "",
) -> Figure:
    """Two rows per volume: evenly spaced sections, and the same with the map over them; last a cut
    through the depth (z down, x across, at the middle of y). One colour scale for all, shown as a
    bar.

    ``volumes`` is (n, z, y, x) uint8 or uint16, ``maps`` (n, z, y, x) raw, in the same voxels;
    ``voxel_nm`` (z, y, x). The rest as in :func:`map_sheet`.
    """
    _check_fits(volumes, maps, titles, maps.shape == volumes.shape and len(right) == len(titles))
    top = float(maps.max()) or 1.0
    depth = maps.shape[1]
    chosen = np.unique(np.linspace(0, depth - 1, min(depth, sections)).round().astype(int))
    size = (WIDTH - 1.6) / (len(chosen) + 1)
    figure = new_figure(WIDTH, 0.4 + 2 * len(maps) * size * 1.05)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    axes = figure.subplots(2 * len(maps), len(chosen) + 1, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    thick = voxel_nm[0] / voxel_nm[2]  # a section is thicker than a pixel is wide
    for number, (volume, found, title, good) in enumerate(
        zip(volumes, maps, titles, right, strict=True)
    ):
        low, high = _grey_range(volume)
        shown = np.clip((volume - low) / (high - low), 0, 1)
        truth = None if cause is None else cause[number]
        middle = maps.shape[2] // 2
        cuts = [
            (slice(None) if at is None else at, 1.0 if at is not None else thick)
            for at in [*chosen, None]
        ]
        for column, (at, aspect) in enumerate(cuts):
            where = (slice(None), middle) if isinstance(at, slice) else (at,)
            axes[2 * number, column].imshow(
                shown[where], cmap="gray", vmin=0, vmax=1, aspect=aspect
            )
            drawn = _overlay(
                axes[2 * number + 1, column],
                shown[where],
                found[where],
                top,
                None if truth is None else truth[where],
                aspect,
            )
        axes[2 * number, 0].text(
            -0.08,
            0.0,
            title,
            transform=axes[2 * number, 0].transAxes,
            ha="right",
            va="center",
            fontsize=SMALL,
            color=RIGHT if good else WRONG,
        )
    for axis, section in zip(axes[0], chosen, strict=False):
        axis.set_title(f"z {section * voxel_nm[0]:.0f} nm", fontsize=SMALL)
    axes[0, -1].set_title("z down", fontsize=SMALL)
    figure.colorbar(
        drawn, ax=axes, label=SPEAKS, shrink=min(1, 1.2 / len(maps)), pad=0.01, aspect=18
    )
    _stamped(figure, stamp)
    return figure


@styled
def belief_curves(
    curves: pd.DataFrame, cascade: pd.DataFrame, *, most_alike: float, stamp: str = ""
) -> Figure:
    """Left and middle: the probability of the class while places are put in or taken away, in the
    order of the map, of a random map and of a blob in the middle. Right: how alike maps stay as the
    weights are made random from the head on.

    Tables of :class:`nbhelpers.saliency.checks.SanityChecks`.
    """
    figure = new_figure(WIDTH, 2.7)
    *both, last = figure.subplots(1, 3)
    for axis, order, text in zip(
        both, ("insertion", "deletion"), ("put in", "taken away"), strict=True
    ):
        for (kind, some), colour, style in zip(
            curves[curves["order"] == order].groupby("map", sort=False),
            (PALETTE[0], FAINT, PALETTE[1]),
            ("-", ":", "--"),
            strict=False,
        ):
            axis.plot(some["share"], some["probability"], color=colour, linestyle=style, label=kind)
        axis.set(xlabel=f"share of the image {text}", ylim=(0, 1.02))
    both[0].set_ylabel("probability of the class")
    both[1].legend(fontsize=SMALL)
    steps = np.arange(1, len(cascade) + 1)
    low, high = (
        cascade[key].astype(float).fillna(cascade["similarity"]) for key in ("low", "high")
    )
    last.axhline(most_alike, color=WRONG, linewidth=1, linestyle=":")
    last.text(
        len(cascade), most_alike, "limit", color=WRONG, fontsize=SMALL, ha="right", va="bottom"
    )
    last.errorbar(
        [0, *steps],
        [1, *cascade["similarity"]],
        yerr=[
            [0, *(cascade["similarity"] - low).clip(lower=0)],
            [0, *(high - cascade["similarity"]).clip(lower=0)],
        ],
        color=INK,
        marker="o",
        markersize=4,
        capsize=2,
    )
    last.set(
        xlabel="layers with random weights",
        ylabel="likeness of the maps",
        ylim=(min(-0.3, float(low.min()) - 0.05), 1.05),
    )
    last.set_xticks([0, *steps], ["0", *cascade["layers"].astype(str)], fontsize=SMALL)
    _stamped(figure, stamp)
    return figure


@styled
def class_means(
    images: np.ndarray,
    maps: np.ndarray,
    labels: np.ndarray,
    likeness: np.ndarray,
    classes: Sequence[str],
    *,
    stamp: str = "",
) -> Figure:
    """A row per class: the mean image and the mean map, and the image most like its class's mean
    map and the one least.

    ``images`` (n, y, x) and ``maps`` (n, y, x) must be aligned, as spines are; ``likeness`` (n,) is
    what :func:`nbhelpers.saliency.checks.typical` gives.
    """
    _check_fits(images, maps, labels, maps.shape == images.shape and len(likeness) == len(labels))
    lines = []
    for index, name in enumerate(classes):
        rows = np.flatnonzero(labels == index)
        if len(rows):
            most = rows[likeness[rows].argmax()]
            least = rows[likeness[rows].argmin()]
            mean = images[rows].mean(0), maps[rows].mean(0)
            lines.append(
                (
                    f"{shortened(name, 12)}\nn = {len(rows)}",
                    [mean, (images[most], maps[most]), (images[least], maps[least])],
                )
            )
    top = max(max(float(found.max()) for _, three in lines for _, found in three), 1e-12)
    white = float(images.max()) or 1.0
    figure = new_figure(WIDTH, 0.4 + 1.25 * len(lines))
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(len(lines), 6, squeeze=False)
    for line, (text, three) in zip(axes, lines, strict=True):
        for axis, picture in zip(line[::2], three, strict=True):
            axis.imshow(picture[0] / white, cmap="gray", vmin=0, vmax=1)
        for axis, (picture, found) in zip(line[1::2], three, strict=True):
            drawn = _overlay(axis, picture / white, found, top)
        for axis in line:
            axis.set_axis_off()
        line[0].text(
            -0.08, 0.5, text, transform=line[0].transAxes, ha="right", va="center", fontsize=SMALL
        )
    for axis, title in zip(
        axes[0],
        ("mean image", "mean map", "most typical", "its map", "least typical", "its map"),
        strict=True,
    ):
        axis.set_title(title, fontsize=SMALL)
    figure.colorbar(drawn, ax=axes, label=SPEAKS, shrink=0.8, pad=0.01, aspect=18)
    _stamped(figure, stamp)
    return figure


def _overlay(
    axis,
    shown: np.ndarray,
    found: np.ndarray,
    top: float,
    cause: np.ndarray | None = None,
    aspect: float = 1.0,
):
    """The map over the image: the more it says, the less is seen through it. What is drawn has the
    scale of the maps.
    """
    grey = shown if shown.ndim == 2 else shown.mean(-1)
    axis.imshow(0.75 * grey, cmap="gray", vmin=0, vmax=1, aspect=aspect)
    seen = np.clip(found / top, 0, 1) ** SPREAD * 0.85
    drawn = axis.imshow(found, cmap=COLOURS, norm=_scale(top), alpha=seen, aspect=aspect)
    if cause is not None and 0 < (cause >= 0.5).sum() < cause.size:
        axis.contour(cause, levels=[0.5], colors=CAUSE, linewidths=0.4)
    return drawn


def _scale(top: float):
    from matplotlib.colors import PowerNorm

    return PowerNorm(SPREAD, vmin=0, vmax=top)


def _stamped(figure: Figure, stamp: str) -> None:
    if stamp:
        figure.suptitle(shortened(stamp, 110), color=WRONG, fontsize=SMALL, fontweight="bold")
        figure.text(
            0.45,
            0.45,
            "FAILED",
            color=WRONG,
            alpha=0.35,
            fontsize=52,
            rotation=20,
            ha="center",
            va="center",
            fontweight="bold",
            zorder=10,
        )


def _check_fits(images: np.ndarray, maps: np.ndarray, titles: Sequence, fits: bool) -> None:
    if not (
        fits
        and len(images) == len(maps) == len(titles) > 0
        and images.shape[-2:] == maps.shape[-2:]
    ):
        raise InputError(
            "maps",
            f"there are maps of the shape {maps.shape} and {len(titles)} titles for images of "
            f"{images.shape}.",
            "Give one map, title and verdict per image, of its size.",
        )


def _names(stains: Iterable[str]) -> str:
    """The stains of an encoder over its picture, one below the other."""
    return "\n+ ".join(shortened(stain, 14) for stain in stains)


@styled
def maps_per_encoder(
    fields: np.ndarray,
    maps: np.ndarray,
    seen: Sequence[Sequence[int]],
    stains: Sequence[str],
    titles: Sequence[str],
    *,
    stamp: str = "",
) -> Figure:
    """One row per field: what each encoder sees, and beside it the encoder's map; one colour scale
    for all maps.

    ``fields`` is (n, stains, y, x) uint8 or uint16, ``maps`` (n, encoders, y, x) raw, ``seen`` the
    stains of each encoder (row numbers), ``titles`` one per field; ``stamp`` as in
    :func:`map_sheet`. Raises InputError when they do not belong together.
    """
    fits = (
        len(fields) == len(maps) == len(titles)
        and len(fields)
        and maps.shape[1] == len(seen)
        and maps.shape[2:] == fields.shape[2:]
    )
    if not fits:
        raise InputError(
            "maps",
            f"there are maps of the shape {maps.shape} and {len(titles)} titles for fields of "
            f"{fields.shape} and {len(seen)} encoders.",
            "Give one map per field and encoder, of its size.",
        )
    top = float(maps.max()) or 1.0
    size = min(1.6, WIDTH / (2 * len(seen) + 1.2))
    figure = new_figure(
        max(WIDTH * 0.6, size * (2 * len(seen) + 1.2)), 0.5 + 0.86 * size * len(fields)
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(len(fields), 2 * len(seen), squeeze=False)
    for row, (field, found, title) in enumerate(zip(fields, maps, titles, strict=True)):
        for number, which in enumerate(seen):
            stain = axes[row, 2 * number]
            looked = axes[row, 2 * number + 1]
            shown = to_display(field[list(which)])
            stain.imshow(shown, cmap="gray", vmin=0, vmax=1)
            drawn = looked.imshow(found[number], cmap=COLOURS, norm=_scale(top))
            if not row:
                stain.set_title(_names(stains[one] for one in which), fontsize=SMALL)
                looked.set_title("map", fontsize=SMALL)
            for axis in (stain, looked):
                axis.set_axis_off()
        axes[row, 0].text(
            -0.08,
            0.5,
            title,
            transform=axes[row, 0].transAxes,
            ha="right",
            va="center",
            fontsize=SMALL,
        )
    figure.colorbar(drawn, ax=axes, label="speaks for the class", shrink=0.8, pad=0.01, aspect=25)
    _stamped(figure, stamp)
    return figure
