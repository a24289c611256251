"""How much faster a ResNet-18 trains on 128 px patches here than in the plain loop, both timed in
one run (A B A B).

A, the plain loop of the original: every epoch opens each PNG with PIL, turns it into RGB, flips,
rotates, blurs and jitters it with torchvision's transforms one by one, feeds a DataLoader, and
trains in fp32 with batch 32 and Adam 5e-4 for 30 epochs. One of its steps is like another, so a few
are timed and multiplied; scoring between the epochs is left out.

B, ours: the patches are decoded once (counted in), then the whole recipe is run: whole batches
augmented as tensors, channels_last, patches averaged to 64 px, fewer epochs, bf16 where it is
faster. The result says how much of the gain is from fewer pixels and epochs, and how much from
doing the same work faster.

    .venv/bin/python benchmarks/synapse_training.py
    # and the scores of both on unseen neurons
    .venv/bin/python benchmarks/synapse_training.py --score

For the score both recipes are run by the trainer of this collection on the same images (the
published one at its 128 px and 30 epochs), as the plain loop takes much longer.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet18

from nbhelpers.core.files import write_json
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import hold_out
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.paired import compare
from nbhelpers.imagesets import synapses
from nbhelpers.models.resnet import make_pretrained
from nbhelpers.phantoms.synapse import load_phantom_synapses
from nbhelpers.reports.manifest import device
from nbhelpers.studies import synapses2d
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.trainer import ProgressLines, train

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED_EPOCHS = 30
BATCH = 32


class OneFileAtATime(Dataset):
    """The plain way: each patch is opened, decoded and transformed whenever it is asked for."""

    def __init__(self, paths, labels):
        self.paths = paths
        self.labels = labels
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomVerticalFlip(),
                transforms.RandomRotation(10),
                transforms.GaussianBlur(3, (0.1, 1.0)),
                transforms.ColorJitter(0.2, 0.1),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), int(self.labels[index])


class PlainLoop:
    """ResNet-18, Adam 5e-4, cross-entropy, batch 32, fp32."""

    def __init__(self, paths, labels, seed):
        torch.manual_seed(seed)
        self.loader = DataLoader(OneFileAtATime(paths, labels), batch_size=BATCH, shuffle=True)
        self.network = resnet18(num_classes=2).train()
        self.loss = torch.nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=5e-4)
        self.batches = iter(self.loader)

    def steps(self, count: int) -> None:
        for _ in range(count):
            batch = next(self.batches, None)
            if batch is None:
                self.batches = iter(self.loader)
                batch = next(self.batches)
            images, labels = batch
            self.optimizer.zero_grad()
            self.loss(self.network(images), labels).backward()
            self.optimizer.step()


def clock() -> np.ndarray:
    """Seconds by the clock, and of processor time, which suffers less from what else runs on the
    machine.
    """
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phantoms", type=int, default=900)
    parser.add_argument("--neurons", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps-timed", type=int, default=3, help="steps of the plain loop timed per round"
    )
    parser.add_argument(
        "--epochs", type=int, default=16, help="of ours; the published recipe has 30"
    )
    parser.add_argument(
        "--epochs-timed", type=int, default=0, help="epochs of ours timed per round; 0: all of them"
    )
    parser.add_argument(
        "--input-px", type=int, default=64, help="of ours; the published recipe sees all 128"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--data-folder", type=Path, default=ROOT / "data", help="where drawn phantoms are kept"
    )
    parser.add_argument("--score", action="store_true", help="also the scores of both recipes")
    options = parser.parse_args()
    torch.set_flush_denormal(True)  # for both, see benchmarks/precision.py
    torch.set_num_threads(options.threads)

    whole = load_phantom_synapses(
        options.phantoms, options.data_folder, neurons=options.neurons, seed=options.seed
    )
    split = hold_out(whole, seed=options.seed, validation=1, test=4)
    ids = {part: split.ids(0, 0, part) for part in ("train", "validation", "test")}
    rows = whole.positions(ids["train"])
    recipe = synapses2d.recipe("resnet", "ours", input_px=options.input_px, epochs=options.epochs)
    timed = recipe.but(epochs=options.epochs_timed or options.epochs)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for row in rows:
            path = folder / "patches" / whole.table["label"].iloc[row] / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.array(whole.pixels[row, 0])).save(path)
        paths = sorted((folder / "patches").rglob("*.png"))
        labels = [whole.classes.index(path.parent.name) for path in paths]

        def ours(number: int) -> np.ndarray:
            started = clock()
            images = synapses.load_own_synapses(
                folder / "patches", folder / f"cache{number}"
            )  # fresh: decoding counts
            decoded = clock()
            train(
                make_network,
                images,
                (images.ids, images.ids[:0]),
                timed,
                seed=options.seed,
                transform=synapses2d.transform(timed),
                work_folder=folder / f"work{number}",
            )
            return decoded - started + (clock() - decoded) * options.epochs / timed.epochs

        plain = PlainLoop(paths, labels, options.seed)
        plain.steps(1)  # warm-up
        steps = PUBLISHED_EPOCHS * -(-len(paths) // BATCH)
        for number in range(options.rounds):
            started = clock()
            plain.steps(options.steps_timed)
            slow = (clock() - started) / options.steps_timed * steps
            fast = ours(number)
            rounds.append(
                {
                    "plain_s": slow[0],
                    "ours_s": fast[0],
                    "ratio": slow[0] / fast[0],
                    "plain_processor_s": slow[1],
                    "ours_processor_s": fast[1],
                    "processor_ratio": slow[1] / fast[1],
                }
            )
            print(
                f"round {number + 1}: plain {slow[0]:.0f} s ({steps} steps, from "
                f"{options.steps_timed} timed), ours "
                f"{fast[0]:.0f} s, {slow[0] / fast[0]:.1f} times faster ({slow[1] / fast[1]:.1f} "
                f"in processor time)",
                flush=True,
            )
        median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        recipe_gain = PUBLISHED_EPOCHS / options.epochs * (128 / options.input_px) ** 2
        result = {
            "data": whole.source,
            "n_training": len(paths),
            "threads": options.threads,
            "rounds": rounds,
            "median_ratio": median["ratio"],
            "median_processor_ratio": median["processor_ratio"],
            "of_which_fewer_pixels_and_epochs": recipe_gain,
            "epochs_timed_of_ours": timed.epochs,
            "of_which_the_same_work_done_faster": median["processor_ratio"] / recipe_gain,
            "ours": recipe.as_dict(),
            "torch": torch.__version__,
            "device": device(),
        }
        if options.score:
            result["score"] = scores(whole, ids, recipe, options.seed, folder)
        result["sentence"] = sentence(result)
        print(result["sentence"])
    write_json(ROOT / "benchmarks" / "results" / "synapse_training_phantom.json", result)
    print(
        f"median of {len(rounds)} rounds: {median['ratio']:.1f} times faster, "
        f"{median['processor_ratio']:.1f} times in "
        "processor time; written to benchmarks/results/synapse_training_phantom.json"
    )


def sentence(result: dict) -> str:
    """For the README, from what was measured."""
    ratios = [one["ratio"] for one in result["rounds"]]
    plain, ours = (
        statistics.median(one[name] for one in result["rounds"]) for name in ("plain_s", "ours_s")
    )
    text = (
        f"Training ResNet-18 on {result['n_training']} synthetic synapses of 128 px, "
        f"{result['threads']} threads, "
        f"{result['device']['cpu']}: the published loop {plain / 60:.1f} min, ours {ours:.0f} s; "
        f"median of "
        f"{len(ratios)} pairs {result['median_ratio']:.1f} times faster (lowest {min(ratios):.1f}, "
        f"highest "
        f"{max(ratios):.1f}; {result['of_which_fewer_pixels_and_epochs']:.1f} times from fewer "
        f"pixels and epochs, "
        "the rest from doing the same work faster)."
    )
    if score := result.get("score"):
        told = "; ".join(f"{name} {score[name]['accuracy']}" for name in ("published", "ours"))
        ours = score["ours"]
        text += (
            f" Accuracy on {ours['n_images']} synapses of "
            f"{ours['n_groups']} unseen neurons: {told}."
        )
    return text


def make_network():
    return make_pretrained("resnet18", 2)


def scores(whole, ids, recipe, seed: int, folder: Path) -> dict:
    """Accuracy and AUC of both recipes on the neurons that neither saw, and their difference;
    weights from scratch.
    """
    found = {}
    rows = whole.positions(ids["test"])
    published = synapses2d.recipe("resnet", "published", epochs=PUBLISHED_EPOCHS)
    for name, one in (("ours", recipe), ("published", published)):
        prepare = synapses2d.transform(one)
        done = train(
            make_network,
            whole,
            (ids["train"], ids["validation"]),
            one,
            transform=prepare,
            seed=seed,
            work_folder=folder / name,
            callbacks=[ProgressLines(one.epochs)],
        )
        found[name] = Predictions.build(
            ids=ids["test"],
            labels=whole.table["label"].iloc[rows],
            groups=whole.groups[rows],
            classes=whole.classes,
            probabilities=predict_probabilities(
                done.network,
                whole.pixels[rows],
                prepare,
                precision=one.precision,
                test_time_augmentation=one.test_time_augmentation,
            ),
            model=name,
        )
    measured = {name: evaluate(test) for name, test in found.items()}
    return {
        name: {key: entry[key] for key in ("accuracy", "auc", "n_images", "n_groups")}
        for name, entry in measured.items()
    } | {"ours_minus_published": compare(found["ours"], found["published"])}


if __name__ == "__main__":
    main()
