"""Four-stain plates (system C): recipes, training in stages, floors, and what the wells say about
the compounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from nbhelpers.core.errors import ParameterError, check_choice, nearest
from nbhelpers.core.files import write_csv
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import PROBABILITY_PREFIX, Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split
from nbhelpers.evaluation import floors
from nbhelpers.evaluation import plates as by_plate
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.paired import compare
from nbhelpers.evaluation.plate_floors import position_floors, stain_features
from nbhelpers.evaluation.random_weights import random_weights_floor
from nbhelpers.figures import plates as plate_figures
from nbhelpers.figures.saliency import maps_per_encoder
from nbhelpers.figures.scores import scores_with_floors
from nbhelpers.imagesets.plates import (
    leave_one_plate_out,
    load_plates,
    normalise_to_controls,
    parts_of_plates,
    split_by_plate,
)
from nbhelpers.inference.new_images import evaluation_table, flags, warned
from nbhelpers.inference.reference import reference_tensors
from nbhelpers.models.four_stain import (
    StainNetwork,
    continued,
    encoder_parts,
    make_stain_network,
)
from nbhelpers.saliency.maps import grad_cam_of_layers
from nbhelpers.training.augment import DihedralPreparation, Transform, random_tones
from nbhelpers.training.crossvalidation import CrossValidated, Training
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Augmentation, Recipe
from nbhelpers.training.trainer import Trained

if TYPE_CHECKING:
    from nbhelpers.reports.run import NotebookRun

FIRST_STAGE = "first stage"
LATER_RATE = 0.1  # of the first stage's learning rate, when all layers are trained on; as published
MOST_ROWS = 60  # of a table
TARGET = 1  # the class that speaks for amyloid-beta; of "bbbc021" the compound

# As published: head and layer4 for 5 epochs at 1e-3, then all layers for 10 epochs at 1e-4, batches
# of 2, no augmentation, the epoch with the lowest validation loss.
PUBLISHED = Recipe(
    name="published",
    epochs=10,
    batch_size=2,
    optimizer="sgd",
    learning_rate=1e-3,
    schedule="constant",
    keep="best",
    select_by="loss",
)
# flips and quarter turns, as a field of a well has no upright; tones per stain, as each is stained
# and lit for itself
OURS = Recipe(
    name="ours",
    epochs=12,
    batch_size=16,
    learning_rate=2e-3,
    weight_decay=0.02,
    warmup_fraction=0.1,
    label_smoothing=0.02,
    clip_gradient=1.0,
    keep="best",
    select_by="loss",
    augmentation=Augmentation(
        flip_horizontal=True, flip_vertical=True, quarter_turns=True, brightness=0.15, gamma=0.1
    ),
)
RECIPES = {"published": PUBLISHED, "ours": OURS}
CONTROLS_SHOWN = (
    "plate",
    "n_negative",
    "n_positive",
    "z_prime",
    "verdict",
    "ssmd",
    "ssmd_verdict",
    "note",
)
# columns of the tables, in words
TITLES = {
    "dose_uM": "dose (µM)",
    "amyloid_uM": "amyloid-beta (µM)",
    "n_wells": "wells",
    "n_fields": "fields",
    "low_confidence": "low confidence",
    "out_of_distribution": "out of distribution",
    "n_negative": "negative controls",
    "n_positive": "positive controls",
    "z_prime": "Z'",
    "verdict": "by Z'",
    "ssmd": "SSMD",
    "ssmd_verdict": "by SSMD",
    "damage": "normalised effect",
    "ec50_uM": "EC50 (µM)",
    "kind": "injected",
    "injected_uM": "injected EC50 (µM)",
}


def recipe(protocol: str = "ours", **changes) -> Recipe:
    """The recipe "published" or "ours", with changes. Raises ParameterError for unknown names and
    fields.
    """
    check_choice("parameter protocol", protocol, RECIPES)
    return RECIPES[protocol].but(**changes)


class StainPreparation(DihedralPreparation):
    """Moves all stains of a field together, and changes the tones of each stain for itself.

    So what lies on what stays true, and a network cannot rely on how bright one stain is beside
    another.
    """

    def __init__(self, augmentation: Augmentation, input_px: int = 0):
        still = {name: 0.0 for name in ("blur_px", "brightness", "contrast", "gamma", "noise")}
        super().__init__(Augmentation(**(vars(augmentation) | still)), input_px)
        self.tones = augmentation

    def train(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        images = super().train(pixels, seed)
        if not self.tones.changes_tones:
            return images
        generator = torch.Generator().manual_seed(derive_seed(seed, "tones"))
        return random_tones(images.flatten(0, 1)[:, None], self.tones, generator).view_as(images)


def transform(recipe: Recipe) -> StainPreparation:
    """What turns stored fields into the network's input."""
    return StainPreparation(recipe.augmentation, recipe.input_px)


