"""The benchmark of system A: every model trained once on the same images and folds, saved, and read
ever after.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbhelpers.core.errors import (
    CheckpointError,
    InputError,
    ParameterError,
    PredictionsError,
)
from nbhelpers.core.files import plain, sha256_of, sha256_of_file, write_json
from nbhelpers.core.folds import Fold, predict_folds
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.kept import kept
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.published_splits import published_spine_split
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split, fold_table
from nbhelpers.evaluation import floors
from nbhelpers.evaluation.shapes import shape_features
from nbhelpers.imagesets.windows import WINDOW_PX
from nbhelpers.imagesets.windows import windows as spine_windows
from nbhelpers.inference.spine_pose import Scale, in_one_pose
from nbhelpers.models.classical import RARE, PixelClassifier, five_for_one, read_as_published
from nbhelpers.models.frozen import fit_neural_head
from nbhelpers.models.spine_rivals import CNN3Layer, SpineResNet18, make_vit
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.models.weights import weights_file
from nbhelpers.studies import spines as spine_task
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import load_checkpoint, save_checkpoint
from nbhelpers.training.crossvalidation import Training
from nbhelpers.training.forward import uses_bf16
from nbhelpers.training.recipe import Augmentation, Recipe

COMMAND = "./run_all.sh 07_benchmark -p train missing"
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
# The published ones of these were trained on most of their test images.
LEAKING = (REFERENCE, "ResNet18")


@dataclass(frozen=True)
class BenchmarkModel:
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
    """What a model left: its test predictions, its weights (None for what is fitted in seconds),
    and where from.
    """

    model: BenchmarkModel
    predictions: Predictions
    checkpoint: Path | None
    source: str
    split: Split


@dataclass(frozen=True)
class VitWeights:
    """What the ViT starts from: "imagenet", a file, or "none"; then its row is marked as random
    features, drawn with ``seed``.
    """

    name: str
    data_folder: str | Path
    seed: int


def check_vit_size(px: int) -> None:
    """Refuse a size that ViT-B16 cannot cut into its squares. Raises ParameterError."""
    if px % 16:
        raise ParameterError(
            "parameter vit_px",
            f"{px} is no multiple of 16.",
            "ViT-B16 cuts images into squares of 16 px.",
        )


def _reduced(recipe: Recipe, epochs: int, px: int) -> tuple[Recipe, str]:
    """The recipe at this size, and a note on what is smaller than published."""
    mine = recipe.but(epochs=epochs, input_px=px)
    changed = []
    if mine.epochs != recipe.epochs:
        changed.append(f"{mine.epochs} epochs instead of {recipe.epochs}")
    if mine.input_px not in (0, 250):
        changed.append(f"{mine.input_px} px instead of 250")
    return mine, f"reduced: {', '.join(changed)}" if changed else ""


def _vit(count: int, px: int, weights: VitWeights) -> BenchmarkModel:
    path = weights_file("vit_b_16", weights.name, weights.data_folder)
    notes = []
    if path is None:
        notes.append(RANDOM_FEATURES)
    if px != 224:
        notes.append(f"{px} px instead of 224")
    known = sha256_of_file(path)[:16] if path else f"random, seed {weights.seed}"
    return BenchmarkModel(
        VIT,
        "vit",
        lambda: make_vit(count, weights=path or "none", seed=weights.seed),
        about={"input_px": px, "weights": known},
        note="; ".join(notes),
    )


def benchmark_models(
    classes: Sequence[str],
    *,
    epochs: Mapping[str, int],
    px: Mapping[str, int],
    ours: Recipe,
    vit: VitWeights,
) -> list[BenchmarkModel]:
    """Every model of the benchmark, the published ones first, then ours, then the floors.

    ``epochs`` has "tinycnn", "resnet18" and "cnn3"; ``px`` has these and "vit": the height and
    width that they see, 0 for the whole 250. ``ours`` is the recipe of notebook 03.
    """
    count = len(classes)
    tiny, tiny_note = _reduced(spine_task.PUBLISHED, epochs["tinycnn"], px["tinycnn"])
    resnet, resnet_note = _reduced(RESNET, epochs["resnet18"], px["resnet18"])
    cnn3, cnn3_note = _reduced(CNN3, epochs["cnn3"], px["cnn3"])
    rare = [list(classes).index(name) for name in RARE if name in classes]

    def windows(images: ImageSet) -> ImageSet:
        posed = in_one_pose(images, Scale.of(images))
        return spine_windows(posed, "grouped", ours.input_px or WINDOW_PX)

    return [
        BenchmarkModel(REFERENCE, "network", lambda: TinyCNN(3, count), tiny, note=tiny_note),
        _vit(count, px["vit"], vit),
        BenchmarkModel(
            "ResNet18", "network", lambda: SpineResNet18(3, count), resnet, note=resnet_note
        ),
        BenchmarkModel("CNN-3Layer", "network", lambda: CNN3Layer(3, count), cnn3, note=cnn3_note),
        BenchmarkModel("SVM on pixels", "svm", channels=1),
        BenchmarkModel("Random Forest on pixels", "forest", channels=1, about={"rare": rare}),
        BenchmarkModel(
            OURS,
            "network",
            lambda: TinyCNN(1, count),
            ours,
            channels=1,
            about={"window": WINDOW_PX, "pose": "upright"},
            shown=windows,
        ),
        BenchmarkModel("shape features + SVM", "shape", channels=1, note="floor"),
        BenchmarkModel("majority class", "majority", channels=1, note="floor"),
    ]


def models_table(models: Sequence[BenchmarkModel]) -> pd.DataFrame:
    """One row per model: its name, number of parameters, and the note on it."""
    rows = [
        {"model": model.name, "parameters": parameters_of(model), "note": model.note}
        for model in models
    ]
    return pd.DataFrame(rows).astype({"parameters": "Int64"})


def published_splits(images: ImageSet) -> dict[str, Split]:
    """The published test images under two kinds of training: "leaks", as TinyCNN and ResNet18 were
    trained, on most of the test images; and "others", as the rest was, on all images but these.
    """
    leaks = published_spine_split(images)
    test = leaks.ids(0, 0, "test")
    tested = np.isin(images.ids, test)
    copies = len(set(images.groups[tested]) & set(images.groups[~tested]))
    others = Split(
        fold_table(images, np.where(tested, "test", "train")),
        "published: one split, seed 42, trained on the other images",
        42,
        known_leak=(
            f"{copies} groups (dendrites, or equal masks) stand in training and test"
            if copies
            else ""
        ),
    )
    return {"leaks": leaks, "others": others}


@dataclass(frozen=True)
class Cache:
    """Where the models of the benchmark are kept, so that each is trained once.

    Without ``train_missing`` what is not kept is an error that names the command which makes it.
    ``command_of_03`` is the command that runs notebook 03 on the same images and folds.
    """

    repository: Path
    work_folder: Path
    seed: int
    train_missing: bool = True
    command_of_03: str = "./run_all.sh 03_spine_tinycnn"

    @property
    def folder(self) -> Path:
        return Path(self.repository) / "checkpoints" / "benchmark"

    def ours_or_load(self, model: BenchmarkModel, images: ImageSet, split: Split) -> Saved:
        """Of our recipe the network that notebook 03 left, where it fits; else as ``load``."""
        if model.name == OURS:
            try:
                return from_notebook_03(model, images, split, self.repository, self.command_of_03)
            except PredictionsError as error:
                print(error, "Until then it is trained here.")
        return self.load(model, images, split)

    def load_as_published(
        self,
        model: BenchmarkModel,
        images: ImageSet,
        splits: Mapping[str, Split],
        files: Mapping[str, Path],
    ) -> Saved:
        """A model under the published protocol. ``splits`` are the :func:`published_splits`;
        ``files``, id to file, are those of the public set, which the authors of the SVM read in
        their own way; empty for other sets.
        """
        if files and model.kind == "svm":
            model = replace(  # half of the masks next to black
                model,
                values=lambda images: read_as_published([files[name] for name in images.ids]),
                about=model.about | {"read": "as published"},
                note="1-bit files read as 0 and 1, others as 0 to 255",
            )
        return self.load(model, images, splits["leaks" if model.name in LEAKING else "others"])

    def load(self, model: BenchmarkModel, images: ImageSet, split: Split) -> Saved:
        """The kept predictions of a model on these images and folds; trained now, and kept, where
        there are none.

        Raises PredictionsError when nothing is kept and nothing may be trained, when a file was
        changed since, or when it is of other images or folds; each names the command that fixes it.
        """
        folder = self.folder / f"{model.slug}-{model.key(images, split, self.seed)[:12]}"
        weights = folder / "network.safetensors"
        checkpoint = weights if model.kind in ("network", "vit") else None
        if (folder / "about.json").is_file():
            predictions = _kept_predictions(folder)
            check_same(predictions, images, split, folder / "predictions.csv", COMMAND)
            source = f"{model.name}: read from {folder.name}"
            return Saved(model, predictions, checkpoint, source, split)
        if not self.train_missing:
            raise PredictionsError(
                f"{model.name}, {split.protocol}",
                "there are no saved predictions for these images and folds.",
                f"Make them once: {COMMAND}",
            )
        print(
            f"{model.name}: nothing is saved for these images and folds, so it is trained now, "
            f"once ({len(split.folds())} folds)"
        )
        work = Path(self.work_folder) / folder.name
        found, network = _predict_folds(model, images, split, self.seed, work, self.folder)
        predictions = found.assign(model=model.name, run="07_benchmark")
        predictions.save(folder / "predictions.csv")
        about = _about(model, images, split)
        if checkpoint is not None:
            save_checkpoint(weights, network, classes=images.classes, about=about)
        write_json(
            folder / "about.json",
            {
                **about,
                "split": split.hash,
                "seed": self.seed,
                "predictions": sha256_of_file(folder / "predictions.csv"),
            },
        )
        return Saved(model, predictions, checkpoint, f"{model.name}: saved in {folder.name}", split)


def _kept_predictions(folder: Path) -> Predictions:
    """What a cache folder holds, if it is what was put there."""
    path = folder / "predictions.csv"
    again = f"Delete the folder {folder.name} and make them again: {COMMAND}"
    try:
        digest = json.loads((folder / "about.json").read_text(encoding="utf-8"))["predictions"]
    except (OSError, ValueError, KeyError, TypeError):
        raise PredictionsError(
            folder / "about.json",
            "it cannot be read, and vouches for the predictions there.",
            again,
        ) from None
    if not path.is_file() or sha256_of_file(path) != digest:
        raise PredictionsError(
            path, "the saved predictions are missing or were changed after they were made.", again
        )
    return Predictions.load(path)


def _about(model: BenchmarkModel, images: ImageSet, split: Split) -> dict:
    """What the files of a model say about it."""
    last_fold = "the last fold, so it has not seen that fold's test images"
    return {
        "data": images.source,
        "content_hash": images.content_hash,
        "synthetic": images.synthetic,
        "protocol": split.protocol,
        "known_leak": split.known_leak,
        "model": model.name,
        "note": model.note,
        "window": "window" in model.about,
        "scale": asdict(Scale.of(images)) if "pose" in model.about else None,
        "recipe": model.recipe.as_dict() if model.recipe else model.about,
        "of": "this split" if split.known_leak else last_fold,
    }


def check_same(
    predictions: Predictions, images: ImageSet, split: Split, where: object, command: str
) -> None:
    """Refuse test predictions of other images, labels or folds than these. Raises
    PredictionsError."""
    table = predictions.table
    label = dict(zip(images.ids, images.table["label"], strict=True))
    tested = split.table[split.table["part"] == "test"]
    wanted = set(tested[["id", "repeat", "fold"]].itertuples(index=False, name=None))
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


# What notebook 03 calls the parameters of this notebook.
OF_NOTEBOOK_03 = {
    **{name: name for name in ("data", "data_dir", "phantoms", "folds", "repeats", "seed")},
    "ours_epochs": "epochs",
    "ours_px": "input_px",
    "ours_batch_size": "batch_size",
    "ours_recipe": "recipe",
}


def command_of_notebook_03(parameters: Mapping[str, object]) -> str:
    """The command that runs notebook 03 with the parameters of this notebook, ready to paste; empty
    ones are left out.
    """
    words = ["./run_all.sh 03_spine_tinycnn"]
    for name, theirs in OF_NOTEBOOK_03.items():
        if parameters.get(name, "") != "":
            words.append(f"-p {theirs} {shlex.quote(str(parameters[name]))}")
    return " ".join(words)


def from_notebook_03(
    model: BenchmarkModel, images: ImageSet, split: Split, repository: str | Path, command: str
) -> Saved:
    """Our TinyCNN as notebook 03 left it, where that run used the very same images, folds, recipe
    and channels.

    Raises PredictionsError that says what differs, and which ``command`` makes the right one.
    """
    name = "results/03_spine_tinycnn"
    folder = Path(repository) / name
    command = f"Run {command}"
    if not (folder / "predictions.csv").is_file():
        raise PredictionsError(name, "notebook 03 has not been run.", command)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        hashes = {
            "images": [one["content_hash"] for one in manifest["data"]],
            "folds": [one["hash"] for one in manifest["splits"]],
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise PredictionsError(f"{name}/manifest.json", "it cannot be read.", command) from None
    for what, mine in (("images", images.content_hash), ("folds", split.hash)):
        if mine not in hashes[what]:
            raise PredictionsError(name, f"that run used other {what}.", command)
    found = Predictions.load(folder / "predictions.csv").where(model="TinyCNN", split="test")
    check_same(found, images, split, f"{name}/predictions.csv", command)
    weights = folder / "tinycnn_spines.safetensors"
    try:
        card = load_checkpoint(weights, TinyCNN)[1]
        used = {**card["about"]["recipe"], "channels": card["settings"]["in_channels"]}
        used["pose"] = "upright" if card["about"].get("scale") else "as_is"
    except (CheckpointError, KeyError, TypeError) as error:
        why = getattr(error, "what", "their card has no recipe")
        raise PredictionsError(
            f"{name}/{weights.name}", f"the weights cannot be read ({why}).", command
        ) from None
    wanted = plain(model.recipe.as_dict() | {"channels": model.channels, "pose": "upright"})
    differ = [key for key, value in wanted.items() if used.get(key) != value]
    # Its scores would stand beside the time of another network, and the export would see other
    # images.
    if differ:
        raise PredictionsError(
            name, f"that run used another recipe ({', '.join(differ)}).", command
        )
    return Saved(
        model, found.assign(model=model.name), weights, f"{model.name}: read from {name}", split
    )


def ours_of(saved: Sequence[Saved]) -> Saved:
    """The model that the benchmark is about: TinyCNN by our recipe."""
    return next(one for one in saved if one.model.name == OURS)


def network_of(saved: Saved) -> nn.Module:
    """The network of an model with its saved weights, in evaluation mode. Raises CheckpointError
    that names the command.
    """
    if saved.checkpoint is None:
        raise InputError(
            saved.model.name,
            "it is no network.",
            "It is fitted again where its time is measured.",
        )
    if not saved.checkpoint.is_file():
        raise CheckpointError(
            saved.checkpoint,
            f"the weights of {saved.model.name} are gone.",
            f"Delete the folder {saved.checkpoint.parent.name} and make them again: {COMMAND}",
        )
    network = saved.model.make_network()
    try:
        if saved.model.kind != "vit":
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
    model: BenchmarkModel, images: ImageSet, split: Split, seed: int, work: Path, cache_folder: Path
) -> tuple[Predictions, nn.Module | PixelClassifier | None]:
    """Test predictions of every fold, and what was trained in the last one."""
    if model.kind == "majority":
        return floors.majority_class(images, split), None
    if model.kind == "shape":
        return floors.features_floor(
            shape_features(images.pixels[:, 0]), images, split, model.name, "svm"
        ), None
    shown = model.shown(images)
    values = (
        embeddings(model, images, cache_folder) if model.kind == "vit" else model.values(images)
    )
    networks = []
    votes = []

    def predict(fold: Fold) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        fold_seed = derive_seed(seed, model.slug, fold.repeat, fold.fold)
        if model.kind == "network":
            probabilities, network = _train_network(model, shown, fold, fold_seed, work)
        else:
            fitted = np.setdiff1d(fold.fitted, fold.test)
            probabilities, network = _fit(model, values, images, fitted, fold.test, fold_seed)
        if model.kind == "svm":
            votes.append(network.predict(values[fold.test]))
        networks[:] = [network]
        return {"test": (fold.test, probabilities)}

    found = predict_folds(predict, images, split, model=model.name)
    if votes:  # the SVM by its votes, as published
        names = np.asarray(images.classes, object)[np.concatenate(votes)]
        found = found.assign(predicted=names)
    return found, networks[0]


def _train_network(
    model: BenchmarkModel, shown: ImageSet, fold: Fold, seed: int, work: Path
) -> tuple[np.ndarray, nn.Module]:
    """Trained on all that is not tested, to the last epoch; as published, where the validation
    images are the test ones, on the training part, to the epoch that does best on them."""
    recipe = model.recipe
    training = Training(model.make_network, [recipe], lambda _: model.transform, seed, work)
    name = f"repeat{fold.repeat}-fold{fold.fold}"
    if np.isin(fold.validation, fold.test).any():
        trained = training.once(shown, fold.train, fold.validation, recipe, seed, name)
    else:
        trained = training.to_the_end(shown, fold, recipe, seed, name)
    return training.predicted(trained, shown, fold.test), trained.network


def _fit(
    model: BenchmarkModel,
    values: np.ndarray,
    images: ImageSet,
    fitted: np.ndarray,
    tested: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, nn.Module | PixelClassifier]:
    labels = images.labels[fitted]
    if model.kind == "vit":
        # The published head: Adam 1e-4, batch 32, 100 epochs; here on standardised features.
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
            model.name,
            f"in one fold there is no image of {', '.join(absent)} to fit on.",
            "Use fewer folds or more images of it.",
        )
    classifier = fit_pixels(model, values[fitted], labels, seed)
    return classifier.probabilities(values[tested]), classifier


def fit_pixels(
    model: BenchmarkModel, masks: np.ndarray, labels: np.ndarray, seed: int
) -> PixelClassifier:
    """The SVM or the forest on (n, y, x) masks; the forest sees five of each rare one, as
    published.
    """
    if model.kind == "forest":
        masks, labels = five_for_one(masks.astype(np.uint8), labels, model.about["rare"], seed)
    return PixelClassifier(model.kind, seed).fit(masks, labels)


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


def embeddings(model: BenchmarkModel, images: ImageSet, cache_folder: str | Path) -> np.ndarray:
    """(n, 768) float32 of the frozen ViT, computed once, in bfloat16 where the processor has it,
    and kept in ``cache_folder``.
    """
    low = uses_bf16("auto", "cpu")

    def pieces() -> Iterator[np.ndarray]:
        network = model.make_network().eval()
        for start in range(0, len(images), 16):
            some = torch.from_numpy(np.array(images.pixels[start : start + 16]))
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
                found = network.features(model.transform.evaluate(some)).float()
            yield found.numpy()

    parts = [1, images.content_hash, model.about, low]
    return np.array(kept(Path(cache_folder) / "embeddings", parts, pieces))


def parameters_of(model: BenchmarkModel) -> int | None:
    """Weights and biases of a network; None for what is none."""
    if model.make_network is None:
        return None
    return sum(parameter.numel() for parameter in model.make_network().parameters())
