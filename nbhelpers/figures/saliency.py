"""Figures of where a network looks: images beside their maps, all maps of a figure on one colour
scale.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.figures.images import to_display
from nbhelpers.figures.legend import legend_below
from nbhelpers.figures.style import (
    AS_GIVEN,
    FAINT,
    INK,
    PALETTE,
    RIGHT,
    SMALL,
    WIDTH,
    WRONG,
    interval_rows,
    new_figure,
    picture_grid,
    row_title,
    shortened,
    styled,
)
from nbhelpers.figures.volumes import depth_titles, grey_range, spread_sections

COLOURS = "magma"
CAUSE = "#3ddc97"
# exponent of the colour scale: a fine map has few bright places, and the rest would all be black
SPREAD = 0.4
PER_ROW = 2  # images of a sheet of maps
SECTIONS = 7


@styled
def map_sheet(
    images: np.ndarray,
    maps: np.ndarray,
    titles: Sequence[str],
    right: Sequence[bool],
    *,
    cause: np.ndarray | None = None,
    stamp: str = "",
) -> Figure:
    """Each image, its map, and the map laid over the image; one colour scale for all maps, shown as
    a bar.

    ``images`` is (n, c, y, x) as :func:`nbhelpers.figures.images.to_display` takes them, ``maps``
    (n, y, x) raw, ``titles`` one text per image in the colour of right or wrong. ``cause`` (n, y,
    x), 0 to 1, is outlined. ``stamp`` is printed above the figure: say there that the maps failed.
    """
    top = float(maps.max()) or 1.0
    rows = -(-len(maps) // PER_ROW)
    size = (WIDTH - 0.8) / (3 * PER_ROW)
    height = 0.3 + rows * (size * maps.shape[1] / maps.shape[2] + 0.38)
    figure, axes = picture_grid(WIDTH, height, rows, 3 * PER_ROW)
    for number, title in enumerate(titles):
        start = 3 * (number % PER_ROW)
        plain, alone, over = axes[number // PER_ROW, start : start + 3]
        colour = len(images[number]) == 3 and images.dtype == np.uint8
        shown = to_display(images[number], ("red", "green", "blue") if colour else ())
        plain.set_title(title, fontsize=SMALL, color=_verdict(right[number]), loc="left")
        _draw(plain, shown, None, top)
        _draw(alone, None, maps[number], top)
        _draw(over, shown, maps[number], top, None if cause is None else cause[number])
    return _finished(figure, axes, top, stamp)


@styled
def section_maps(
    volumes: np.ndarray,
    maps: np.ndarray,
    titles: Sequence[str],
    right: Sequence[bool],
    *,
    voxel_nm: Sequence[float],
    cause: np.ndarray | None = None,
    stamp: str = "",
) -> Figure:
    """Two rows per volume: evenly spaced sections, and the same with the map over them; last a cut
    through the depth (z down, x across, at the middle of y). One colour scale for all, shown as a
    bar.

    ``volumes`` is (n, z, y, x) uint8 or uint16, ``maps`` (n, z, y, x) raw, in the same voxels;
    ``voxel_nm`` (z, y, x). The rest as in :func:`map_sheet`.
    """
    top = float(maps.max()) or 1.0
    chosen = spread_sections(maps.shape[1], SECTIONS)
    size = (WIDTH - 1.6) / (len(chosen) + 1)
    height = 0.4 + 2 * len(maps) * size * 1.05
    figure, axes = picture_grid(WIDTH, height, 2 * len(maps), len(chosen) + 1)
    # What to take of (z, y, x) for each column, and how high a voxel is there.
    cuts = [(section, 1.0) for section in chosen]
    cuts.append(((slice(None), maps.shape[2] // 2), voxel_nm[0] / voxel_nm[2]))
    for number, title in enumerate(titles):
        low, high = grey_range(volumes[number])
        shown = np.clip((volumes[number] - low) / (high - low), 0, 1)
        plain, over = axes[2 * number : 2 * number + 2]
        for column, (cut, aspect) in enumerate(cuts):
            truth = None if cause is None else cause[number][cut]
            _draw(plain[column], shown[cut], None, top, aspect=aspect)
            _draw(over[column], shown[cut], maps[number][cut], top, truth, aspect)
        row_title(plain[0], title, height=0.0, colour=_verdict(right[number]))
    depth_titles(axes[0], chosen, voxel_nm)
    axes[0, -1].set_title("z down", fontsize=SMALL)
    return _finished(figure, axes, top, stamp)


@styled
def sanity_curves(
    curves: pd.DataFrame, cascade: pd.DataFrame, *, most_alike: float, stamp: str = ""
) -> Figure:
    """Left and middle: the probability of the class while places are put in or taken away, in the
    order of the map, of a random map and of a blob in the middle. Right: how alike maps stay as the
    weights are made random from the head on, at most ``most_alike``.

    Tables of :class:`nbhelpers.saliency.checks.SanityChecks`.
    """
    import seaborn

    figure = new_figure(WIDTH, 3.0)
    *both, last = figure.subplots(1, 3)
    kinds = curves["map"].nunique()
    for axis, order, text in zip(
        both, ("insertion", "deletion"), ("put in", "taken away"), strict=True
    ):
        seaborn.lineplot(
            curves[curves["order"] == order],
            x="share",
            y="probability",
            hue="map",
            style="map",
            palette=[PALETTE[0], FAINT, PALETTE[1]][:kinds],
            estimator=None,
            legend=order == "deletion",
            ax=axis,
        )
        axis.set(xlabel=f"share of the image {text}", ylabel="", ylim=(0, 1.02))
    both[0].set_ylabel("probability of the class")
    legend_below(both[1], kinds)
    whole = pd.DataFrame([{"layers": 0, "similarity": 1.0, "low": 1.0, "high": 1.0}])
    steps = pd.concat([whole, cascade[list(whole)].astype(float)])
    seaborn.pointplot(
        interval_rows(steps, "similarity").astype({"layers": int}),
        x="layers",
        y="similarity",
        color=INK,
        markersize=4,
        linewidth=1.4,
        ax=last,
        **AS_GIVEN,
    )
    last.axhline(most_alike, color=WRONG, linewidth=1, linestyle=":")
    last.text(
        len(cascade), most_alike, "limit", color=WRONG, fontsize=SMALL, ha="right", va="bottom"
    )
    last.set(
        xlabel="layers with random weights",
        ylabel="likeness of the maps",
        ylim=(min(-0.3, np.nanmin(steps[["similarity", "low"]]) - 0.05), 1.05),
    )
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
    lines = []
    tops = []
    for index, name in enumerate(classes):
        rows = np.flatnonzero(labels == index)
        if len(rows):
            most = rows[likeness[rows].argmax()]
            least = rows[likeness[rows].argmin()]
            pictures = [images[rows].mean(0), images[most], images[least]]
            found = [maps[rows].mean(0), maps[most], maps[least]]
            tops.append(np.max(found))
            lines.append((f"{shortened(name, 12)}\nn = {len(rows)}", pictures, found))
    top = max(*tops, 1e-12)
    white = float(images.max()) or 1.0
    figure, axes = picture_grid(WIDTH, 0.4 + 1.25 * len(lines), len(lines), 6)
    for line, (text, pictures, found) in zip(axes, lines, strict=True):
        for column, (picture, one) in enumerate(zip(pictures, found, strict=True)):
            _draw(line[2 * column], picture / white, None, top)
            _draw(line[2 * column + 1], picture / white, one, top)
        row_title(line[0], text)
    heads = ("mean image", "mean map", "most typical", "its map", "least typical", "its map")
    for axis, title in zip(axes[0], heads, strict=True):
        axis.set_title(title, fontsize=SMALL)
    return _finished(figure, axes, top, stamp)


@styled
def maps_per_encoder(
    fields: np.ndarray,
    maps: np.ndarray,
    seen: Sequence[Sequence[int]],
    stains: Sequence[str],
    titles: Sequence[str],
    *,
    right: Sequence[bool] | None = None,
    stamp: str = "",
) -> Figure:
    """One row per field: what each encoder sees, and beside it the encoder's map; one colour scale
    for all maps.

    ``fields`` is (n, stains, y, x) uint8 or uint16, ``maps`` (n, encoders, y, x) raw, ``seen`` the
    stains of each encoder (row numbers), ``titles`` one per field, in the colour of ``right`` or
    wrong where that is known; ``stamp`` as in :func:`map_sheet`.
    """
    top = float(maps.max()) or 1.0
    size = min(1.6, WIDTH / (2 * len(seen) + 1.2))
    width = max(WIDTH * 0.6, size * (2 * len(seen) + 1.2))
    figure, axes = picture_grid(width, 0.5 + 0.86 * size * len(fields), len(fields), 2 * len(seen))
    for row, title in enumerate(titles):
        for number, which in enumerate(seen):
            stain, beside = axes[row, 2 * number : 2 * number + 2]
            _draw(stain, to_display(fields[row][list(which)]), None, top)
            _draw(beside, None, maps[row, number], top)
        row_title(axes[row, 0], title, colour=INK if right is None else _verdict(right[row]))
    for number, which in enumerate(seen):
        names = "\n+ ".join(shortened(stains[one], 14) for one in which)
        axes[0, 2 * number].set_title(names, fontsize=SMALL)
        axes[0, 2 * number + 1].set_title("map", fontsize=SMALL)
    return _finished(figure, axes, top, stamp)


def _verdict(right: bool) -> str:
    return RIGHT if right else WRONG


def _draw(
    axis,
    shown: np.ndarray | None,
    found: np.ndarray | None,
    top: float,
    cause: np.ndarray | None = None,
    aspect: float = 1.0,
) -> None:
    """An image, a map, or the map over the image: the more it says, the less is seen through it."""
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1, "aspect": aspect}
    if found is None:
        axis.imshow(shown, **grey)
        return
    seen = 1.0
    if shown is not None:
        axis.imshow(0.75 * (shown if shown.ndim == 2 else shown.mean(-1)), **grey)
        seen = np.clip(found / top, 0, 1) ** SPREAD * 0.85
    axis.imshow(found, cmap=COLOURS, norm=_scale(top), alpha=seen, aspect=aspect)
    if cause is not None and 0 < (cause >= 0.5).sum() < cause.size:
        axis.contour(cause, levels=[0.5], colors=CAUSE, linewidths=0.4)


def _scale(top: float):
    from matplotlib.colors import PowerNorm

    return PowerNorm(SPREAD, vmin=0, vmax=top)


def _finished(figure: Figure, axes: np.ndarray, top: float, stamp: str) -> Figure:
    """The figure with the scale of its maps, and stamped where they failed."""
    from matplotlib.cm import ScalarMappable

    shown = ScalarMappable(_scale(top), COLOURS)
    label = "speaks for the class (log-odds)"
    shrink = min(1, 1.6 / len(axes))
    figure.colorbar(shown, ax=axes, label=label, shrink=shrink, pad=0.01, aspect=18)
    _stamped(figure, stamp)
    return figure


def _stamped(figure: Figure, stamp: str) -> None:
    if stamp:
        text = f"FAILED: {shortened(stamp, 100)}"
        figure.suptitle(text, color=WRONG, fontsize=SMALL, fontweight="bold")
