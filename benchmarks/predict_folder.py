"""How fast a folder is predicted, against one image at a time, and how much memory 100,000 images
need.

A, the usual loop: each file is opened, prepared and given to the network by itself, in eager fp32,
on one view; with one thread and with all, of which the faster counts. B, ours: ``python -m
nbhelpers.studies.predict_folder`` on the same files, the same model and one view. Both start in a
process of their own (starting and loading is not timed) and run in turn (A B A B ...). The ratio is
the median of the pairs. A is timed on the first ``--one-by-one`` images, as its speed does not
depend on how many there are. Then, apart from that, the peak memory of B on ``--memory`` files
(links to the same few images).

    .venv/bin/python benchmarks/predict_folder.py
    .venv/bin/python benchmarks/predict_folder.py --backbone resnet50 --images 600
    .venv/bin/python benchmarks/predict_folder.py --backbone squeezenet1_0 --size 48 \\
        --rounds 0 --memory 100000

The images are phantoms of 224 px in PNG; the model is fitted on some of them and has random
weights, which is as fast as any other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from nbhelpers.core.files import write_json
from nbhelpers.imagesets.folder import find_images
from nbhelpers.imagesets.glomerulus_files import prepare_glomerulus
from nbhelpers.imagesets.reader import read_image
from nbhelpers.models.frozen import make_features, make_views, mean_features
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli
from nbhelpers.studies.glomeruli import texture_head
from nbhelpers.studies.glomerulus_model import Predictor, fit_final
from nbhelpers.studies.predict_folder import _Engine, predict_folder

ROOT = Path(__file__).resolve().parent.parent


def make_model(path: Path, backbone: str, size_px: int) -> None:
    images = load_phantom_glomeruli(40, 1, size_px=size_px)
    network = make_features(backbone, weights="none")
    views = make_views(1)
    net = fit_final(
        network, mean_features(network, images.pixels, views), images, texture_head(network, 0.1, 2)
    )
    Predictor(net, images.classes, views, 1.0, 0.5, None, "none", size_px, "").save(path)


def write_images(folder: Path, count: int, size_px: int, different: int = 60) -> None:
    """``count`` PNG files in folders of a thousand, links to ``different`` files."""
    from PIL import Image

    pixels = load_phantom_glomeruli(min(count, different), 2, size_px=size_px).pixels
    sources = []
    for index, image in enumerate(pixels):
        sources.append(folder / "sources" / f"{index}.png")
        sources[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(np.asarray(image), 0, -1)).save(sources[-1])
    for index in range(count - len(sources)):
        place = folder / f"{index // 1000:04d}"
        place.mkdir(exist_ok=True)
        os.link(sources[index % len(sources)], place / f"{index:06d}.png")


@torch.inference_mode()
def one_by_one(model: Path, images: Path, count: int) -> float:
    """Images per second of the usual loop, on the first ``count`` images."""
    predictor = Predictor.load(model)
    network = predictor.network.features
    head = predictor.network.head()
    size = predictor.size_px
    paths = find_images(images)[:count]

    def predict(path: Path) -> np.ndarray:
        pixels = prepare_glomerulus(read_image(path), path, size)
        return head.probabilities(network(torch.from_numpy(pixels)[None].float() / 255).numpy())

    predict(paths[0])  # the first one is slower
    started = time.perf_counter()
    for path in paths:
        predict(path)
    return len(paths) / (time.perf_counter() - started)


def ours(model: Path, images: Path, backend: str) -> tuple[float, str]:
    """Images per second of the folder command, and the backend it chose."""
    predictor = Predictor.load(model)
    with tempfile.TemporaryDirectory() as out:
        result = predict_folder(predictor, images, out, backend=backend, report=None)
    return result.images_per_second, _Engine(predictor, backend).backend


def in_its_own_process(arguments: list[str], threads: int) -> tuple[dict, int]:
    """What a run of this script prints as JSON, and the peak memory of its process in bytes."""
    # how idle threads wait is left to torch: with two threads, one image at a time is slower if
    # they sleep
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, *arguments, "--threads", str(threads)]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    text = running.stdout.read()
    _, status, usage = os.wait4(running.pid, 0)
    if status:
        raise SystemExit(f"a part of the benchmark failed with status {status}")
    return json.loads(text.splitlines()[-1]), usage.ru_maxrss * 1024


def sentence(found: dict) -> str:
    plain = found["one_by_one_images_per_second"]
    folder = found["folder_images_per_second"]
    ratios = [fast / slow for slow, fast in zip(plain, folder, strict=True)]
    return (
        f"A folder of {found['images']} images of {found['size_px']} px through "
        f"{found['backbone']}, one view each, "
        f"{found['threads']} threads: {statistics.median(folder):.0f} images per second with "
        f"{found['backend']}, "
        f"decoding included; one at a time in eager fp32 {statistics.median(plain):.0f}: "
        f"{found['ratio']:.1f} times "
        f"({min(ratios):.1f} to {max(ratios):.1f} in {len(ratios)} rounds)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument(
        "--one-by-one", type=int, default=300, help="how many of them go through the usual loop"
    )
    parser.add_argument("--rounds", type=int, default=3, help="0: memory only")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--backend", default="auto")
    parser.add_argument(
        "--memory",
        type=int,
        default=0,
        help="also predict this many images and note the peak memory",
    )
    parser.add_argument("--part", choices=("A", "B"), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        torch.set_num_threads(given.threads)
        if given.part == "A":
            print(
                json.dumps(
                    {"rate": one_by_one(Path(given.model), Path(given.folder), given.one_by_one)}
                )
            )
        else:
            rate, backend = ours(Path(given.model), Path(given.folder), given.backend)
            print(json.dumps({"rate": rate, "backend": backend}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        model, few, many = (Path(temporary) / name for name in ("model.safetensors", "few", "many"))
        make_model(model, given.backbone, given.size)
        write_images(few, given.images, given.size)
        common = [
            "--model",
            str(model),
            "--backend",
            given.backend,
            "--one-by-one",
            str(given.one_by_one),
        ]
        pairs = []
        for number in range(given.rounds):
            plain = max(
                (
                    in_its_own_process([*common, "--part", "A", "--folder", str(few)], threads)[0]
                    for threads in {1, given.threads}
                ),
                key=lambda one: one["rate"],
            )
            rates = (
                plain,
                in_its_own_process([*common, "--part", "B", "--folder", str(few)], given.threads)[
                    0
                ],
            )
            pairs.append((rates[0]["rate"], rates[1]["rate"]))
            print(
                f"round {number + 1}: one by one {pairs[-1][0]:.1f}, folder {pairs[-1][1]:.1f} "
                f"images per second "
                f"({rates[1]['backend']})",
                flush=True,
            )
        found = {
            "backbone": given.backbone,
            "images": given.images,
            "one_by_one_images": min(given.images, given.one_by_one),
            "size_px": given.size,
            "threads": given.threads,
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }
        if pairs:
            found |= {
                "one_by_one_images_per_second": [pair[0] for pair in pairs],
                "folder_images_per_second": [pair[1] for pair in pairs],
                "backend": rates[1]["backend"],
                "ratio": statistics.median(b / a for a, b in pairs),
            }
            found["sentence"] = sentence(found)
            print(found["sentence"])
        if given.memory:
            write_images(many, given.memory, given.size)
            result, peak = in_its_own_process(
                [*common, "--part", "B", "--folder", str(many)], given.threads
            )
            found |= {
                "memory_images": given.memory,
                "peak_memory_bytes": peak,
                "memory_run_rate": result["rate"],
            }
            print(f"{given.memory} images: peak memory {peak / 2**30:.2f} GiB")
        kind = "speed" if pairs else "memory"
        write_json(
            ROOT
            / "benchmarks"
            / "results"
            / f"predict_folder_{kind}_{given.backbone}_{given.size}.json",
            found,
        )


if __name__ == "__main__":
    main()