# splits and training


def chosen_plates(images: ImageSet, test_plates: int | str) -> int | list[str]:
    """How many plates, or which: a whole number up to the number of plates is how many, else the
    text holds their names between commas ("3," is the plate 3). Raises ParameterError for what is
    no plate.
    """
    known = set(images.table["plate"])
    text = str(test_plates).strip()
    if text.isdecimal() and 0 < int(text) <= len(known):
        return int(text)
    # a name may hold a comma itself
    longest = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    names = re.findall(rf"({longest}|[^,\s][^,]*?)\s*(?:,|$)", text)
    for name in names or [text]:
        if name not in known:
            raise ParameterError(
                "parameter test_plates",
                f"{name!r} is no plate, and no number from 1 to {len(known)}.",
                nearest(name, known),
            )
    return list(dict.fromkeys(names))


def make_split(data: str, images: ImageSet, *, test_plates: int | str, seed: int) -> Split:
    """Whole plates: of "bbbc021" each (or each that is named) is left out in turn; else one
    hold-out, of "phantom" with the last plates for test, which hold every compound where there are
    as many of them, so that every kind of compound is judged unseen.

    ``test_plates`` is read by :func:`chosen_plates`. Errors are its own and those of
    :func:`nbhelpers.imagesets.plates.split_by_plate`.
    """
    test = chosen_plates(images, test_plates)
    count = isinstance(test, int)
    if data == "bbbc021":
        if count:
            print(
                "Of bbbc021 each plate is left out in turn: how many test_plates says is not used."
            )
        return leave_one_plate_out(images, test=() if count else test, seed=seed)
    if count and data == "phantom":
        test = sorted(images.table["plate"].unique())[-test:]
    return split_by_plate(images, test=test, seed=seed)


@dataclass(frozen=True)
class NetworkChoice:
    """Which network: where its stains meet (``fusion``), the encoder, what that starts from, and
    the ``stain`` that "one-stain" sees.

    With ``alone_first`` an "s4" starts from the encoders of networks that were trained on one stain
    each, as published.
    """

    fusion: str
    encoder: str = "resnet34"
    weights: str | Path = "none"
    stain: int = 0
    alone_first: bool = True
    data_folder: str | Path = "data"

    def make(self, images: ImageSet, **settings) -> StainNetwork:
        """The network for these images; ``settings`` are more of ``make_stain_network``."""
        return make_stain_network(
            self.fusion,
            len(images.channels),
            len(images.classes),
            encoder=self.encoder,
            weights=self.weights,
            data_folder=self.data_folder,
            stain=self.stain,
            **settings,
        )

    def name(self, images: ImageSet) -> str:
        """How it is called in tables and figures."""
        return model_name(self.fusion, self.encoder, images.channels[self.stain])


def model_name(fusion: str, encoder: str, stain: str = "") -> str:
    """How a network is called in tables and figures, e.g. "S4-ResNet34", "PSD-95 alone"."""
    network = {"small": "small ResNet"}.get(encoder, encoder.replace("resnet", "ResNet"))
    return {
        "s4": f"S4-{network}",
        "early": f"early fusion, {network}",
        "one-stain": f"{stain} alone",
        "sum": f"sum of the stains, {network}",
        "weighted": f"weighted stains, {network}",
    }[fusion]


@dataclass(frozen=True)
class TrainedStains:
    """``result`` of the network asked for; ``one_stain`` of "s4": of the networks that its encoders
    come from.
    """

    result: CrossValidated
    one_stain: dict[str, CrossValidated]


