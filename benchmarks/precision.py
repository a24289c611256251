"""One training step in bfloat16 against fp32, per network.

    .venv/bin/python benchmarks/precision.py

Pairs A B A B in one run, channels_last, AdamW; median of the rounds. Above 1: bfloat16 is faster.
With ``--keep-denormals`` and ``--learnt`` (labels all the same, so that every gradient soon is next
to nothing) it shows why the trainer calls ``torch.set_flush_denormal``; nothing is written then.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from nbhelpers.core.files import write_json
from nbhelpers.models.resnet import make_pretrained
from nbhelpers.models.synapse_cnn import SynapseCNN
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.models.video3d import make_cube_network
from nbhelpers.reports.manifest import device

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {
    "TinyCNN, 64 px, batch 16": (lambda: TinyCNN(1, 3), (16, 1, 64, 64)),
    "SynapseCNN, 64 px, batch 32": (lambda: SynapseCNN(64), (32, 1, 64, 64)),
    "ResNet-18, 64 px, batch 32": (
        lambda: make_pretrained("resnet18", 2, grey="one channel"),
        (32, 1, 64, 64),
    ),
    "ResNet-18, 128 px, batch 32": (
        lambda: make_pretrained("resnet18", 2, grey="one channel"),
        (32, 1, 128, 128),
    ),
    "SqueezeNet 1.0, 128 px, batch 16": (
        lambda: make_pretrained("squeezenet1_0", 2),
        (16, 1, 128, 128),
    ),
    "MobileNetV2, 128 px, batch 16": (
        lambda: make_pretrained("mobilenet_v2", 2),
        (16, 1, 128, 128),
    ),
    "ResNet-34, 64 px, batch 32": (
        lambda: make_pretrained("resnet34", 2, grey="one channel"),
        (32, 1, 64, 64),
    ),
    "r3d_18, 8 x 48 x 48, batch 8": (
        lambda: make_cube_network("r3d_18", 2, shape=(8, 48, 48)),
        (8, 1, 8, 48, 48),
    ),
    "UNet3D, 8 x 48 x 48, batch 16": (
        lambda: make_cube_network("unet3d", 2, shape=(8, 48, 48)),
        (16, 1, 8, 48, 48),
    ),
}


def step_s(
    network: torch.nn.Module, images: torch.Tensor, bf16: bool, steps: int, learnt: bool = False
) -> float:
    """Seconds per training step, after two to warm up."""
    order = torch.channels_last if images.ndim == 4 else torch.contiguous_format
    network = network.to(memory_format=order).train()
    images = images.contiguous(memory_format=order)
    labels = torch.zeros(len(images), dtype=torch.long) if learnt else torch.arange(len(images)) % 2
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    for step in range(2 + steps):
        if step == 2:
            started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = torch.nn.functional.cross_entropy(network(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learnt", action="store_true", help="with nothing left to learn")
    parser.add_argument("--keep-denormals", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(not options.keep_denormals)
    found = {}
    for name, (make, shape) in NETWORKS.items():
        torch.manual_seed(0)
        images = torch.rand(shape)
        pairs = [
            [step_s(make(), images, bf16, options.steps, options.learnt) for bf16 in (True, False)]
            for _ in range(options.rounds)
        ]
        found[name] = {
            "bf16_s": [pair[0] for pair in pairs],
            "fp32_s": [pair[1] for pair in pairs],
            "bf16_speedup": statistics.median(fp32 / bf16 for bf16, fp32 in pairs),
        }
        print(f"{name:36} bf16 {found[name]['bf16_speedup']:.2f} times as fast as fp32", flush=True)
    if options.learnt or options.keep_denormals:
        return
    write_json(
        ROOT / "benchmarks" / "results" / "precision.json",
        {
            "networks": found,
            "threads": options.threads,
            "torch": torch.__version__,
            "device": device(),
        },
    )


if __name__ == "__main__":
    main()
