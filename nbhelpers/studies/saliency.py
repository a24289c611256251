"""Where the networks of the collection look: a small study per network, on phantoms with a known
cause or real images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from nbhelpers.core import splits
from nbhelpers.core.errors import check_choice
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.means import mean_interval
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split
from nbhelpers.figures import saliency as figures
from nbhelpers.models.four_stain import make_stain_network
from nbhelpers.models.keras_head import make_keras_head
from nbhelpers.models.resnet import make_pretrained
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.saliency import maps as saliency
from nbhelpers.saliency.checks import (
    MOST_ALIKE,
    Injected,
    SanityChecks,
    energy_ratio,
    fit_cause,
    judge,
    typical,
)
from nbhelpers.studies import plates, spines, synapse_checkpoints, synapses2d, synapses3d
from nbhelpers.training.crossvalidation import Training
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Augmentation, Recipe

MARK_PX = 8  # of 64: the injected mark in the upper left corner
COMPARED = 6  # images of each network by which the methods are compared


@dataclass(frozen=True)
class Settings:
    """What all cases are made by. ``epochs`` of 0: what suits each network; ``weights``: what the
    networks for "vnc_synapse" and "bueno" start from.
    """

    data_folder: Path
    data_dir: str = ""
    epochs: int = 0
    weights: str = "none"
    seed: int = 0

    @property
    def files(self) -> dict[str, object]:
        return {"data_folder": self.data_folder, "data_dir": self.data_dir}


@dataclass(frozen=True)
class Case:
    """What a study is about: images, how a network for them is made and trained, and where the
    cause lies.

    ``cause`` and ``mark`` are (n, ...) or (n, stains, ...) bool, of the size of ``images``; None
    where unknown, or where nothing is injected. With ``network`` there is nothing to train.
    """

    name: str
    images: ImageSet
    recipe: Recipe
    make_transform: Callable = synapses2d.transform
    make_network: Callable[[], nn.Module] | None = None
    split: Split | None = None
    cause: np.ndarray | None = None
    mark: np.ndarray | None = None
    network: nn.Module | None = None
    aligned: bool = False


@dataclass(frozen=True)
class Study:
    """A network, the test images that were looked at, what it says of them, and whether its maps
    pass the sanity checks.

    ``images`` are those looked at, as they are stored; ``seen`` the same as the network gets them;
    ``cause`` is of these. ``predictions`` are of the whole test part.
    """

    case: Case
    network: nn.Module
    images: ImageSet
    seen: torch.Tensor
    cause: np.ndarray | None
    predictions: Predictions
    checks: SanityChecks

    @property
    def stamp(self) -> str:
        """What is printed over figures of maps that failed: in what; empty for others."""
        return ", ".join(self.checks.failed)


# Cases


def make_case(name: str, settings: Settings) -> Case:
    """The case by its name: "spines", "synapses", "cubes", "stains", "glomeruli" and "shortcut" are
    synthetic, "ghani", "vnc_synapse", "bueno" and "bbbc021" real.

    Raises ParameterError for an unknown name, and the errors of the images.
    """
    makers = {
        "spines": _spines,
        "synapses": _synapses,
        "cubes": _cubes,
        "stains": _stains,
        "glomeruli": _glomeruli,
        "shortcut": _shortcut,
        "ghani": _spines,
        "vnc_synapse": _vnc,
        "bueno": _glomeruli,
        "bbbc021": _stains,
    }
    check_choice("parameter networks", name, makers)
    return makers[name](name, settings)


def _spines(name: str, settings: Settings) -> Case:
    from nbhelpers.imagesets.spines import load_spines
    from nbhelpers.imagesets.windows import windows

    source = "phantom" if name == "spines" else name
    seed = settings.seed
    images = load_spines(source, **settings.files, seed=seed, phantom={"count": 320})
    recipe = spines.GENTLE.but(
        epochs=settings.epochs or 12, ema_decay=0.0, test_time_augmentation=2
    )
    seen = windows(images, "grouped", recipe.input_px)
    return Case(
        "TinyCNN, spines",
        seen,
        recipe,
        spines.transform(1),
        make_network=lambda: TinyCNN(1, len(images.classes)),
        split=splits.hold_out(seen, seed=seed),
        cause=seen.pixels[:, 0] > 127 if images.synthetic else None,
        aligned=True,
    )


def _synapses(name: str, settings: Settings) -> Case:
    from nbhelpers.phantoms.synapse import load_phantom_synapses, phantom_causes

    bundled = Path(__file__).resolve().parents[2] / "checkpoints" / "synapse_phantom_2d.safetensors"
    network, recipe, *_ = synapse_checkpoints.rebuild(bundled)
    drawn = {
        "neurons": 24,
        "seed": derive_seed(settings.seed, "synapses that the bundled network never saw"),
    }
    return Case(
        "SynapseCNN, synapses",
        load_phantom_synapses(48, settings.data_folder, **drawn),
        recipe,
        cause=np.asarray(phantom_causes(48, settings.data_folder, **drawn)),
        network=network,
    )


def _cubes(name: str, settings: Settings) -> Case:
    from nbhelpers.phantoms.synapse import CLASSES, make_synapse_cubes

    seed = settings.seed
    made = make_synapse_cubes(
        200, neurons=40, shape_px=(12, 64, 64), voxel_nm=(40.0, 10.0, 10.0), seed=seed
    )
    images = ImageSet(
        name="synapse phantoms in 3D",
        table=made.table,
        pixels=made.pixels,
        classes=CLASSES,
        synthetic=True,
        channels=("EM",),
        pixel_size_nm=(40.0, 10.0, 10.0),
        source=f"{len(made.pixels)} synthetic cubes drawn by nbhelpers.phantoms.synapse, seed "
        f"{seed}",
    )
    recipe = synapses3d.recipe(
        "unet3d",
        input_px=32,
        epochs=settings.epochs or 10,
        ema_decay=0.0,
        test_time_augmentation=1,
    )
    return Case(
        "UNet3D, cubes",
        images,
        recipe,
        synapses3d.transform,
        make_network=lambda: synapses3d.make_network("unet3d", images, input_px=32, width=0.5),
        split=splits.hold_out(images, seed=seed),
        cause=made.cause,
    )


def _stains(name: str, settings: Settings) -> Case:
    from nbhelpers.imagesets import plates as sets
    from nbhelpers.phantoms.plate import make_plates

    real = name == "bbbc021"
    seed = settings.seed
    cause = None
    if real:
        raw = sets.load_plates(name, **settings.files, size_px=64)
    else:
        drawn = {"plates": 8, "fields": 2}
        about = {"layout": "randomised", "size_px": 64, "seed": seed}
        raw = sets.load_plates("phantom", **settings.files, **about, phantom=drawn)
        cause = make_plates(**about, **drawn).cause
    wells = "all" if real else "controls"
    images = sets.normalise_to_controls(
        raw, wells=wells, cache_folder=settings.data_folder / "packed"
    )
    known = np.flatnonzero(images.labels >= 0)
    images = images.take(known)
    split = plates.make_split(name if real else "phantom", images, test_plates=3, seed=seed)
    return Case(
        "S4, three stains of cells" if real else "S4, four stains",
        images,
        plates.recipe(epochs=settings.epochs or 8, keep="last"),
        plates.transform,
        make_network=lambda: make_stain_network(
            "s4", len(images.channels), len(images.classes), encoder="small"
        ),
        split=split.only(*split.folds()[0]),
        cause=None if cause is None else cause[known],
    )


def _glomeruli(name: str, settings: Settings) -> Case:
    from nbhelpers.imagesets.glomeruli import load_glomeruli
    from nbhelpers.phantoms.glomerulus import make_glomerulus_phantoms

    real = name == "bueno"
    source = name if real else "phantom"
    seed = settings.seed
    images = load_glomeruli(source, **settings.files, seed=seed, phantom={"count": 200})
    recipe = Recipe(
        name="glomeruli",
        epochs=settings.epochs or 8,
        batch_size=16,
        learning_rate=1e-3,
        warmup_fraction=0.1,
        label_smoothing=0.05,
        input_px=224 if real else 64,
        keep="last",
        augmentation=Augmentation(flip_horizontal=True, flip_vertical=True, quarter_turns=True),
    )

    def make_network() -> nn.Module:
        if not real:
            return TinyCNN(3, 2)
        about = {"weights": settings.weights, "data_folder": settings.data_folder}
        return make_keras_head("mobilenet_v2", 2, **about)

    cause = None if real else make_glomerulus_phantoms(len(images), seed=seed).cause
    return Case(
        "MobileNetV2 with the glomeruli head" if real else "TinyCNN in colour, glomeruli",
        images,
        recipe,
        make_network=make_network,
        split=splits.hold_out(images, seed=seed),
        cause=cause,
    )


def _shortcut(name: str, settings: Settings) -> Case:
    from nbhelpers.phantoms.synapse import load_phantom_synapses, phantom_causes

    drawn = {"neurons": 40, "size_px": 64, "seed": derive_seed(settings.seed, "marked")}
    images = load_phantom_synapses(240, settings.data_folder, **drawn)
    marked = with_corner_mark(images, MARK_PX)
    mark = np.zeros(marked.pixels.shape[:1] + marked.pixels.shape[2:], bool)
    mark[:, :MARK_PX, :MARK_PX] = True
    recipe = synapses2d.recipe(
        "cnn",
        epochs=settings.epochs or 10,
        learning_rate=3e-3,
        ema_decay=0.0,
        label_smoothing=0.0,
        test_time_augmentation=1,
        augmentation=Augmentation(brightness=0.15),  # turns would move the mark
    )
    return Case(
        "TinyCNN, INJECTED MARK",
        marked,
        recipe,
        make_network=lambda: TinyCNN(1, 2),
        split=splits.hold_out(marked, seed=settings.seed),
        cause=np.asarray(phantom_causes(240, settings.data_folder, **drawn)),
        mark=mark,
    )


def with_corner_mark(images: ImageSet, side_px: int) -> ImageSet:
    """The same images with a white square in the upper left corner of the first class and a black
    one in all others: an injected shortcut, to see whether maps show it."""
    pixels = np.array(images.pixels)
    white = np.iinfo(pixels.dtype).max
    pixels[images.labels == 0, ..., :side_px, :side_px] = white
    pixels[images.labels != 0, ..., :side_px, :side_px] = 0
    return replace(
        images,
        pixels=pixels,
        content_hash="",
        source=f"{images.source}; a mark in the corner tells the class",
    )


def _vnc(name: str, settings: Settings) -> Case:
    from nbhelpers.imagesets.vnc import cause_masks, load_vnc

    weights = settings.weights
    images = load_vnc(name, **settings.files, seed=settings.seed)
    split = synapses2d.make_split(name, images, data_dir="", folds=4, seed=settings.seed)
    recipe = synapses2d.recipe(
        "resnet",
        pretrained=weights != "none",
        epochs=settings.epochs or 16,
        test_time_augmentation=1,
    )
    return Case(
        "SqueezeNet, real synapses",
        images,
        recipe,
        make_network=lambda: make_pretrained(
            "squeezenet1_0", 2, weights=weights, data_folder=settings.data_folder
        ),
        split=split.only(*split.folds()[0]),
        cause=cause_masks(images, **settings.files),
    )


# Studies


def make_study(
    case: Case,
    *,
    work_folder: str | Path,
    look_at: int = 16,
    method: str = "layercam",
    seed: int = 0,
) -> Study:
    """Train the network of a case (or take the one it has), look at ``look_at`` of its test images,
    and judge the maps.

    The images are chosen evenly over the classes, up to a quarter of them wrongly predicted ones;
    where only some hold a cause, such as the synapse in real tissue, only those.
    """
    transform = case.make_transform(case.recipe)
    if case.network is None:
        training = Training(
            case.make_network,
            [case.recipe],
            case.make_transform,
            seed=seed,
            work_folder=Path(work_folder) / case.name,
            model=case.name,
        )
        result = training.cross_validate(case.images, case.split)
        network = result.last.network
        predictions = result.predictions.where(split="test")
    else:
        network = case.network
        found = predict_probabilities(network, case.images.pixels, transform)
        predictions = Predictions.of(case.images, found, model=case.name)
    rows = chosen_rows(predictions, case, look_at, seed)
    images = case.images.take(rows)
    seen = transform.evaluate(torch.from_numpy(np.array(images.pixels)))
    cause = None if case.cause is None else case.cause[rows]
    mark = None if case.mark is None else case.mark[rows]
    checks = judge(
        network,
        seen,
        name=case.name,
        classes=images.labels,
        method=method,
        injected=Injected(cause, mark),
        groups=images.groups if len(set(images.groups)) >= 8 else None,
        seed=seed,
    )
    return Study(case, network, images, seen, cause, predictions, checks)


def chosen_rows(predictions: Predictions, case: Case, count: int, seed: int) -> np.ndarray:
    """Row numbers of the images to look at; see :func:`make_study`."""
    table = predictions.table.assign(
        row=case.images.positions(predictions.table["id"]),
        wrong=predictions.predicted_index != predictions.true_index,
    )
    table = table.sample(frac=1, random_state=derive_seed(seed, "looked at") % 2**32)
    if case.cause is not None:
        holds = case.cause.reshape(len(case.cause), -1).any(1)
        table = table[holds[table["row"]]]
    wrong = table[table["wrong"]].head(count // 4)
    right = table[~table["wrong"]]
    turn = right.groupby("label").cumcount()  # the classes take turns
    right = right.loc[turn.sort_values(kind="stable").index].head(count - len(wrong))
    return pd.concat([wrong, right])["row"].to_numpy()


def titles(study: Study, rows: Sequence[int]) -> tuple[list[str], list[bool]]:
    """Of images that were looked at: the true class, the predicted one with its probability; and
    whether it is right.
    """
    probabilities = study.checks.probabilities
    guessed = probabilities.argmax(1)
    names = [name[:14] for name in study.images.classes]
    labels = study.images.labels
    texts = [
        f"{names[labels[row]]}\n→ {names[guessed[row]]} {probabilities[row].max():.2f}"
        for row in rows
    ]
    return texts, (guessed == labels)[rows].tolist()


# Tables and words


def network_table(studies: Sequence[Study]) -> pd.DataFrame:
    """How large the networks are, and which layers are looked into."""
    rows = [
        {
            "network": study.case.name,
            "parameters": f"{sum(one.numel() for one in study.network.parameters()):,}",
            "layers looked into": "; ".join(study.checks.layers) or "none",
        }
        for study in studies
    ]
    return pd.DataFrame(rows)


def beside_guessing(scores: Mapping) -> str:
    """A balanced accuracy of :func:`nbhelpers.evaluation.metrics.evaluate`, and what guessing
    gives."""
    guessed = 1 / len(scores["per_class"])
    return f"{scores['balanced_accuracy']}, {scores['n_images']} images; guessing: {guessed:.3f}"


def method_table(studies: Sequence[Study], methods: Sequence[str]) -> pd.DataFrame:
    """Energy inside the injected cause, times its share of the area, by network and method: which
    method to use where.

    From some images of each study whose cause is known.
    """
    rows = []
    for study in studies:
        if study.cause is None or study.case.mark is not None:
            continue  # where a mark gives the class away, the cause is none
        seen = study.seen[:COMPARED]
        asked = study.checks.classes[:COMPARED]
        row = {"network": study.case.name, "n": len(seen)}
        for method in methods:
            maps = saliency.saliency_maps(study.network, seen, method=method, target_class=asked)
            inside = fit_cause(study.cause[:COMPARED], maps)
            row[method] = mean_interval(energy_ratio(maps, inside)).text(1)
        rows.append(row)
    return pd.DataFrame(rows)


def main_check(study: Study) -> tuple[str, Estimate, float]:
    """The check that a study is known by: its name, what was found, and what chance gives. Where
    the cause is known, how much of the maps lies in it.
    """
    table = study.checks.table.set_index("check")
    known = "injected cause" in table.index
    row = table.loc["injected cause" if known else "ROAD, over random map"]
    ends = [None if pd.isna(row[end]) else row[end] for end in ("value", "low", "high")]
    found = Estimate(*ends, n=int(row["n"]))
    name = "Map energy in the cause, by area" if known else "ROAD, over random map"
    return name, found, 1.0 if known else 0.0


def sentences(studies: Sequence[Study]) -> list[str]:
    """What was found, one sentence per network."""
    found = []
    for study in studies:
        table = study.checks.table.set_index("check")
        text = f"{study.case.name}: {study.checks.verdict}."
        if "injected mark" in study.checks.failed:
            times = table.at["injected mark", "value"]
            text += (
                f" SHORTCUT: the maps point at the mark in the corner ({times:.0f} times its share "
                "of the area), not at the synapse. The network read the mark."
            )
        elif "corners" in study.checks.failed:
            text += (
                " SHORTCUT? The maps point into one corner of the image: look for a mark, a label "
                "or a scale bar there."
            )
        found.append(text)
    return found


def worst_finding(studies: Sequence[Study]) -> str:
    """Which networks' maps failed, and in what; empty where all passed."""
    return "; ".join(
        f"{study.case.name}: {study.checks.verdict}" for study in studies if study.stamp
    )


