"""How long TinyCNN takes for one 250 x 250 mask by each backend, and how far each is from what this
processor could do.

All backends in turn in one run (A B C A B C), one image at a time, 2 threads, images decoded and
prepared; then from the PNG file to the probabilities, for eager fp32 and the best backend. The
floor is the counted multiply-adds by the measured matrix peak of each number format. The network is
a checkpoint of notebook 08, or trained here for a few epochs on phantoms, so that the drift is that
of a network that knows something.

    .venv/bin/python benchmarks/tinycnn_latency.py
    .venv/bin/python benchmarks/tinycnn_latency.py \\
        --checkpoint checkpoints/benchmark/FOLDER/network.safetensors
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nbhelpers.core.files import write_json
from nbhelpers.inference.backends import BACKENDS
from nbhelpers.inference.latency import (
    Timing,
    dtype_of,
    fastest,
    roofline,
    summary,
    timed_in_turn,
)
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.phantoms.spine import load_phantom_spines
from nbhelpers.reports.manifest import device
from nbhelpers.studies.benchmark_times import decoded
from nbhelpers.studies.spines import PUBLISHED
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import load_checkpoint
from nbhelpers.training.trainer import train

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", help="weights of a TinyCNN with three channels (.safetensors)"
    )
    parser.add_argument("--epochs", type=int, default=6, help="of the training here, at 64 px")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--check", type=int, default=120, help="masks for ranges and drift, half each"
    )
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = load_phantom_spines(options.check, options.seed)
    if options.checkpoint:
        network = load_checkpoint(options.checkpoint, TinyCNN)[0]
    else:
        others = load_phantom_spines(160, options.seed + 1)
        recipe = PUBLISHED.but(epochs=options.epochs, input_px=64, keep="last")
        with tempfile.TemporaryDirectory() as work:
            network = train(
                lambda: TinyCNN(3, 3),
                others,
                (others.ids, others.ids[:0]),
                recipe,
                seed=options.seed,
                transform=Transform(recipe.augmentation, 64, 3),
                work_folder=work,
            ).network
    prepare = Transform(PUBLISHED.augmentation, 0, 3)
    timing = Timing(options.threads, options.rounds, seconds=600)
    ready, table = roofline(
        network,
        images.pixels[1::2],
        prepare,
        options.backends,
        calibration=images.pixels[::2],
        timing=timing,
    )
    best = fastest(table)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mask.png"
        Image.fromarray(images.pixels[0, 0]).save(file)
        image = prepare.evaluate(torch.from_numpy(np.array(images.pixels[:1]))).contiguous()

        def whole(backend: str) -> torch.Tensor:
            return ready[backend].run(
                prepare.evaluate(torch.from_numpy(decoded(file)[None])).contiguous()
            )

        runs = {}
        for backend in dict.fromkeys(["eager fp32", best]):
            runs[f"{backend}, decode-out"] = functools.partial(ready[backend].run, image)
            runs[f"{backend}, decode-in"] = functools.partial(whole, backend)
        spent = {name: summary(values) for name, values in timed_in_turn(runs, timing).items()}
    peaks = table.groupby(table["backend"].map(dtype_of))["peak"].max().to_dict()
    print(table.drop(columns=["n", "multiply_adds"]).round(3).to_string(index=False))
    row = table.set_index("backend").loc[best]
    share = spent[f"{best}, decode-in"]["median_ms"] / spent[f"{best}, decode-out"]["median_ms"]
    print(
        f"peaks, 10^9 multiply-adds per second: "
        f"{ {key: value and round(value / 1e9) for key, value in peaks.items()} }"
    )
    print(
        f"best: {best}, {row['median_ms']:.2f} ms, "
        f"{row['withdrawn'] or format(row['times_bf16_floor'], '.2f') + ' times the bf16 floor'}, "
        f"{row['speedup']:.1f} times as fast as eager fp32; decode-in {share:.2f} times decode-out"
    )
    write_json(
        ROOT / "benchmarks" / "results" / "tinycnn_latency.json",
        {
            "best": best,
            "median_ms": row["median_ms"],
            "times_bf16_floor": row["times_bf16_floor"],
            "speedup": row["speedup"],
            "decode_in_over_decode_out": share,
            "decode": spent,
            "backends": table.to_dict("records"),
            "peaks_multiply_adds_per_s": peaks,
            "threads": options.threads,
            "rounds": options.rounds,
            "batch": 1,
            "px": 250,
            "trained": options.checkpoint is not None
            or f"{options.epochs} epochs on phantoms at 64 px",
            "torch": torch.__version__,
            "device": device(),
        },
    )


if __name__ == "__main__":
    main()