def train_network(
    choice: NetworkChoice,
    images: ImageSet,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    work_folder: str | Path,
    report: Callable[[str], None] | None = print,
) -> TrainedStains:
    """Train a StainNetwork on every fold of a split and predict its validation and test fields.

    Whatever starts from trained encoders is trained in two stages: last stage and head, for half
    the epochs, then everything at a tenth of the rate, as published; a random start has one stage.
    Each stage is kept in ``work_folder`` and goes on where it was killed.
    """
    chosen = []
    alone = {}
    for repeat, fold in split.folds():
        part = split.only(repeat, fold)
        validation = images.labels[images.positions(part.ids(repeat, fold, "validation"))]
        # a validation plate that lacks a class cannot choose the epoch
        chooses = len(set(validation)) == len(images.classes)
        training = Training(
            lambda: choice.make(images),
            [recipe if chooses else recipe.but(keep="last")],
            transform,
            seed=seed,
            work_folder=work_folder,
            report=report,
        )
        sources = []
        if choice.fusion == "s4" and choice.alone_first:
            for number, name in enumerate(images.channels):
                single = replace(choice, fusion="one-stain", stain=number)
                found = _in_stages(single, training, images, part)
                alone.setdefault(name, []).append(found)
                sources.append(found.last.network.cpu())
        chosen.append(_in_stages(choice, training, images, part, sources))
    one_stain = {name: _joined(parts) for name, parts in alone.items()}
    return TrainedStains(_joined(chosen), one_stain)