def answer(studies: Sequence[Study]) -> tuple[str, str]:
    """Do the maps show anything about the networks? For
    :meth:`nbhelpers.reports.run.NotebookRun.set_answer`; networks with an injected mark are made to
    fail, and do not count.
    """
    counted = [study for study in studies if study.case.mark is None]
    failed = [study.case.name for study in counted if study.checks.failed]
    still_open = [study.case.name for study in counted if study.checks.still_open]
    if failed:
        told = ", ".join(failed)
        return "no", f"the maps of {len(failed)} of {len(counted)} networks failed checks ({told})"
    if still_open or not counted:
        return "not shown", f"checks stay open for {', '.join(still_open) or 'want of a network'}"
    return "yes", f"the maps of all {len(counted)} networks passed their sanity checks"


def save_maps(study: Study, folder: Path, name: str) -> None:
    """Keep the maps as numbers, with a table of their images."""
    table = study.images.table[["id", "label"]].assign(asked=study.checks.classes)
    saliency.save_maps(folder, name, study.checks.maps, table)


# Figures


def draw_maps(study: Study):
    """The figure of a study's maps, wrong predictions first: images, sections of cubes, or a grid
    of stains; stamped where the maps failed."""
    maps = study.checks.maps
    right = study.checks.probabilities.argmax(1) == study.images.labels
    rows = np.argsort(right, kind="stable")[: 8 if maps.ndim == 4 and maps.shape[1] == 1 else 4]
    texts, good = titles(study, rows)
    stored = np.asarray(study.images.pixels)[rows]
    pixels = _at_size(stored, maps)
    if maps.shape[1] > 1:
        encoders = [(at,) for at in range(maps.shape[1])]
        names = study.images.channels
        about = {"right": good, "stamp": study.stamp}
        return figures.maps_per_encoder(pixels, maps[rows], encoders, names, texts, **about)
    cause = None if study.cause is None else fit_cause(study.cause[rows], maps[rows])[:, 0]
    about = {"cause": cause, "stamp": study.stamp}
    if maps.ndim == 4:
        return figures.map_sheet(pixels, maps[rows, 0], texts, good, **about)
    voxel_nm = [
        size * of / to
        for size, of, to in zip(
            study.images.pixel_size_nm or (1, 1, 1), stored.shape[2:], maps.shape[2:], strict=True
        )
    ]
    return figures.section_maps(
        pixels[:, 0], maps[rows, 0], texts, good, voxel_nm=voxel_nm, **about
    )


def draw_checks(study: Study):
    """The curves of a study's checks, stamped where the maps failed."""
    checks = study.checks
    return figures.sanity_curves(
        checks.curves, checks.cascade, most_alike=MOST_ALIKE, stamp=study.stamp
    )


def draw_class_means(study: Study):
    """Mean image and mean map of each class of aligned images, stamped where the maps failed."""
    maps = study.checks.maps[:, 0]
    labels = study.images.labels
    seen = (study.seen[:, 0].numpy() * 255).round().astype("uint8")
    alike = typical(maps, labels)
    return figures.class_means(seen, maps, labels, alike, study.images.classes, stamp=study.stamp)


def _at_size(pixels: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The stored pixels (n, c, ...) averaged to the size of the maps, with their type kept."""
    if pixels.shape[2:] == maps.shape[2:]:
        return pixels
    pool = F.adaptive_avg_pool2d if pixels.ndim == 4 else F.adaptive_avg_pool3d
    smaller = pool(torch.from_numpy(pixels.astype(np.float32)), maps.shape[2:])
    return smaller.round().numpy().astype(pixels.dtype)
