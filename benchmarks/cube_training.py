"""How many cubes a second r3d_18 and UNet3D train here and in the plain loop, timed in turn in one
run (A B C D, A B C D).

A, the plain loop of the original: a DataLoader opens a TIFF file for each cube, whenever it is
asked for, flips, turns, bends and brightens it with SciPy, one by one, and torchvision's r3d_18
(the grey cube three times, as its colours) or a UNet3D of 3x3x3 convolutions and max-pools that
halve all axes trains on it in fp32, contiguous. B, ours: cubes in one file, mapped and not loaded;
whole batches augmented as tensors, bent and turned within the section; one-channel stem and strides
for thick sections; bfloat16 and the order in memory that is faster. C, ours with the network of A:
what comes from doing the same work faster. D, ours at 64 px: B with y and x averaged to the half,
which is a choice of the recipe and no merit of the code.

Timed are training steps from file to updated weights, after one to warm up; scoring and writing
between epochs is not.

    .venv/bin/python benchmarks/cube_training.py
    # does it run?
    .venv/bin/python benchmarks/cube_training.py --rounds 1 --steps 1 --shape 8 32 32 --width 0.125
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch
from lightning.pytorch.callbacks import Callback
from scipy import ndimage
from torch import nn
from torch.utils.data import DataLoader, Dataset

from nbhelpers.core.files import write_json
from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets.stacks import StackedPixels, write_stack
from nbhelpers.models.video3d import make_cube_network
from nbhelpers.phantoms.synapse import make_synapse_cubes
from nbhelpers.reports.manifest import device
from nbhelpers.training.augment3d import CubePreparation
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import train, trains_in_bf16

ROOT = Path(__file__).resolve().parent.parent
VOXEL_NM = (40.0, 8.0, 8.0)
BACKBONES = ("r3d_18", "unet3d")
AUGMENTATION = Augmentation(
    flip_horizontal=True,
    flip_vertical=True,
    quarter_turns=True,
    flip_depth=True,
    rotation_degrees=10,
    elastic_px=3,
    brightness=0.1,
    contrast=0.1,
    noise=0.03,
)


class OneCubeAtATime(Dataset):
    """The plain way: each cube is opened and changed whenever it is asked for. The same kinds of
    change as ours.
    """

    def __init__(self, paths: list[Path], labels: np.ndarray, seed: int):
        self.paths = paths
        self.labels = labels
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        cube = tifffile.imread(self.paths[index]).astype(np.float32) / 255
        rng = self.rng
        for axis in range(3):
            if rng.random() < 0.5:
                cube = np.flip(cube, axis)
        cube = np.rot90(cube, rng.integers(4), (1, 2))
        cube = ndimage.rotate(
            cube, rng.uniform(-10, 10), (1, 2), reshape=False, order=1, mode="nearest"
        )
        bend = [
            ndimage.gaussian_filter(rng.uniform(-1, 1, cube.shape).astype(np.float32), 8)
            for _ in range(3)
        ]
        grid = np.meshgrid(*map(np.arange, cube.shape), indexing="ij")
        moved = [
            at + 3 * step / (np.abs(step).max() + 1e-9) for at, step in zip(grid, bend, strict=True)
        ]
        cube = ndimage.map_coordinates(cube, moved, order=1, mode="nearest")
        cube = (cube - cube.mean()) * rng.uniform(0.9, 1.1) + cube.mean() * rng.uniform(0.9, 1.1)
        cube = cube + rng.normal(0, 0.03 * rng.random(), cube.shape)
        return torch.from_numpy(cube.clip(0, 1).astype(np.float32))[None], int(self.labels[index])


class PlainR3D(nn.Module):
    """torchvision's r3d_18 with the grey cube in all three of its colours."""

    def __init__(self):
        from torchvision.models.video import r3d_18

        super().__init__()
        self.body = r3d_18(weights=None, num_classes=2)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        return self.body(volumes.expand(-1, 3, -1, -1, -1))


