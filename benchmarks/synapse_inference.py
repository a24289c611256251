"""How much faster a ResNet-18 predicts 128 px patches by each backend than in eager fp32, all in
one run (A B A B).

Timed is `predict_probabilities`: from uint8 patches in memory to probabilities, with the
transform, one view, without decoding. A is eager fp32 in batches of 32, as in the original. The
best of a few batch sizes of eager fp32 is timed too, so that nobody need wonder. Beside the time on
the clock stands the processor time, which suffers less from what else runs on the machine. Weights
are random, which changes neither the work nor the time; the drift of each backend is measured on
the same patches.

    .venv/bin/python benchmarks/synapse_inference.py
    .venv/bin/python benchmarks/synapse_inference.py --backbone resnet50 --images 32
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from nbhelpers.core.files import write_json
from nbhelpers.inference.backends import BACKENDS, Drift, prepared_for, why_not
from nbhelpers.models.resnet import make_pretrained
from nbhelpers.phantoms.synapse import make_synapse_patches
from nbhelpers.reports.manifest import device
from nbhelpers.studies import synapses2d

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "eager fp32, batch 32"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size-px", type=int, default=128)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    pixels = make_synapse_patches(options.images, size_px=options.size_px, seed=options.seed).pixels
    calibration = make_synapse_patches(32, size_px=options.size_px, seed=options.seed + 1).pixels
    network = make_pretrained(options.backbone, 2).eval()
    prepare = synapses2d.transform(synapses2d.recipe("resnet", "ours"))
    runs = {}
    refused = {}
    ready = {}
    for backend in BACKENDS:
        reason = why_not(backend)
        if reason:
            refused[backend] = reason
            continue
        ready[backend] = prepared_for(
            network, pixels, prepare, backend, threads=options.threads, calibration=calibration
        )
        for batch in (
            (128,) if backend.startswith("openvino") else (8, 32)
        ):  # OpenVINO takes them one by one
            runs[backend if backend.startswith("openvino") else f"{backend}, batch {batch}"] = (
                backend,
                batch,
            )

    def run(name: str):
        backend, batch = runs[name]
        return ready[backend].probabilities(pixels, prepare, batch_size=batch)

    reference = run(REFERENCE)
    drift = {name: Drift.between(run(name), reference) for name in runs}  # warms up too
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for (
            name
        ) in runs:  # one of each in turn: what else runs on the machine slows all of them alike
            started = time.perf_counter()
            busy = time.process_time()
            run(name)
            seconds[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - busy)
    rows = {}
    for name, spent in seconds.items():
        ratios = [slow / fast for slow, fast in zip(seconds[REFERENCE], spent, strict=True)]
        rows[name] = {
            "images_per_s": options.images / statistics.median(spent),
            "speedup": statistics.median(ratios),
            "speedup_lowest": min(ratios),
            "speedup_highest": max(ratios),
            "processor_time_speedup": statistics.median(
                slow / fast
                for slow, fast in zip(processor[REFERENCE], processor[name], strict=True)
            ),
            "drift_probability": drift[name].probability,
            "drift_changed": drift[name].changed,
            "within_limits": not drift[name].too_far,
        }
        print(
            f"{name:24} {rows[name]['images_per_s']:7.1f} images/s   {rows[name]['speedup']:5.2f} "
            f"times "
            f"({min(ratios):.2f} to {max(ratios):.2f}; processor time "
            f"{rows[name]['processor_time_speedup']:.2f})   {drift[name]}",
            flush=True,
        )
    best = max(
        (name for name in rows if rows[name]["within_limits"]),
        key=lambda name: rows[name]["processor_time_speedup"],
    )
    eager = max(
        (name for name in rows if name.startswith("eager fp32")),
        key=lambda name: rows[name]["images_per_s"],
    )
    result = {
        "backbone": options.backbone,
        "size_px": options.size_px,
        "images": options.images,
        "rounds": options.rounds,
        "threads": options.threads,
        "reference": REFERENCE,
        "best": best,
        "speedup": rows[best]["speedup"],
        "processor_time_speedup": rows[best]["processor_time_speedup"],
        "fastest_eager_fp32": eager,
        "speedup_over_fastest_eager_fp32": statistics.median(
            slow / fast for slow, fast in zip(seconds[eager], seconds[best], strict=True)
        ),
        "backends": rows,
        "not_available": refused,
        "torch": torch.__version__,
        "device": device(),
    }
    result["sentence"] = (
        f"Predicting with {options.backbone} at {options.size_px} px, {options.threads} threads, "
        f"{result['device']['cpu']}: {best} {result['speedup']:.1f} times the images per second of "
        f"eager fp32 (batch 32; "
        f"lowest {rows[best]['speedup_lowest']:.1f}, highest {rows[best]['speedup_highest']:.1f}, "
        f"{options.rounds} rounds)"
        + "".join(
            f"; {other} {rows[other]['speedup']:.1f}"
            for other in ("openvino int8", "openvino bf16", "eager bf16, batch 32")
            if other in rows and other != best
        )
        + "."
    )
    name = f"synapse_inference_{options.backbone}_{options.size_px}px"
    write_json(ROOT / "benchmarks" / "results" / f"{name}.json", result)
    print(
        f"best: {best}, {result['speedup']:.1f} times {REFERENCE} by the clock, "
        f"{result['processor_time_speedup']:.1f} "
        f"times in processor time; {result['speedup_over_fastest_eager_fp32']:.1f} times {eager} "
        f"by the clock; "
        f"written to benchmarks/results/{name}.json"
    )


if __name__ == "__main__":
    main()
