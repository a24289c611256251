"""How much faster TinyCNN trains here than in the published loop, both timed in one run (pairs A B
A B).

A, the published loop: every epoch opens each PNG with PIL, turns it into RGB, rotates, crops and
flips it with torchvision's transforms one by one, feeds a DataLoader, and trains in fp32 at 250 px
for 100 epochs, with the held-out images scored after each epoch. One of its epochs is like another,
so a few are timed and multiplied.

B, ours: the images are decoded once (counted in), then the whole recipe of notebook 04 is run.

    .venv/bin/python benchmarks/spine_training.py --data phantom --rounds 3
    .venv/bin/python benchmarks/spine_training.py --data ghani --rounds 3
    # and the grouped scores of both recipes
    .venv/bin/python benchmarks/spine_training.py --data ghani --score

The score of the published recipe (Adam 8e-4 for 100 epochs, the epoch chosen on validation images)
is measured on the same five grouped folds as ours, both by the trainer of this collection. Three
things differ besides the settings of the recipe: the published one sees the whole frame, at 125 px
instead of 250 px, which takes a quarter of the time; it trains on the training images alone, as it
needs the validation images to choose its epoch, while ours trains on both.
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

from nbhelpers.core.files import write_json
from nbhelpers.core.splits import repeated_cross_validation
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.paired import compare
from nbhelpers.imagesets import ghani, masks
from nbhelpers.imagesets.folder import FileList
from nbhelpers.imagesets.windows import windows
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.phantoms.spine import load_phantom_spines
from nbhelpers.studies.spines import GENTLE as OURS
from nbhelpers.studies.spines import PUBLISHED, transform
from nbhelpers.training.crossvalidation import Training
from nbhelpers.training.forward import predict_probabilities, uses_bf16
from nbhelpers.training.trainer import train

ROOT = Path(__file__).resolve().parent.parent
EPOCHS_OF_THE_ORIGINAL = 100


class OneFileAtATime(Dataset):
    """The published way: each image is opened, decoded and transformed whenever it is asked for."""

    def __init__(self, paths, labels, transform):
        self.paths = paths
        self.labels = labels
        self.transform = transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), int(self.labels[index])


TRAINING = transforms.Compose(
    [
        transforms.Resize((250, 250)),
        transforms.RandomRotation(10),
        transforms.RandomResizedCrop(250, scale=(0.9, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
)
TESTING = transforms.Compose([transforms.Resize((250, 250)), transforms.ToTensor()])


class PublishedLoop:
    """The published training: Adam 8e-4, cross-entropy, batch 32, the best epoch by a held-out
    score.
    """

    def __init__(self, paths, labels, training, held_out, seed):
        torch.manual_seed(seed)
        take = lambda rows: ([paths[row] for row in rows], labels[rows])  # noqa: E731
        self.training = DataLoader(
            OneFileAtATime(*take(training), TRAINING), batch_size=32, shuffle=True
        )
        self.held_out = DataLoader(OneFileAtATime(*take(held_out), TESTING), batch_size=32)
        self.network = TinyCNN(3, 3)
        self.loss = torch.nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=8e-4)

    def epoch(self) -> float:
        self.network.train()
        for images, labels in self.training:
            self.optimizer.zero_grad()
            self.loss(self.network(images), labels).backward()
            self.optimizer.step()
        return float((self.predict(self.held_out) == self.held_out.dataset.labels).mean())

    @torch.no_grad()
    def predict(self, loader: DataLoader) -> np.ndarray:
        self.network.eval()
        return np.concatenate([self.network(images).argmax(1).numpy() for images, _ in loader])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=("phantom", "ghani"), default="phantom")
    parser.add_argument(
        "--data-dir", default=None, help="a folder that already holds the two published files"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--epochs-timed", type=int, default=1, help="epochs of the published loop timed per round"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--score",
        action="store_true",
        help="also the grouped scores of both recipes (15 min and more)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    if options.data == "ghani":
        whole = ghani.load_ghani_spines(ROOT / "data", data_dir=options.data_dir or "")
    else:
        whole = load_phantom_spines(456, options.seed)
    split = repeated_cross_validation(whole, folds=5, repeats=1, seed=options.seed)
    ids = {part: split.ids(0, 0, part) for part in ("train", "validation", "test")}
    rows = {part: whole.positions(value) for part, value in ids.items()}
    everything = np.concatenate([ids["train"], ids["validation"]])
    rounds = []
    test_accuracy = None

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        paths = [folder / "masks" / f"{index}.png" for index in range(len(whole))]
        (folder / "masks").mkdir()
        for path, image in zip(paths, whole.pixels, strict=True):
            Image.fromarray(image[0]).save(path)
        table = whole.table[["id", "label"]].assign(path=paths)

        def ours(number: int) -> tuple[float, float]:
            started = time.perf_counter()
            images = windows(
                masks.from_files(  # decoding counted in: a fresh cache each time
                    FileList(table),
                    folder / f"cache{number}",
                    name="benchmark",
                    source="",
                    classes=whole.classes,
                ),
                "grouped",
                OURS.input_px,
            )
            trained = train(
                lambda: TinyCNN(1, 3),
                images,
                (everything, everything[:0]),
                OURS,
                seed=options.seed,
                transform=transform(1)(OURS),
                work_folder=folder / f"work{number}",
            )
            spent = time.perf_counter() - started
            predicted = predict_probabilities(
                trained.network,
                images.pixels[rows["test"]],
                transform(1)(OURS),
                test_time_augmentation=OURS.test_time_augmentation,
            ).argmax(1)
            return spent, float((predicted == whole.labels[rows["test"]]).mean())

        training = np.concatenate([rows["train"], rows["validation"]])
        published = PublishedLoop(paths, whole.labels, training, rows["test"], options.seed)
        published.epoch()  # warm-up
        for number in range(options.rounds):
            started = time.perf_counter()
            for _ in range(options.epochs_timed):
                published.epoch()
            original_s = (
                (time.perf_counter() - started) / options.epochs_timed * EPOCHS_OF_THE_ORIGINAL
            )
            ours_s, test_accuracy = ours(number)
            rounds.append(
                {"published_s": original_s, "ours_s": ours_s, "ratio": original_s / ours_s}
            )
            print(
                f"round {number + 1}: published {original_s:.0f} s (100 epochs, from "
                f"{options.epochs_timed} timed), "
                f"ours {ours_s:.1f} s, {original_s / ours_s:.0f} times faster",
                flush=True,
            )

        result = {
            "data": options.data,
            "n_training": len(training),
            "threads": options.threads,
            "bf16": uses_bf16("auto"),
            "torch": torch.__version__,
            "processor": processor(),
            "rounds": rounds,
            "median_ratio": statistics.median(one["ratio"] for one in rounds),
            "ours_test_accuracy_fold_0": test_accuracy,
        }
        if options.score:
            result["score"] = grouped_scores(whole, options.seed, folder)
    name = f"spine_training_{options.data}"
    write_json(ROOT / "benchmarks" / "results" / f"{name}.json", result)
    print(
        f"median of {len(rounds)} rounds: {result['median_ratio']:.0f} times faster; "
        f"written to benchmarks/results/{name}.json"
    )


def grouped_scores(whole, seed: int, folder: Path) -> dict:
    """Accuracy and macro-F1 of the published recipe and of ours, on the same five folds, and their
    difference.
    """
    split = repeated_cross_validation(whole, folds=5, repeats=1, seed=seed)
    small = PUBLISHED.but(input_px=125)  # 250 px halved: blocks of 2 x 2
    found = {}
    for name, recipe, images, channels, retrain in (
        ("published", small, whole, 3, False),
        ("ours", OURS, windows(whole, "grouped", OURS.input_px), 1, True),
    ):
        training = Training(
            lambda channels=channels: TinyCNN(channels, 3),
            [recipe],
            transform(channels),
            seed=seed,
            work_folder=folder / name,
            model=name,
            retrain=retrain,
        )
        found[name] = training.cross_validate(images, split).predictions.where(split="test")
    scores = {name: evaluate(test) for name, test in found.items()}
    return {
        name: {key: entry[key] for key in ("accuracy", "macro_f1")}
        for name, entry in scores.items()
    } | {"ours_minus_published": compare(found["ours"], found["published"])}


def processor() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