class PlainUNet3D(nn.Sequential):
    """Encoder of the usual UNet3D: twice 3x3x3, group norm and SiLU at each level; all axes are
    halved between them.
    """

    def __init__(self):
        parts = []
        before = 1
        for filters in (16, 32, 64, 128):
            parts += [nn.MaxPool3d(2)] if before > 1 else []
            for inputs in (before, filters):
                parts += [
                    nn.Conv3d(inputs, filters, 3, padding=1, bias=False),
                    nn.GroupNorm(8, filters),
                    nn.SiLU(),
                ]
            before = filters
        super().__init__(*parts, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(128, 2))


PLAIN = {"r3d_18": PlainR3D, "unet3d": PlainUNet3D}


def clock() -> np.ndarray:
    """Seconds by the clock, and of processor time, which suffers less from what else runs on the
    machine.
    """
    return np.array([time.perf_counter(), time.process_time()])


class PlainLoop:
    """Network, AdamW, cross-entropy, fp32, contiguous, fed by a DataLoader."""

    def __init__(
        self, backbone: str, paths: list[Path], labels: np.ndarray, options: argparse.Namespace
    ):
        torch.manual_seed(options.seed)
        self.loader = DataLoader(
            OneCubeAtATime(paths, labels, options.seed),
            batch_size=options.batch_size,
            shuffle=True,
            drop_last=True,
        )
        self.network = PLAIN[backbone]().train()
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        self.batches = iter(self.loader)
        self.fed = np.zeros(2)

    def steps(self, count: int) -> np.ndarray:
        """Seconds and processor seconds for so many steps."""
        started = clock()
        for _ in range(count):
            asked = clock()
            batch = next(self.batches, None)
            if batch is None:
                self.batches = iter(self.loader)
                batch = next(self.batches)
            self.fed += clock() - asked
            self.optimizer.zero_grad()
            self.loss(self.network(batch[0]), batch[1]).backward()
            self.optimizer.step()
        return clock() - started


class Stopwatch(Callback):
    """Clocks training steps from the end of the first, so with reading and augmentation, but
    without the warm-up.
    """

    def __init__(self):
        self.started = None
        self.spent = np.zeros(2)
        self.steps = -1

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_index) -> None:
        self.steps += 1
        if self.started is None:
            self.started = clock()
        self.spent = clock() - self.started


def ours(
    make_network, images: ImageSet, folder: Path, options: argparse.Namespace, input_px: int = 0
) -> np.ndarray:
    """Seconds and processor seconds per step of the trainer of this collection."""
    watch = Stopwatch()
    recipe = Recipe(
        name="ours",
        epochs=1,
        batch_size=options.batch_size,
        keep="last",
        augmentation=AUGMENTATION,
        input_px=input_px,
    )
    chosen = images.ids[: (options.steps + 1) * options.batch_size]
    train(
        make_network,
        images,
        (chosen, images.ids[:0]),
        recipe,
        transform=CubePreparation(AUGMENTATION, input_px),
        seed=options.seed,
        work_folder=folder,
        callbacks=[watch],
    )
    return watch.spent / watch.steps


