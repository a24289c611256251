"""Train the small network that turns masks of spines upright, checkpoints/spine_pose.safetensors,
and write its card.

It is trained on phantoms alone, each of which lies upright as it is drawn, in any pose, size and
outline: stretched, smoothed, thinner and thicker, cut higher. No class and no real mask is shown to
it. With --masks it is tested on the public masks, which an expert laid upright, turned by any
angle. Same machine, threads, versions: same file.

    .venv/bin/python benchmarks/make_spine_pose.py --masks FOLDER
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nbhelpers.core.files import write_text
from nbhelpers.core.seeds import derive_seed, seed_everything
from nbhelpers.imagesets.spines import load_spines
from nbhelpers.inference.spine_pose import (
    CHECKPOINT,
    RADII,
    SEEN_PX,
    moments,
    turned,
    upright_angles,
)
from nbhelpers.models.spine_pose import SpinePoseCNN
from nbhelpers.phantoms.spine import load_phantom_spines
from nbhelpers.training.checkpoints import save_checkpoint

ROOT = Path(__file__).resolve().parent.parent


class Draws:
    """Random numbers from one generator, as the training needs them."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def between(self, *shape: int, limit: float = 1.0) -> torch.Tensor:
        return (2 * torch.rand(*shape, generator=self.generator) - 1) * limit

    def chosen(self, count: int, share: float) -> torch.Tensor:
        return torch.rand(count, generator=self.generator) < share