def _in_stages(
    choice: NetworkChoice,
    training: Training,
    images: ImageSet,
    fold: Split,
    sources: Sequence[StainNetwork] = (),
) -> CrossValidated:
    """One fold: everything at once from a random start, else in two stages."""

    def make(trained: str = "everything") -> StainNetwork:
        return choice.make(images, encoders_from=sources, trained=trained)

    training = training.but(
        make_network=make,
        work_folder=Path(training.work_folder) / choice.fusion / str(choice.stain),
        model=choice.name(images),
    )
    if not sources and str(choice.weights) == "none":
        return training.cross_validate(images, fold)
    (recipe,) = training.recipes
    first = recipe.but(name=FIRST_STAGE, epochs=max(1, recipe.epochs // 2))
    stage = training.but(make_network=lambda: make("last stage"), recipes=[first], report=None)
    started = stage.cross_validate(images, fold)
    later = recipe.but(learning_rate=recipe.learning_rate * LATER_RATE)
    stage = training.but(
        make_network=lambda: continued(started.last.network.cpu()), recipes=[later]
    )
    result = stage.cross_validate(images, fold)
    return replace(
        result,
        histories=pd.concat([started.histories, result.histories], ignore_index=True),
        choices=pd.concat(
            [started.choices.assign(chosen=False), result.choices], ignore_index=True
        ),
    )


def _joined(parts: Sequence[CrossValidated]) -> CrossValidated:
    return CrossValidated(
        Predictions.concatenate([part.predictions for part in parts]),
        pd.concat([part.histories for part in parts], ignore_index=True),
        pd.concat([part.choices for part in parts], ignore_index=True),
        parts[-1].last,
    )


def tested_by_well(predictions: Predictions, images: ImageSet) -> Predictions:
    """The test rows, grouped by well: fields of one well resemble each other."""
    return by_plate.group_by_well(predictions.where(split="test"), images)


def floor_predictions(
    choice: NetworkChoice, images: ImageSet, split: Split, *, seed: int
) -> list[Predictions]:
    """Floors on the same test fields: the commonest class; how bright each stain is, and the other
    photometric floors; the features of the same network with random weights; where the well lies;
    the dark background. All but the first under a logistic regression.
    """
    labelled = images.take(np.flatnonzero(images.labels >= 0))
    untrained = replace(choice, weights="none")
    look = Transform(Augmentation())
    return [
        floors.majority_class(labelled, split),
        _stain_floor(labelled, split),
        *floors.photometric_floors(labelled, split),
        random_weights_floor(lambda: untrained.make(images), look, labelled, split, seed=seed),
        *position_floors(images, split),
    ]


def _stain_floor(images: ImageSet, split: Split) -> Predictions:
    features = stain_features(images.pixels, images.channels)
    return floors.features_floor(features, images, split, "stain intensity")


# what S4 cannot see


def colocalisation_experiment(
    encoder: str,
    *,
    plates: int,
    fields: int,
    epochs: int,
    seed: int,
    data_folder: str | Path,
    work_folder: str | Path,
) -> list[Predictions]:
    """S4, early fusion and the floor of the stains' brightness on phantoms where damage only tears
    pairs of puncta apart.

    Both networks start from random weights and see the same fields as often. Test parts, grouped by
    well. S4 combines the stains after it averaged each over the field, and should stay at chance.
    """
    images = load_plates(
        "phantom",
        data_folder=data_folder,
        layout="randomised",
        size_px=64,
        seed=derive_seed(seed, "colocalisation"),
        phantom={"plates": plates, "fields": fields, "effect": "colocalisation"},
    )
    images = normalise_to_controls(images, cache_folder=Path(data_folder) / "packed")
    images = images.take(np.flatnonzero(images.labels >= 0))
    split = make_split("phantom", images, test_plates=3, seed=seed)
    found = []
    for fusion in ("s4", "early"):
        trained = train_network(
            NetworkChoice(fusion, encoder, alone_first=False),
            images,
            split,
            recipe("ours", epochs=epochs),
            seed=seed,
            work_folder=Path(work_folder) / fusion,
        )
        found.append(trained.result.predictions)
    found.append(_stain_floor(images, split))
    return [tested_by_well(one, images) for one in found]


def show_colocalisation(run: NotebookRun, predicted: Sequence[Predictions]) -> None:
    """Show and record what :func:`colocalisation_experiment` found."""
    found = {}
    rows = []
    for one in predicted:
        name = one.table["model"].iloc[0]
        found[name] = evaluate(one)
        kind = "floor" if name == "stain intensity" else "model"
        rows.append((name, kind, found[name]["balanced_accuracy"]))
    run.record["colocalisation"] = found
    run.show_figure(
        scores_with_floors(rows, score="Balanced accuracy"),
        "colocalisation",
        caption="Synthetic plates on which damage only tears pairs of puncta apart; "
        f"{len(predicted[0])} test fields, 95 % intervals by well.",
        alt="A dot with an interval for early fusion, S4 and the floor.",
    )
    print(colocalisation_sentence(predicted))


def colocalisation_sentence(predictions: Sequence[Predictions]) -> str:
    """What the predictions of :func:`colocalisation_experiment` say in words: early fusion less
    S4.
    """
    s4, early = predictions[:2]
    difference = compare(early, s4)["balanced_accuracy"]
    beyond = "beyond" if difference.above_zero else "not beyond"
    return (
        "Balanced accuracy where damage only tears pairs apart, early fusion less S4: "
        f"{difference.text(2, '+')}, {beyond} chance."
    )


# from fields to wells, and from wells to compounds


def field_log_odds(trained: Trained, images: ImageSet) -> np.ndarray:
    """(n,) float64 log-odds of the second class for all fields, labelled or not, batch by batch
    from the memory map. Raises ParameterError unless there are two classes.
    """
    if len(images.classes) != 2:
        raise ParameterError(
            "parameter images", f"there are {len(images.classes)} classes.", "Log-odds need two."
        )
    found = predict_probabilities(
        trained.network,
        images.pixels,
        transform(trained.recipe),
        test_time_augmentation=trained.recipe.test_time_augmentation,
        precision="fp32",
        channels_last=False,
        batch_size=64,
    )
    # both classes: 1 - p would lose the sure ones
    logarithms = np.log(np.maximum(found, np.finfo(np.float64).tiny))
    return logarithms[:, 1] - logarithms[:, 0]


def judge_wells(
    run: NotebookRun, images: ImageSet, split: Split, result: CrossValidated
) -> pd.DataFrame:
    """Judge all fields, write ``all_fields.csv`` and ``all_wells.csv``, say how the plates were
    used, and return one row per well of the test plates, as
    :func:`nbhelpers.evaluation.plates.well_scores` gives it.
    """
    # the network that was tested last judges all wells; the parts tell which plates it knew
    fields = by_plate.field_scores(images, field_log_odds(result.last, images))
    fields = fields.assign(part=parts_of_plates(images, split))
    if len(split.folds()) > 1:  # each test plate by the network that did not see it
        tested = by_plate.field_scores(images, result.predictions.where(split="test"))
        others = fields[~fields["id"].isin(tested["id"])]
        fields = pd.concat([tested.assign(part="test"), others], ignore_index=True)
    kept = fields.drop(columns=["seed"], errors="ignore")
    write_csv(run.folder / "all_fields.csv", kept)
    wells = by_plate.well_scores(fields)
    write_csv(run.folder / "all_wells.csv", wells)
    print(plates_sentence(wells, images))
    unseen = fields[fields["part"] == "test"]
    share, sentence = by_plate.saturation(unseen)
    run.record["saturation"] = share
    print(sentence)
    return by_plate.well_scores(unseen)


def plates_sentence(wells: pd.DataFrame, images: ImageSet) -> str:
    """How the plates of ``all_wells.csv`` were used, and which lack a class or a control."""
    used = wells.groupby("plate")["part"].agg(lambda parts: " and ".join(sorted(set(parts))))
    said = [
        f"all_wells.csv: {len(wells)} wells of {len(used)} plates, "
        + "; ".join(f"{part}: {', '.join(used.index[used == part])}" for part in sorted(set(used)))
        + ". The network knows the plates it was trained on and validated with; what it says of "
        "them is no test."
    ]
    classes = images.table.groupby("plate")["label"].nunique()
    few = classes.index[classes < len(images.classes)]
    if len(few):
        said.append(f"Without fields of every class, so never tested on: {', '.join(few)}.")
    lacking = wells.loc[wells["controls"] != "both", ["plate", "controls"]].drop_duplicates()
    if len(lacking):
        each = ", ".join(f"{row.plate} ({row.controls})" for row in lacking.itertuples())
        said.append(f"Without both controls, so without normalised effect: {each}.")
    return " ".join(said)


def _show_table(
    run: NotebookRun, key: str, table: pd.DataFrame, columns: Sequence[str], caption: str
) -> None:
    """Record a table, and show some of its columns in words."""
    run.record[key] = table.to_dict("records")
    shown = {name: TITLES.get(name, name) for name in columns}
    run.show_table(by_plate.in_words(table.head(MOST_ROWS), shown), caption)


def show_controls(run: NotebookRun, wells: pd.DataFrame) -> None:
    """Show and record how far apart the control wells of each plate are."""
    _show_table(
        run,
        "controls",
        by_plate.control_quality(wells),
        list(CONTROLS_SHOWN),
        "How far apart the control wells are on each test plate, with 95 % intervals",
    )


def _value_of(wells: pd.DataFrame) -> str:
    """The column to draw: the normalised effect, unless no plate has both controls to set it."""
    return "damage" if wells["damage"].notna().any() else "probability"


def show_conditions(run: NotebookRun, wells: pd.DataFrame, target: str) -> None:
    """Show and record what wells of one compound and dose have in common: as a table, as plates as
    they lie on the bench, and dose against dose. ``target`` is the class of the probability.
    """
    conditions = by_plate.condition_scores(wells)
    _show_table(
        run,
        "conditions",
        conditions,
        ["compound", "dose_uM", "amyloid_uM", "n_wells", "probability", "damage", "note"],
        f"Each condition with 95 % intervals, wells resampled; the probability is that of {target}"
        "; normalised effect: 0 as negative controls, 1 as positive controls",
    )
    value = _value_of(wells)
    run.show_figure(
        plate_figures.plate_map(wells, value, of=target),
        "plates",
        thumbnail=True,
        caption="Every well of the first test plates. Framed wells got amyloid-beta; the number "
        "below is the dose of the compound in µM.",
        alt="Plates drawn as grids of wells, coloured from no effect to the full one.",
    )
    run.show_figure(
        plate_figures.condition_map(conditions, value, of=target),
        "conditions",
        caption="Dose of each compound against amyloid-beta, mean of the wells with 95 % interval.",
        alt="For each compound a grid of doses, coloured from no effect to the full one.",
    )


def show_hits(run: NotebookRun, wells: pd.DataFrame, images: ImageSet) -> None:
    """Show and record which compounds protect or are toxic, with their dose-response curves; beside
    what was injected, where the plates are synthetic. Where no plate has both controls, only what
    the dose alone does to the probability.
    """
    doses = by_plate.condition_scores(wells, by=["dose_uM"])
    if _value_of(wells) == "probability":
        run.record |= {"hits": [], "dose_response": {}}
        _show_table(
            run,
            "doses",
            doses,
            ["dose_uM", "n_wells", "probability", "note"],
            f"No plate has both controls. The probability of {images.classes[TARGET]} by dose "
            "alone, wells resampled",
        )
        return
    hits = by_plate.call_hits(wells)
    curves = by_plate.dose_responses(wells)
    run.record |= {"doses": doses.to_dict("records"), "dose_response": curves}
    print("\n".join(by_plate.hit_sentences(hits)))
    run.show_figure(
        plate_figures.dose_response(wells, curves, hits),
        "dose_response",
        caption="Normalised effect against the dose of each compound: wells, means with 95 % "
        "intervals, and the curve where there is one.",
        alt="One panel per compound with the effect rising, falling or staying with the dose.",
    )
    columns = ["compound", "call", "protection", "toxicity", "ec50_uM", "note"]
    if images.synthetic:
        truth = images.table.drop_duplicates("compound")[["compound", "kind", "ec50_uM"]]
        truth = truth.rename(columns={"ec50_uM": "injected_uM"})
        hits = hits.merge(truth, on="compound", how="left")
        columns += ["kind", "injected_uM"]
    _show_table(run, "hits", hits, columns, "What each compound was called")


def training_reference(
    images: ImageSet, split: Split, result: CrossValidated
) -> dict[str, torch.Tensor] | None:
    """What a checkpoint keeps, beside the weights of the last network, of the fields that it was
    trained on; see :func:`nbhelpers.inference.reference.reference_tensors`."""
    last = result.last
    known = split.ids(*split.folds()[-1], "train")
    return reference_tensors(last.network, images, known, transform(last.recipe))


# new plates


def write_example_plate(path: str | Path, data_folder: str | Path, size_px: int, seed: int) -> Path:
    """Write the files of a fresh phantom plate, the last one cut short, and the LoadData table that
    names them and what the wells hold; returns the table's path.
    """
    from tifffile import imwrite

    drawn = load_plates(
        "phantom",
        data_folder=data_folder,
        layout="randomised",
        size_px=size_px,
        seed=derive_seed(seed, "new"),
        phantom={"plates": 1, "fields": 1},
    )
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    table = drawn.table[["plate", "well", "field", *by_plate.CONDITION]].add_prefix("Metadata_")
    for at, stain in enumerate(drawn.channels):
        table[f"FileName_{stain}"] = [f"{row.Index}_{stain}.tif" for row in table.itertuples()]
        for name, field in zip(table[f"FileName_{stain}"], drawn.pixels, strict=True):
            imwrite(path / name, field[at])
    (path / name).write_bytes((path / name).read_bytes()[:200])
    table.to_csv(path / "load_data.csv", index=False)
    return path / "load_data.csv"


def predict_new(
    checkpoint: str | Path, trained: Trained, new: ImageSet | None, *, confidence: float
) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """The table of ``evaluation.csv`` for the fields of new plates, see ``evaluation_table`` for
    its columns, and one row per well: what
    :func:`nbhelpers.evaluation.plates.well_scores` has of it but for log-odds, with the predicted
    class, the probabilities that belong to the mean log-odds of its fields, the mean of their
    probabilities, and the flags of the first table. None where there are no ``new`` plates.

    A well is out of distribution where most of its fields are.
    """
    if new is None:
        return None, None
    fields = by_plate.field_scores(new, field_log_odds(trained, new))
    unlike, rate = flags(checkpoint, trained.network, new, transform(trained.recipe))
    share = fields["probability"].to_numpy()
    table = evaluation_table(
        new.ids,
        np.column_stack([1 - share, share]),
        new.classes,
        unlike,
        rate=rate,
        confidence=confidence,
        failures=new.failures.head(new.failures.attrs.get("images", len(new.failures))),
    )
    wells = by_plate.well_scores(fields)
    share = wells.pop("probability").round(6)
    names = [PROBABILITY_PREFIX + name for name in new.classes]
    most = "unknown"
    if unlike is not None:
        keys = [fields[name] for name in by_plate.WELL_KEYS]
        most = (pd.Series(unlike).groupby(keys).mean() > 0.5).to_numpy()
    wells = wells.drop(columns=["label", "log_odds"]).assign(
        predicted=np.take(new.classes, share > 0.5),
        **dict(zip(names, ((1 - share).round(6), share), strict=True)),
        low_confidence=np.maximum(share, 1 - share) < confidence,
        out_of_distribution=most,
    )
    wells = wells.rename(columns={"mean_probability": f"{names[TARGET]}, mean of fields"})
    wells = warned(wells, table["warning"].iloc[0] if "warning" in table else "")
    return table, wells.assign(damage=wells["damage"].where(wells[names[TARGET]].notna()))


def show_new_wells(run: NotebookRun, wells: pd.DataFrame | None, target: str) -> None:
    """Write the wells of :func:`predict_new` to ``new_wells.csv``, say what set the scale of each
    plate and which controls it lacks, and show the wells as a table and in their places. ``target``
    is the class of the probability.
    """
    if wells is None:
        return
    write_csv(run.folder / "new_wells.csv", wells)
    for (plate, by, controls), own in wells.groupby(["plate", "scaled_by", "controls"]):
        lacks = "" if controls == "both" else f" Controls: {controls}, so no normalised effect."
        print(f"{plate}: {len(own)} wells, scaled by {by} of it.{lacks}")
    name = PROBABILITY_PREFIX + target
    columns = ["plate", "well", "treatment", "n_fields", "predicted", name]
    columns += ["low_confidence", "out_of_distribution"]
    shown = {column: TITLES.get(column, column) for column in columns}
    caption = f"The first of {len(wells)} wells in new_wells.csv"
    run.show_table(by_plate.in_words(wells.head(MOST_ROWS), shown), caption)
    if wells[name].notna().any():
        run.show_figure(
            plate_figures.plate_map(
                wells.rename(columns={name: "probability"}), "probability", target
            ),
            "new_plates",
            caption="Wells of the first new plates. The number below is the dose of the compound "
            "in µM, as far as it is known.",
            alt="Plates drawn as grids of wells, coloured by the probability of the class.",
        )


# where the network looks


def show_maps(run: NotebookRun, images: ImageSet, split: Split, result: CrossValidated) -> None:
    """Show GradCAM of every encoder for some fields that the last network was tested on."""
    tested = result.predictions.where(split="test", fold=split.folds()[-1][1])
    rows, titles = telling_fields(tested, images)
    maps = maps_of_fields(result.last, images, rows)
    seen = [part.stains for part in encoder_parts(result.last.network)]
    run.show_figure(
        maps_per_encoder(images.pixels[rows], maps, seen, images.channels, titles),
        "gradcam",
        caption="What each encoder sees, and what there speaks for "
        f"{images.classes[TARGET]} (GradCAM of its last stage, all on one scale). Whether such "
        "maps can be trusted is the question of notebook 08.",
        alt="Fields in each stain, each beside a heat map.",
    )


def maps_of_fields(trained: Trained, images: ImageSet, rows: Sequence[int]) -> np.ndarray:
    """(fields, encoders, y, x) float32 GradCAM of each encoder for these fields, raw, at the size
    the network sees.
    """
    fields = torch.from_numpy(np.array(images.pixels[np.asarray(rows)]))
    seen = transform(trained.recipe).evaluate(fields)
    layers = [part.layer for part in encoder_parts(trained.network)]
    return grad_cam_of_layers(trained.network, seen, layers, TARGET)


def telling_fields(predictions: Predictions, images: ImageSet) -> tuple[np.ndarray, list[str]]:
    """Row numbers and titles of some predicted fields: of each class the two that the network is
    surest of, and the one that it got most wrong, if any.

    ``predictions`` has each field once.
    """
    table = predictions.table
    own = predictions.probabilities[np.arange(len(table)), predictions.true_index]
    chosen = []
    for index in range(len(predictions.classes)):
        of_class = np.flatnonzero(predictions.true_index == index)
        surest = np.argsort(-own[of_class], kind="stable")[:2]
        chosen.extend(of_class[surest])
    if own.min() < 0.5 and own.argmin() not in chosen:
        chosen.append(int(own.argmin()))
    target = predictions.classes[TARGET]
    titles = []
    for row in chosen:
        probability = predictions.probabilities[row, TARGET]
        titles.append(f"{table['label'].iloc[row]}\n{target} {probability:.2f}")
    return images.positions(table["id"].iloc[chosen]), titles