def measure(
    backbone: str, images: ImageSet, paths: list[Path], options: argparse.Namespace, folder: Path
) -> dict:
    """Cubes a second of A, B, C and D, round by round."""
    shape = options.shape
    half = max(16, shape[1] // 2)

    def network(px: int):
        voxel = (VOXEL_NM[0], *[side * shape[1] / px for side in VOXEL_NM[1:]])
        return make_cube_network(
            backbone, 2, shape=(shape[0], px, px), voxel_nm=voxel, width=options.width
        )

    plain = PlainLoop(backbone, paths, images.labels, options)
    rounds = []
    plain.steps(1)  # to warm up
    plain.fed[:] = 0
    for number in range(options.rounds):
        spent = {
            "plain": plain.steps(options.steps) / options.steps,
            "ours": ours(
                lambda: network(shape[1]), images, folder / f"{backbone}b{number}", options
            ),
            "ours_same_network": ours(
                PLAIN[backbone], images, folder / f"{backbone}c{number}", options
            ),
            "ours_half_px": ours(
                lambda: network(half), images, folder / f"{backbone}d{number}", options, half
            ),
        }
        row = {f"{name}_per_s": options.batch_size / float(took[0]) for name, took in spent.items()}
        row |= {
            f"{name}_ratio": float(spent["plain"][0] / took[0])
            for name, took in spent.items()
            if name != "plain"
        }
        row |= {
            f"{name}_processor_ratio": float(spent["plain"][1] / took[1])
            for name, took in spent.items()
            if name != "plain"
        }
        rounds.append(row)
        print(
            f"{backbone}, round {number + 1}: "
            + ", ".join(f"{name} {value:.2f}" for name, value in row.items()),
            flush=True,
        )
    fed = float(plain.fed[0] / options.steps / options.rounds / options.batch_size)
    return {
        "rounds": rounds,
        "median": {name: statistics.median(row[name] for row in rounds) for name in rounds[0]},
        "plain_feeding_s_per_cube": fed,
        "bf16": trains_in_bf16("auto", network(shape[1])),
        "half_px": half,
    }


def sentence(result: dict) -> str:
    """For the README, from what was measured."""
    parts = []
    for name, found in result["networks"].items():
        median = found["median"]
        ratios = [row["ours_ratio"] for row in found["rounds"]]
        parts.append(
            f"{name} {median['plain_per_s']:.2f} cubes/s in the plain loop, "
            f"{median['ours_per_s']:.2f} here: "
            f"{median['ours_ratio']:.1f} times (lowest {min(ratios):.1f}, highest "
            f"{max(ratios):.1f}; "
            f"{median['ours_same_network_ratio']:.1f} times with the very network of the plain "
            f"loop; averaged to "
            f"{found['half_px']} px, a choice of the recipe, {median['ours_half_px_ratio']:.1f} "
            f"times)"
        )
    depth, height, width = result["shape"]
    return (
        f"Training on synthetic cubes of {depth} x {height} x {width}, batches of "
        f"{result['batch_size']}, "
        f"{result['threads']} threads, {result['device']['cpu']}, medians of {result['n_rounds']} "
        f"rounds: " + "; ".join(parts) + "."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(16, 128, 128), metavar=("Z", "Y", "X")
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=4, help="training steps timed per round, of each"
    )
    parser.add_argument(
        "--width", type=float, default=1.0, help="of our networks; other than 1 only to try it out"
    )
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "cube_training.json"
    )
    options = parser.parse_args()
    torch.set_flush_denormal(True)  # for all, see benchmarks/precision.py
    torch.set_num_threads(options.threads)

    count = (options.steps + 1) * options.batch_size
    cubes = make_synapse_cubes(
        count,
        neurons=min(count, 8),
        shape_px=tuple(options.shape),
        voxel_nm=VOXEL_NM,
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_stack(folder / "cubes.ome.tif", cubes.pixels[:, 0], VOXEL_NM)
        paths = [folder / f"{row}.tif" for row in range(count)]
        for path, cube in zip(paths, cubes.pixels[:, 0], strict=True):
            tifffile.imwrite(path, cube)
        classes = tuple(pd.unique(cubes.table["label"]))
        images = ImageSet(
            "cubes",
            cubes.table,
            StackedPixels([(folder / "cubes.ome.tif", count)], options.shape, "uint8"),
            classes,
            "drawn for this benchmark",
            True,
        )
        networks = {
            name: measure(name, images, paths, options, folder) for name in options.backbones
        }
    result = {
        "shape": list(options.shape),
        "batch_size": options.batch_size,
        "threads": options.threads,
        "width": options.width,
        "n_rounds": options.rounds,
        "steps_per_round": options.steps,
        "networks": networks,
        "torch": torch.__version__,
        "device": device(),
    }
    result["sentence"] = sentence(result)
    print(result["sentence"])
    write_json(options.output, result)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
