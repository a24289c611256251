"""A network as a second witness of copies, for ``run_audit(embed=...)``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nbhelpers.audit.duplicates import small
from nbhelpers.models.resnet import make_pretrained

AT_ONCE = 64
SEEN_PX = 128  # height and width that the network is given


def network_embedding(
    backbone: str, weights: str | Path, data_folder: str | Path
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pixels to (n, d) features of a network with ImageNet weights.

    Called, it raises InputError (DownloadError, CheckpointError) where the weights cannot be had;
    the audit then says so and keeps to the perceptual hash.
    """

    def embed(pixels: np.ndarray) -> np.ndarray:
        network = make_pretrained(
            backbone, 2, weights=str(weights), grey="repeat", data_folder=data_folder
        ).eval()
        found = []
        with torch.no_grad():
            for start in range(0, len(pixels), AT_ONCE):
                part = small(pixels[start : start + AT_ONCE])[:, None]
                seen = F.interpolate(part, size=SEEN_PX, mode="bilinear")
                found.append(network.features(seen.expand(-1, 3, -1, -1)).flatten(1).numpy())
        return np.concatenate(found)

    return embed
