"""Time of GradCAM maps of a ResNet-18 at 224 px against the forward and backward passes that they
cannot do without.

The passes are the strictest there are: forward through the whole network without slopes of any
weight, backward from the logits to the layer that is looked into and no further. Beside them the
same passes as training does them, with slopes of all weights, and the class of pytorch-grad-cam as
it comes. All run in turn, in one run, so that what else the machine does slows all of them alike.
Weights are random, which changes neither the work nor the time.

    .venv/bin/python benchmarks/gradcam.py
    .venv/bin/python benchmarks/gradcam.py --images 16 --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from nbhelpers.core.files import write_json
from nbhelpers.models.resnet import make_pretrained
from nbhelpers.reports.manifest import device
from nbhelpers.saliency.maps import saliency_maps
from nbhelpers.training.checkpoints import hash_of_weights

ROOT = Path(__file__).resolve().parent.parent
LAYER = "backbone.layer4"
LIMIT = 1.5


def passes(network: nn.Module, images: torch.Tensor, batch_size: int) -> None:
    """Forward, and backward from the logits to the layer."""
    kept = []
    hook = network.get_submodule(LAYER).register_forward_hook(
        lambda *given: kept.append(given[2].detach().requires_grad_()) or kept[-1]
    )
    network.requires_grad_(False)
    for batch in images.split(batch_size):
        torch.autograd.grad(network(batch).max(1).values.sum(), kept.pop())
    hook.remove()
    network.requires_grad_(True)


def training_passes(network: nn.Module, images: torch.Tensor, batch_size: int) -> None:
    """Forward, and backward to all weights."""
    for batch in images.split(batch_size):
        network(batch).max(1).values.sum().backward()
    network.zero_grad()


def library(network: nn.Module, images: torch.Tensor, batch_size: int) -> None:
    from pytorch_grad_cam import GradCAM

    with GradCAM(network, [network.get_submodule(LAYER)]) as method:
        for batch in images.split(batch_size):
            method(batch, None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "gradcam.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    network = make_pretrained("resnet18", 2).eval()
    images = torch.rand(options.images, 1, options.size, options.size)
    before = hash_of_weights(network)

    def maps(method: str) -> Callable:
        return lambda: saliency_maps(network, images, method=method, batch_size=options.batch_size)

    arguments = (network, images, options.batch_size)
    ways = {
        "passes": lambda: passes(*arguments),
        "passes of a training": lambda: training_passes(*arguments),
        "gradcam": maps("gradcam"),
        "gradcam++": maps("gradcam++"),
        "layercam": maps("layercam"),
        "pytorch-grad-cam as it comes": lambda: library(*arguments),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):  # the first round warms up
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    ratios = sorted(
        own / least for own, least in zip(seconds["gradcam"], seconds["passes"], strict=True)
    )
    ratio = statistics.median(ratios)
    unchanged = hash_of_weights(network) == before
    span = f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {options.rounds} rounds"
    sentence = (
        f"GradCAM of {options.images} images through ResNet-18 at {options.size} px takes "
        f"{median['gradcam']:.2f} s: {ratio:.2f} times ({span}) the forward and backward passes "
        f"themselves "
        f"({median['passes']:.2f} s), on {options.threads} thread(s); the limit is {LIMIT:g}."
    )
    found = {
        "sentence": sentence,
        "reached": ratio < LIMIT,
        "network_unchanged": unchanged,
        "ratio": ratio,
        "ratio_from": ratios[0],
        "ratio_to": ratios[-1],
        "median_s": median,
        "seconds": seconds,
        "over_passes": {name: value / median["passes"] for name, value in median.items()},
        "images": options.images,
        "size_px": options.size,
        "batch_size": options.batch_size,
        "threads": options.threads,
        "layer": LAYER,
        "torch": torch.__version__,
        "device": device(),
    }
    write_json(options.output, found)
    print(sentence)


if __name__ == "__main__":
    main()