def other_outlines(masks: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Upright (n, 1, y, x) float masks as another hand might have drawn them: the outline smoothed,
    moved in or out, and the base cut higher or at a slant.
    """
    count = len(masks)
    width = 0.5 + 1.2 * float(torch.rand(1, generator=draws.generator))
    reach = torch.arange(-5, 6).float()
    kernel = torch.exp(-0.5 * (reach / width) ** 2)
    kernel = kernel / kernel.sum()
    smooth = F.conv2d(masks, kernel.view(1, 1, 1, -1), padding=(0, 5))
    smooth = F.conv2d(smooth, kernel.view(1, 1, -1, 1), padding=(5, 0))
    level = 0.5 + draws.between(count, 1, 1, 1, limit=0.25)
    redrawn = torch.sigmoid(10 * (smooth - level))
    masks = torch.where(draws.chosen(count, 0.7).view(-1, 1, 1, 1), redrawn, masks)
    rows = torch.arange(masks.shape[2]).float()
    columns = torch.arange(masks.shape[3]).float() - masks.shape[3] / 2
    filled = masks[:, 0].amax(2) > 0.5
    lowest = torch.where(filled, rows, torch.zeros(())).amax(1)
    highest = torch.where(filled, rows, torch.full((), 1e3)).amin(1)
    cut = lowest - (lowest - highest) * torch.rand(count, generator=draws.generator) * 0.2
    slant = torch.tan(draws.between(count, limit=math.radians(8)))
    kept = rows[None, :, None] <= cut[:, None, None] + slant[:, None, None] * columns
    kept |= ~draws.chosen(count, 0.3)[:, None, None]
    return masks * kept[:, None]


def train(pixels: np.ndarray, epochs: int, seed: int) -> SpinePoseCNN:
    """On upright (n, 1, y, x) uint8 masks."""
    seed_everything(seed)
    draws = Draws(derive_seed(seed, "poses"))
    network = SpinePoseCNN().train()
    steps = epochs * (len(pixels) // 32)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    for epoch in range(epochs):
        order = torch.randperm(len(pixels), generator=draws.generator)
        total = 0.0
        for rows in order[: len(pixels) // 32 * 32].split(32):
            masks = F.pad(torch.from_numpy(pixels[rows.numpy()]).float() / 255, (1, 1, 1, 1))
            count = len(masks)
            centre, _, radius = moments(masks)
            # twice: another hand draws what lies upright, and then it is turned as a whole
            each = 2 * 1.5 * RADII * radius / 64
            shapes = torch.eye(2) + draws.between(count, 2, 2, limit=0.12)
            shapes[:, :, 0] *= torch.exp(draws.between(count, limit=0.35))[:, None]
            shapes[:, :, 0] *= torch.where(draws.chosen(count, 0.5), -1.0, 1.0)[:, None]
            upright = turned(masks, centre, torch.zeros(count), each, 64, shapes)
            upright = other_outlines(upright, draws)
            centre, _, radius = moments(upright)
            centre = centre + draws.between(count, 2, limit=1.0)
            angles = draws.between(count, limit=math.pi)
            each = 2 * RADII * radius / SEEN_PX * (1 + draws.between(count, limit=0.1))
            seen = turned(upright, centre, angles, each, SEEN_PX)
            wanted = torch.stack([torch.cos(angles), torch.sin(angles)], 1)
            loss = F.mse_loss(network(seen), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1} of {epochs}: loss {total / (len(pixels) // 32):.4f}", flush=True)
    return network.eval()


def errors(network: SpinePoseCNN, pixels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of upright masks, turned by any angle: how far, in degrees, the pose that is found lies from
    the pose in which they were given, and how sure it was.
    """
    masks = F.pad(torch.from_numpy(np.array(pixels)).float() / 255, (1, 1, 1, 1))
    angles = Draws(seed).between(len(masks), limit=math.pi)
    centre, _, _ = moments(masks)
    given = turned(masks, centre, angles, torch.ones(len(masks)) * 1.3, 250)
    found, sure = upright_angles(network, F.pad(given, (1, 1, 1, 1)))
    off = np.angle(np.exp(1j * (found + angles.numpy())))
    return np.abs(np.degrees(off)), sure


def summary(off: np.ndarray) -> str:
    shares = [f"more than {limit} degrees: {(off > limit).mean():.4f}" for limit in (30, 60, 90)]
    return f"n = {len(off)}, median {np.median(off):.1f} degrees, {', '.join(shares)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phantoms", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--masks", type=Path, help="folder of the two public files")
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    half = options.phantoms // 2
    seeds = [derive_seed(options.seed, "poses", matched) for matched in (0, 1)]
    drawn = [load_phantom_spines(half, seed, bool(at)).pixels for at, seed in enumerate(seeds)]
    network = train(np.concatenate(drawn), options.epochs, options.seed)
    lines = []
    fresh = load_phantom_spines(600, derive_seed(options.seed, "poses", "test")).pixels
    off, sure = errors(network, fresh, 1)
    limit = float(np.quantile(sure, 0.01))
    lines.append(f"- phantoms of other dendrites: {summary(off)}")
    if options.masks:
        real = load_spines("ghani", data_folder=ROOT / "data", data_dir=str(options.masks))
        off, sure = errors(network, real.pixels, 2)
        unsure = sure < limit
        lines.append(f"- the 456 public masks: {summary(off)}")
        lines.append(f"- of these not sure: {unsure.sum()}; the others: {summary(off[~unsure])}")
    about = {
        "data": f"{options.phantoms} synthetic spine masks, seed {options.seed}",
        "epochs": options.epochs,
        "sure_from": limit,
    }
    digest = save_checkpoint(options.out, network, classes=["cosine", "sine"], about=about)
    card = CARD.format(**about, sha256=digest, tests="\n".join(lines))
    write_text(options.out.with_suffix(".md"), card)
    print(card)


CARD = """# spine_pose

A small network that says by which angle a mask of a spine has to be turned to have its base,
where it was cut from the dendrite, below. It knows no class.

- **Network**: SpinePoseCNN; a mask is averaged over 12 turns of itself and of its mirror image.
- **Data**: {data}, in any pose, stretched, with
  outlines smoothed, moved and cut in other ways. No real mask was used.
- **Recipe**: {epochs} epochs, batch 32, adamw 0.003, squared error of cosine and sine.
- **Made by**: `benchmarks/make_spine_pose.py`.
- **sha256**: `{sha256}`

## How far the pose that it finds lies from the one in which a mask was given

{tests}

Below an agreement of {sure_from:.3f}, which 1 of 100 phantoms has, a pose counts as uncertain.
"""

if __name__ == "__main__":
    main()
