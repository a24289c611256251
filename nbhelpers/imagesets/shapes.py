"""Shapes of binary masks in numbers: a floor for whatever looks at the masks themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError


def shape_features(masks: np.ndarray | Sequence[np.ndarray]) -> pd.DataFrame:
    """Measure binary masks: one row per mask, one named property per column, lengths in pixels.

    ``masks`` is (n, y, x) bool or uint8; every value above 0 is foreground. All but ``components``
    is measured on the largest component. ``width_00`` ... ``width_90`` are foreground widths at ten
    heights from the top to the bottom of the bounding box; head and neck are the widest row of the
    upper half and the narrowest row below it. Raises InputError on an empty mask, naming its
    position.
    """
    from scipy.ndimage import distance_transform_edt
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist
    from skimage.measure import label, regionprops

    rows = []
    for number, mask in enumerate(masks):
        mask = np.asarray(mask) > 0
        if mask.ndim != 2:
            raise InputError(
                f"mask {number}", f"it has {mask.ndim} axes.", "Give masks with the axes (n, y, x)."
            )
        if not mask.any():
            raise InputError(
                f"mask {number}", "it has no foreground.", "Leave it out, or check its threshold."
            )
        regions = regionprops(label(mask, connectivity=2))
        region = max(regions, key=lambda one: one.area)
        shape = region.image
        height, width = shape.shape
        widths = shape.sum(axis=1).astype(float)
        # Corners of the outermost pixels of each row: enough for the convex hull, and quick.
        lines = np.arange(height)
        left = shape.argmax(axis=1)
        right = width - shape[:, ::-1].argmax(axis=1)
        sides = [(0, left), (0, right), (1, left), (1, right)]
        corners = np.concatenate([np.stack([lines + down, side], 1) for down, side in sides])
        hull = ConvexHull(corners.astype(float))
        head_row = int(widths[: max(1, height // 2)].argmax())
        below = widths[head_row : max(head_row + 1, int(0.95 * height))]
        neck = float(below.min())
        head = float(widths[head_row])
        perimeter = max(region.perimeter, 1.0)
        major = region.axis_major_length
        minor = region.axis_minor_length
        hu = np.asarray(region.moments_hu)
        row = {
            "area_px2": region.area,
            "perimeter_px": region.perimeter,
            "convex_area_px2": hull.volume,
            "solidity": region.area / hull.volume,
            "extent": region.extent,
            "eccentricity": region.eccentricity,
            "major_axis_px": major,
            "minor_axis_px": minor,
            "axis_ratio": minor / major if major > 0 else 1.0,
            "orientation_cos": np.cos(2 * region.orientation),
            "orientation_sin": np.sin(2 * region.orientation),
            "feret_diameter_px": pdist(corners[hull.vertices]).max(),
            "equivalent_diameter_px": region.equivalent_diameter_area,
            "circularity": 4 * np.pi * region.area / perimeter**2,
            "euler_number": region.euler_number,
            "inscribed_radius_px": distance_transform_edt(np.pad(shape, 1)).max(),
            "height_px": height,
            "width_px": width,
            "height_to_width": height / width,
            "centroid_height": region.centroid_local[0] / height,
            "widest_height": widths.argmax() / height,
            "head_width_px": head,
            "neck_width_px": neck,
            "neck_to_head": neck / head,
            "base_width_px": widths[int(0.85 * height) :].max(),
            "components": len(regions),
        }
        # Logarithms: the seven moments span many powers of ten, and their sign means mirror images.
        row |= {
            f"hu_{order + 1}": np.sign(value) * np.log10(1 + abs(value) * 1e6)
            for order, value in enumerate(hu)
        }
        at = np.linspace(0, height - 1, 10).round().astype(int)
        row |= {f"width_{10 * order:02d}": value for order, value in enumerate(widths[at])}
        rows.append(row)
    return pd.DataFrame(rows).astype(float)
