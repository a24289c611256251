"""The benchmark of system A: every model trained once on the same images and folds, saved, and read
ever after.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbhelpers.core.errors import CheckpointError, InputError, PredictionsError
from nbhelpers.core.files import plain, sha256_of, sha256_of_file, write_json
from nbhelpers.core.folds import Fold, predict_folds
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.kept import kept
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split, published_spine_split
from nbhelpers.evaluation import floors
from nbhelpers.models.classical import RARE, PixelClassifier, five_for_one, read_as_published
from nbhelpers.models.frozen import fit_neural_head
from nbhelpers.models.spine_rivals import CNN3Layer, SpineResNet18, make_vit
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.models.weights import weights_file
from nbhelpers.studies import spines as spine_task
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import load_checkpoint, save_checkpoint
from nbhelpers.training.forward import predict_probabilities, uses_bf16
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import train

COMMAND = "./run_all.sh 08_benchmark -p train missing"
REFERENCE = "TinyCNN"
OURS = "TinyCNN, our recipe"
VIT = "ViT-B16, frozen"
RANDOM_FEATURES = "RANDOM FEATURES, not the published model"
# As published: Adam 1e-4, 30 epochs, flip, rotation 15; and Adam 1e-3, 20 epochs (before its twelve
# random trials).
RESNET = Recipe(
    name="resnet18-published",
    epochs=30,
    optimizer="adam",
    learning_rate=1e-4,
    schedule="constant",
    select_by="accuracy",
    augmentation=Augmentation(rotation_degrees=15, flip_horizontal=True),
)
CNN3 = Recipe(
    name="cnn3-published",
    epochs=20,
    optimizer="adam",
    learning_rate=1e-3,
    schedule="constant",
    keep="last",
)
LEAKING = (
    REFERENCE,
    "ResNet18",
)  # the published ones of these were trained on most of their test images


@dataclass(frozen=True)
class Entrant:
    """One row of the benchmark: what it is, how it is trained, and what it is shown.

    ``kind`` is "network", "vit", "svm", "forest", "shape" or "majority". ``shown`` turns masks in
    their frames into what is trained on, ``values`` into the pixels (n, y, x) that the classical
    ones see. ``about`` is what else decides its predictions (JSON-able); ``note`` is for the reader
    of its score.
    """

    name: str
    kind: str
    make_network: Callable[[], nn.Module] | None = None
    recipe: Recipe | None = None
    shown: Callable[[ImageSet], ImageSet] = field(default=lambda images: images)
    channels: int = 3
    values: Callable[[ImageSet], np.ndarray] = field(
        default=lambda images: images.pixels[:, 0] > 127
    )
    about: dict = field(default_factory=dict)
    note: str = ""

    @property
    def transform(self) -> Transform:
        recipe = self.recipe or Recipe(input_px=self.about.get("input_px", 0))
        return Transform(recipe.augmentation, recipe.input_px, self.channels)

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def key(self, images: ImageSet, split: Split, seed: int) -> str:
        """64 hex digits that change with everything that can change its predictions."""
        return sha256_of(
            [
                2,
                self.name,
                self.kind,
                images.content_hash,
                split.hash,
                seed,
                self.channels,
                self.about,
                self.recipe.as_dict() if self.recipe else None,
            ]
        )


@dataclass(frozen=True)
class Saved:
    """What an entrant left: its test predictions, its weights (None for what is fitted in seconds),
    and where from.
    """

    entrant: Entrant
    predictions: Predictions
    checkpoint: Path | None
    source: str
    split: Split


def entrants(
    classes: Sequence[str],
    *,
    epochs: Mapping[str, int],
    px: Mapping[str, int],
    ours: Recipe,
    vit_weights: str = "none",
    data_folder: str | Path = "data",
    seed: int = 0,
) -> list[Entrant]:
    """Every model of the benchmark, the published ones first, then ours, then the floors.

    ``epochs`` has "tinycnn", "resnet18" and "cnn3"; ``px`` has these and "vit": the height and
    width that they see, 0 for the whole 250. ``ours`` is the recipe of notebook 04. ``vit_weights``
    is "imagenet", a file, or "none"; then the row is marked as random features.
    """
    count = len(classes)

    def reduced(recipe: Recipe, name: str) -> tuple[Recipe, str]:
        mine = recipe.but(epochs=epochs[name], input_px=px[name])
        changed = [f"{mine.epochs} epochs instead of {recipe.epochs}"] * (
            mine.epochs != recipe.epochs
        )
        changed += [f"{mine.input_px} px instead of 250"] * (mine.input_px not in (0, 250))
        return mine, f"reduced: {', '.join(changed)}" if changed else ""

    tiny, tiny_note = reduced(spine_task.PUBLISHED, "tinycnn")
    resnet, resnet_note = reduced(RESNET, "resnet18")
    cnn3, cnn3_note = reduced(CNN3, "cnn3")
    path = weights_file("vit_b_16", vit_weights, data_folder)
    vit_note = "; ".join(
        [RANDOM_FEATURES] * (path is None) + [f"{px['vit']} px instead of 224"] * (px["vit"] != 224)
    )
    vit = {
        "input_px": px["vit"],
        "weights": sha256_of_file(path)[:16] if path else f"random, seed {seed}",
    }
    rare = [list(classes).index(name) for name in RARE if name in classes]
    return [
        Entrant(REFERENCE, "network", lambda: TinyCNN(3, count), tiny, note=tiny_note),
        Entrant(
            VIT,
            "vit",
            lambda: make_vit(count, weights=path or "none", seed=seed),
            about=vit,
            note=vit_note,
        ),
        Entrant("ResNet18", "network", lambda: SpineResNet18(3, count), resnet, note=resnet_note),
        Entrant("CNN-3Layer", "network", lambda: CNN3Layer(3, count), cnn3, note=cnn3_note),
        Entrant("SVM on pixels", "svm", channels=1),
        Entrant("Random Forest on pixels", "forest", channels=1, about={"rare": rare}),
        Entrant(
            OURS,
            "network",
            lambda: TinyCNN(1, count),
            ours,
            channels=1,
            about={"window": spine_task.WINDOW_PX},
            shown=lambda images: spine_task.windows(
                images, "grouped", ours.input_px or spine_task.WINDOW_PX
            ),
        ),
        Entrant("shape features + SVM", "shape", channels=1, note="floor"),
        Entrant("majority class", "majority", channels=1, note="floor"),
    ]


def published_splits(images: ImageSet) -> dict[str, Split]:
    """The published test images under two kinds of training: "leaks", as TinyCNN and ResNet18 were
    trained, on most of the test images; and "others", as the rest was, on all images but these.
    """
    leaks = published_spine_split(images)
    test = leaks.ids(0, 0, "test")
    tested = np.isin(images.ids, test)
    copies = len(set(images.groups[tested]) & set(images.groups[~tested]))
    table = pd.DataFrame(
        {
            "repeat": 0,
            "fold": 0,
            "part": np.where(tested, "test", "train"),
            "id": images.ids,
            "group": images.groups,
        }
    )
    others = Split(
        table,
        "published: one split, seed 42, trained on the other images",
        42,
        known_leak=(
            f"{copies} groups (dendrites, or equal masks) stand in training and test"
            if copies
            else ""
        ),
    )
    return {"leaks": leaks, "others": others}


def beside_the_honest_one(split: Split) -> Split:
    """The same split, whose leak says that it is of the last table only: the report's banner stands
    above honest scores.
    """
    return replace(
        split, known_leak=f"only that of the last table, as published: {split.known_leak}"
    )


def read_like_the_published_svm(entrant: Entrant, files: Mapping[str, Path]) -> Entrant:
    """The SVM on pixels as its authors read them, from the files by id: half of the masks next to
    black.
    """
    return replace(
        entrant,
        values=lambda images: read_as_published([files[name] for name in images.ids]),
        about=entrant.about | {"read": "as published"},
        note="1-bit files read as 0 and 1, others as 0 to 255",
    )


def published_training(entrant: Entrant) -> str:
    """Which of :func:`published_splits` an entrant was trained with: "leaks" or "others"."""
    return "leaks" if entrant.name in LEAKING else "others"


def bring(
    entrant: Entrant,
    images: ImageSet,
    split: Split,
    *,
    shelf: str | Path,
    work_folder: str | Path,
    seed: int,
    train_missing: bool = True,
    report: Callable[[str], None] = print,
) -> Saved:
    """The saved predictions of an entrant on these images and folds; trained now, and saved, only
    where there are none.

    ``shelf`` is the folder that keeps them. Raises PredictionsError when nothing is saved and
    ``train_missing`` is False, when a file was changed since, or when it is of other images or
    folds; each names the command that fixes it.
    """
    folder = Path(shelf) / f"{entrant.slug}-{entrant.key(images, split, seed)[:12]}"
    path = folder / "predictions.csv"
    weights = folder / "network.safetensors"
    checkpoint = weights if entrant.kind in ("network", "vit") else None
    where = f"{entrant.name}: saved in {folder.name}"
    if (folder / "about.json").is_file():
        try:
            digest = json.loads((folder / "about.json").read_text(encoding="utf-8"))["predictions"]
        except (OSError, ValueError, KeyError, TypeError):
            raise PredictionsError(
                folder / "about.json",
                "it cannot be read, and vouches for the predictions there.",
                f"Delete the folder {folder.name} and make them again: {COMMAND}",
            ) from None
        if not path.is_file() or sha256_of_file(path) != digest:
            raise PredictionsError(
                path,
                "the saved predictions are missing or were changed after they were made.",
                f"Delete the folder {folder.name} and make them again: {COMMAND}",
            )
        predictions = Predictions.load(path)
        check_same(predictions, images, split, path, COMMAND)
        return Saved(
            entrant, predictions, checkpoint, where.replace("saved in", "read from"), split
        )
    if not train_missing:
        raise PredictionsError(
            f"{entrant.name}, {split.protocol}",
            "there are no saved predictions for these images and folds.",
            f"Make them once: {COMMAND}",
        )
    report(
        f"{entrant.name}: nothing is saved for these images and folds, so it is trained now, once "
        f"({len(split.folds())} folds)"
    )
    found, network = _predict_folds(
        entrant, images, split, seed, Path(work_folder) / folder.name, Path(shelf)
    )
    predictions = Predictions(
        found.table.assign(model=entrant.name, run="08_benchmark"), found.classes
    )
    predictions.save(path)
    if checkpoint is not None:
        save_checkpoint(
            weights,
            network,
            classes=images.classes,
            about={
                "data": images.source,
                "content_hash": images.content_hash,
                "synthetic": images.synthetic,
                "protocol": split.protocol,
                "known_leak": split.known_leak,
                "entrant": entrant.name,
                "note": entrant.note,
                "window": "window" in entrant.about,
                "recipe": entrant.recipe.as_dict() if entrant.recipe else entrant.about,
                "of": "the last fold, so it has not seen that fold's test images"
                if not split.known_leak
                else "this split",
            },
        )
    write_json(
        folder / "about.json",
        {
            "model": entrant.name,
            "content_hash": images.content_hash,
            "split": split.hash,
            "protocol": split.protocol,
            "seed": seed,
            "synthetic": images.synthetic,
            "predictions": sha256_of_file(path),
            **entrant.about,
        },
    )
    return Saved(entrant, predictions, checkpoint, where, split)


def check_same(
    predictions: Predictions, images: ImageSet, split: Split, where: object, command: str
) -> None:
    """Refuse test predictions of other images, labels or folds than these. Raises
    PredictionsError."""
    table = predictions.table
    label = dict(zip(images.ids, images.table["label"], strict=True))
    wanted = {
        (one, repeat, fold)
        for repeat, fold in split.folds()
        for one in split.ids(repeat, fold, "test")
    }
    found = set(table[["id", "repeat", "fold"]].itertuples(index=False, name=None))
    if found != wanted:
        first = sorted(found ^ wanted)[0]
        raise PredictionsError(
            where,
            f"these predictions are of other images or folds ({len(found ^ wanted)} differ, e.g. "
            f"image {first[0]}, repeat {first[1]}, fold {first[2]}).",
            f"Make them again: {command}",
        )
    differ = table[table["label"] != table["id"].map(label)]
    if len(differ):
        raise PredictionsError(
            where,
            f"image {differ['id'].iloc[0]} has another label there ({len(differ)} such rows).",
            f"Make them again: {command}",
        )


def command_of_notebook_04(**parameters: object) -> str:
    """The command that runs notebook 04 with these parameters, ready to paste; empty ones are left
    out.
    """
    return " ".join(
        [
            "./run_all.sh 04_spine_tinycnn",
            *(
                f"-p {name} {shlex.quote(str(value))}"
                for name, value in parameters.items()
                if value != ""
            ),
        ]
    )


def of_notebook_04(
    entrant: Entrant, images: ImageSet, split: Split, repository: str | Path, command: str
) -> Saved:
    """Our TinyCNN as notebook 04 left it, where that run used the very same images, folds, recipe
    and channels.

    Raises PredictionsError that says what differs and which ``command`` makes the right one.
    """
    folder = Path(repository) / "results" / "04_spine_tinycnn"
    if not (folder / "predictions.csv").is_file():
        raise PredictionsError(
            "results/04_spine_tinycnn", "notebook 04 has not been run.", f"Run {command}"
        )
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        hashes = (
            [one["content_hash"] for one in manifest["data"]],
            [one["hash"] for one in manifest["splits"]],
        )
    except (OSError, ValueError, KeyError):
        raise PredictionsError(
            "results/04_spine_tinycnn/manifest.json", "it cannot be read.", f"Run {command}"
        ) from None
    for mine, theirs, what in (
        (images.content_hash, hashes[0], "images"),
        (split.hash, hashes[1], "folds"),
    ):
        if mine not in theirs:
            raise PredictionsError(
                "results/04_spine_tinycnn", f"that run used other {what}.", f"Run {command}"
            )
    found = Predictions.load(folder / "predictions.csv").where(model="TinyCNN", split="test")
    check_same(found, images, split, "results/04_spine_tinycnn/predictions.csv", command)
    weights = folder / "tinycnn_spines.safetensors"
    try:
        card = load_checkpoint(weights, TinyCNN)[1]
        used = {**card["about"]["recipe"], "channels": card["settings"]["in_channels"]}
    except (CheckpointError, KeyError, TypeError) as error:
        raise PredictionsError(
            "results/04_spine_tinycnn/tinycnn_spines.safetensors",
            f"the weights cannot be read ({getattr(error, 'what', 'their card has no recipe')}).",
            f"Run {command}",
        ) from None
    wanted = plain(entrant.recipe.as_dict() | {"channels": entrant.channels})
    differ = [name for name, value in wanted.items() if used.get(name) != value]
    # its scores would stand beside the time of another network, and the export would see other
    # images
    if differ:
        raise PredictionsError(
            "results/04_spine_tinycnn",
            f"that run used another recipe ({', '.join(differ)}).",
            f"Run {command}",
        )
    renamed = Predictions(found.table.assign(model=entrant.name), found.classes)
    return Saved(
        entrant, renamed, weights, f"{entrant.name}: read from results/04_spine_tinycnn", split
    )


def network_of(saved: Saved) -> nn.Module:
    """The network of an entrant with its saved weights, in evaluation mode. Raises CheckpointError
    that names the command.
    """
    if saved.checkpoint is None:
        raise InputError(
            saved.entrant.name,
            "it is no network.",
            "It is fitted again where its time is measured.",
        )
    if not saved.checkpoint.is_file():
        raise CheckpointError(
            saved.checkpoint,
            f"the weights of {saved.entrant.name} are gone.",
            f"Delete the folder {saved.checkpoint.parent.name} and make them again: {COMMAND}",
        )
    network = saved.entrant.make_network()
    try:
        if saved.entrant.kind != "vit":
            return load_checkpoint(saved.checkpoint, type(network))[0]
        network.head = load_checkpoint(saved.checkpoint, nn.Linear)[0]
        return network.eval()
    except CheckpointError as error:  # running the notebook again would read the same file again
        raise CheckpointError(
            saved.checkpoint,
            error.what,
            f"Delete the folder {saved.checkpoint.parent.name} and make it again: {COMMAND}",
        ) from None


def _predict_folds(
    entrant: Entrant, images: ImageSet, split: Split, seed: int, work: Path, shelf: Path
) -> tuple[Predictions, nn.Module | PixelClassifier | None]:
    """Test predictions of every fold, and what was trained in the last one."""
    if entrant.kind == "majority":
        return floors.majority_class(images, split), None
    if entrant.kind == "shape":
        return floors.features_floor(
            floors.shape_features(images.pixels[:, 0]), images, split, entrant.name, "svm"
        ), None
    shown = entrant.shown(images)
    values = embeddings(entrant, images, shelf) if entrant.kind == "vit" else entrant.values(images)
    networks = []
    votes = []

    def predict(fold: Fold) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        fold_seed = derive_seed(seed, entrant.slug, fold.repeat, fold.fold)
        if entrant.kind == "network":
            probabilities, network = _train_network(entrant, shown, images, fold, fold_seed, work)
        else:
            fitted = np.setdiff1d(fold.fitted, fold.test)
            probabilities, network = _fit(entrant, values, images, fitted, fold.test, fold_seed)
        if entrant.kind == "svm":
            votes.append(network.predict(values[fold.test]))
        networks[:] = [network]
        return {"test": (fold.test, probabilities)}

    found = predict_folds(predict, images, split, model=entrant.name)
    if votes:  # the SVM by its votes, as published
        names = np.asarray(images.classes, object)[np.concatenate(votes)]
        found = Predictions(found.table.assign(predicted=names), found.classes)
    return found, networks[0]


def _train_network(
    entrant: Entrant, shown: ImageSet, images: ImageSet, fold: Fold, seed: int, work: Path
) -> tuple[np.ndarray, nn.Module]:
    """Trained on all that is not tested, to the last epoch; as published, where the validation
    images are the test ones, on the training part, to the epoch that does best on them."""
    train_rows = fold.train
    validation_rows = fold.validation
    recipe = entrant.recipe
    as_published = np.isin(validation_rows, fold.test).any()
    if not as_published:
        train_rows = np.concatenate([train_rows, validation_rows])
        validation_rows = validation_rows[:0]
        recipe = recipe.but(keep="last", early_stopping_patience=0)
    trained = train(
        entrant.make_network,
        shown,
        (images.ids[train_rows], images.ids[validation_rows]),
        recipe,
        transform=entrant.transform,
        seed=seed,
        work_folder=work / f"repeat{fold.repeat}-fold{fold.fold}",
    )
    probabilities = predict_probabilities(
        trained.network,
        shown.pixels,
        entrant.transform,
        rows=shown.positions(images.ids[fold.test]),
        test_time_augmentation=recipe.test_time_augmentation,
        precision=recipe.precision,
    )
    return probabilities, trained.network


def _fit(
    entrant: Entrant,
    values: np.ndarray,
    images: ImageSet,
    fitted: np.ndarray,
    tested: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, nn.Module | PixelClassifier]:
    labels = images.labels[fitted]
    if (
        entrant.kind == "vit"
    ):  # the published head: Adam 1e-4, batch 32, 100 epochs, here on standardised features
        fit = fit_neural_head(
            values[fitted],
            labels,
            kind="linear",
            classes=len(images.classes),
            epochs=100,
            seed=seed,
        )
        return fit.probabilities(values[tested]), _as_plain_layer(fit)
    absent = [name for number, name in enumerate(images.classes) if number not in labels]
    if absent:  # its probabilities would have too few columns
        raise InputError(
            entrant.name,
            f"in one fold there is no image of {', '.join(absent)} to fit on.",
            "Use fewer folds or more images of it.",
        )
    model = fit_pixels(entrant, values[fitted], labels, seed)
    return model.probabilities(values[tested]), model


def fit_pixels(
    entrant: Entrant, masks: np.ndarray, labels: np.ndarray, seed: int
) -> PixelClassifier:
    """The SVM or the forest on (n, y, x) masks; the forest sees five of each rare one, as
    published.
    """
    if entrant.kind == "forest":
        masks, labels = five_for_one(masks.astype(np.uint8), labels, entrant.about["rare"], seed)
    return PixelClassifier(entrant.kind, seed).fit(masks, labels)


def _as_plain_layer(fit) -> nn.Linear:
    """The head on standardised features as one linear layer on the features themselves."""
    layer = fit.head[0]
    scale, mean = (torch.from_numpy(np.asarray(one, np.float32)) for one in (fit.scale, fit.mean))
    plain = nn.Linear(layer.in_features, layer.out_features)
    with torch.no_grad():
        plain.weight.copy_(layer.weight / scale)
        plain.bias.copy_(layer.bias - plain.weight @ mean)
    plain.settings = {"in_features": layer.in_features, "out_features": layer.out_features}
    return plain


def embeddings(entrant: Entrant, images: ImageSet, shelf: str | Path) -> np.ndarray:
    """(n, 768) float32 of the frozen ViT, computed once, in bfloat16 where the processor has it,
    and kept in ``shelf``.
    """
    low = uses_bf16("auto", "cpu")

    def pieces() -> Iterator[np.ndarray]:
        network = entrant.make_network().eval()
        for start in range(0, len(images), 16):
            some = torch.from_numpy(np.array(images.pixels[start : start + 16]))
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
                found = network.features(entrant.transform.evaluate(some)).float()
            yield found.numpy()

    parts = [1, images.content_hash, entrant.about, low]
    return np.array(kept(Path(shelf) / "embeddings", parts, pieces))


def parameters_of(entrant: Entrant) -> int | None:
    """Weights and biases of a network; None for what is none."""
    if entrant.make_network is None:
        return None
    return sum(parameter.numel() for parameter in entrant.make_network().parameters())
