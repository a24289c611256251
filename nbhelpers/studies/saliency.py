"""Where the networks of the collection look: a small study per network, on phantoms with a known
cause or real images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbhelpers.core import splits
from nbhelpers.core.errors import ParameterError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.intervals import mean_interval
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.core.splits import Split
from nbhelpers.models.four_stain import make_stain_network
from nbhelpers.models.keras_head import make_keras_head
from nbhelpers.models.resnet import make_pretrained
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.saliency.checks import SanityChecks, energy_ratio, fit_cause, judge
from nbhelpers.saliency.maps import saliency_maps, save_maps  # noqa: F401  (the notebook has save_maps from here)
from nbhelpers.studies import plates, spines, synapses2d, synapses3d
from nbhelpers.training.crossvalidation import Training
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Augmentation, Recipe

PHANTOMS = ("spines", "synapses", "cubes", "stains", "glomeruli", "shortcut")
REAL = ("ghani", "vnc_synapse", "bueno", "bbbc021")
MARK_PX = 8  # of 64: the injected mark in the upper left corner


class WithHead(nn.Module):
    """A glomeruli network of notebook 07 with its linear head: (n, 3, y, x) float to (n, classes)
    logits.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.network(images).double() @ self.network.weight.T + self.network.bias).float()


@dataclass(frozen=True)
class Case:
    """What a study is about: images, how a network for them is made and trained, and where the
    cause lies.

    ``cause`` and ``mark`` are (n, ...) or (n, stains, ...) bool, of the size of ``images``; None
    where unknown, or where nothing is injected. With ``network`` there is nothing to train.
    """

    name: str
    images: ImageSet
    make_network: Callable[[], nn.Module] | None
    recipe: Recipe
    make_transform: Callable
    split: Split | None
    cause: np.ndarray | None = None
    mark: np.ndarray | None = None
    network: nn.Module | None = None
    aligned: bool = False


@dataclass(frozen=True)
class Study:
    """A network, the test images that were looked at, what it says of them, and whether to believe
    its maps.

    ``images`` are those looked at, as they are stored; ``seen`` the same as the network gets them;
    ``cause`` is of these. ``predictions`` are of the whole test part; ``history`` is None where
    nothing was trained.
    """

    case: Case
    network: nn.Module
    images: ImageSet
    seen: torch.Tensor
    cause: np.ndarray | None
    predictions: Predictions
    history: pd.DataFrame | None
    belief: SanityChecks


# cases


def make_case(
    name: str,
    *,
    data_folder: str | Path,
    data_dir: str = "",
    epochs: int = 0,
    weights: str = "none",
    count: int = 0,
    seed: int = 0,
) -> Case:
    """The case by its name, one of PHANTOMS or REAL. ``count`` phantoms (0: as many as the demo
    has), ``epochs`` of training (0: as many as the demo has), ``weights`` that the networks for
    "vnc_synapse" and "bueno" start from.

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
    if name not in makers:
        raise ParameterError(
            "parameter networks", f"{name!r} is unknown.", f"Known are {', '.join(makers)}."
        )
    return makers[name](name, Path(data_folder), data_dir, epochs, weights, count, seed)


def _spines(name, data_folder, data_dir, epochs, weights, count, seed) -> Case:
    from nbhelpers.imagesets.spines import load_spines

    source = "phantom" if name == "spines" else name
    images = load_spines(
        source, data_folder=data_folder, data_dir=data_dir, phantoms=count or 320, seed=seed
    )
    recipe = spines.GENTLE.but(epochs=epochs or 12, ema_decay=0.0, test_time_augmentation=2)
    seen = spines.windows(images, "grouped", recipe.input_px)
    return Case(
        "TinyCNN, spines",
        seen,
        lambda: TinyCNN(1, len(images.classes)),
        recipe,
        spines.transform(1),
        splits.hold_out(seen, seed=seed),
        seen.pixels[:, 0] > 127 if images.synthetic else None,
        aligned=True,
    )


def _synapses(name, data_folder, data_dir, epochs, weights, count, seed) -> Case:
    from nbhelpers.imagesets.synapses import load_phantom_synapses, phantom_causes

    bundled = Path(__file__).resolve().parents[2] / "checkpoints" / "synapse_phantom_2d.safetensors"
    network, recipe, *_ = synapses2d.rebuild(bundled)
    settings = {
        "neurons": 24,
        "seed": derive_seed(seed, "synapses that the bundled network never saw"),
    }
    images = load_phantom_synapses(count or 48, data_folder, **settings)
    return Case(
        "SynapseCNN, synapses",
        images,
        None,
        recipe,
        synapses2d.transform,
        None,
        np.asarray(phantom_causes(count or 48, data_folder, **settings)),
        network=network,
    )


def _cubes(name, data_folder, data_dir, epochs, weights, count, seed) -> Case:
    from nbhelpers.phantoms.synapse import CLASSES, make_synapse_cubes

    made = make_synapse_cubes(
        count or 200, neurons=40, shape_px=(12, 64, 64), voxel_nm=(40.0, 10.0, 10.0), seed=seed
    )
    images = ImageSet(
        name="synapse phantoms in 3D",
        table=made.table,
        pixels=made.pixels,
        classes=CLASSES,
        synthetic=True,
        channels=("EM",),
        pixel_size_nm=made.voxel_nm,
        source=f"{len(made.pixels)} synthetic cubes drawn by nbhelpers.phantoms.synapse, seed "
        f"{seed}",
    )
    recipe = synapses3d.recipe(
        "unet3d", input_px=32, epochs=epochs or 10, ema_decay=0.0, test_time_augmentation=1
    )
    return Case(
        "UNet3D, cubes",
        images,
        lambda: synapses3d.make_network("unet3d", images, input_px=32, width=0.5),
        recipe,
        synapses3d.transform,
        splits.hold_out(images, seed=seed),
        made.cause,
    )


def _stains(name, data_folder, data_dir, epochs, weights, count, seed) -> Case:
    from nbhelpers.imagesets import plates as sets
    from nbhelpers.phantoms.plate import make_plates

    real = name == "bbbc021"
    cause = None
    if real:
        raw = sets.load_plates("bbbc021", data_folder=data_folder, data_dir=data_dir, size_px=64)
    else:
        settings = {
            "plates": count or 8,
            "fields": 2,
            "size_px": 64,
            "layout": "randomised",
            "seed": seed,
        }
        raw = sets.load_plates("phantom", data_folder=data_folder, **settings)
        cause = make_plates(**settings).cause
    images = sets.normalise_to_controls(
        raw, wells="all" if real else "controls", cache_folder=data_folder / "packed"
    )
    known = np.flatnonzero(images.labels >= 0)
    images = images.take(known)
    cause = None if cause is None else cause[known]
    split = plates.make_split("bbbc021" if real else "phantom", images, test_plates=3, seed=seed)
    split = plates._only(split, *split.folds()[0])
    return Case(
        "S4, four stains" if not real else "S4, three stains of cells",
        images,
        lambda: make_stain_network(
            "s4", len(images.channels), len(images.classes), encoder="small"
        ),
        plates.recipe(epochs=epochs or 8, keep="last"),
        plates.transform,
        split,
        cause,
    )


def _glomeruli(name, data_folder, data_dir, epochs, weights, count, seed) -> Case:
    from nbhelpers.imagesets.glomeruli import load_glomeruli
    from nbhelpers.phantoms.glomerulus import make_glomerulus_phantoms

    real = name == "bueno"
    cause = None
    input_px = 224 if name == "bueno" else 64
    images = load_glomeruli(
        "bueno" if real else "phantom",
        data_folder=data_folder,
        data_dir=data_dir,
        phantoms=count or 200,
        seed=seed,
    )
    if not real:
        cause = make_glomerulus_phantoms(len(images), seed=seed).cause
    recipe = Recipe(
        name="glomeruli",
        epochs=epochs or 8,
        batch_size=16,
        learning_rate=1e-3,
        warmup_fraction=0.1,
        label_smoothing=0.05,
        input_px=input_px,
        keep="last",
        augmentation=Augmentation(flip_horizontal=True, flip_vertical=True, quarter_turns=True),
    )
    make = (
        (lambda: make_keras_head("mobilenet_v2", 2, weights=weights, data_folder=data_folder))
        if real
        else (lambda: TinyCNN(3, 2))
    )
    return Case(
        "MobileNetV2 with the glomeruli head" if real else "TinyCNN in colour, glomeruli",
        images,
        make,
        recipe,
        synapses2d.transform,
        splits.hold_out(images, seed=seed),
        cause,
    )


def _shortcut(name, data_folder, data_dir, epochs, weights, count, seed) -> Case:
    from nbhelpers.imagesets.synapses import load_phantom_synapses, phantom_causes

    settings = {"neurons": 40, "size_px": 64, "seed": derive_seed(seed, "marked")}
    images = load_phantom_synapses(count or 240, data_folder, **settings)
    marked = with_corner_mark(images, MARK_PX)
    mark = np.zeros(marked.pixels.shape[:1] + marked.pixels.shape[2:], bool)
    mark[:, :MARK_PX, :MARK_PX] = True
    recipe = synapses2d.recipe(
        "cnn",
        epochs=epochs or 10,
        learning_rate=3e-3,
        ema_decay=0.0,
        label_smoothing=0.0,
        test_time_augmentation=1,
        augmentation=Augmentation(brightness=0.15),
    )  # turns would move the mark
    return Case(
        "TinyCNN, PLANTED MARK",
        marked,
        lambda: TinyCNN(1, 2),
        recipe,
        synapses2d.transform,
        splits.hold_out(marked, seed=seed),
        np.asarray(phantom_causes(count or 240, data_folder, **settings)),
        mark,
    )


def with_corner_mark(images: ImageSet, side_px: int, marked_class: int = 0) -> ImageSet:
    """The same images with a white square in the upper left corner of one class and a black one in
    all others: a injected shortcut, to see whether maps show it."""
    pixels = np.array(images.pixels)
    pixels[..., :side_px, :side_px] = np.where(
        images.labels == marked_class, np.iinfo(pixels.dtype).max, 0
    ).reshape(-1, *[1] * (pixels.ndim - 1))
    return replace(
        images,
        pixels=pixels,
        content_hash="",
        source=f"{images.source}; a mark in the corner tells the class",
    )


def _vnc(name, data_folder, data_dir, epochs, weights, count, seed) -> Case:
    from nbhelpers.imagesets.vnc import cause_masks, load_vnc

    images = load_vnc("synapse", data_folder=data_folder, data_dir=data_dir, seed=seed)
    split = synapses2d.make_split("vnc_synapse", images, data_dir=data_dir, folds=4, seed=seed)
    split = plates._only(split, *split.folds()[0])
    pretrained = weights != "none"
    recipe = synapses2d.recipe(
        "resnet", pretrained=pretrained, epochs=epochs or 16, test_time_augmentation=1
    )
    return Case(
        "SqueezeNet, real synapses",
        images,
        lambda: make_pretrained("squeezenet1_0", 2, weights=weights, data_folder=data_folder),
        recipe,
        synapses2d.transform,
        split,
        cause_masks(images, data_folder=data_folder, data_dir=data_dir),
    )


# studies


def make_study(
    case: Case,
    *,
    look_at: int = 16,
    method: str = "layercam",
    seed: int = 0,
    work_folder: str | Path,
    report: Callable[[str], None] | None = print,
) -> Study:
    """Train the network of a case (or take the one it has), look at ``look_at`` of its test images,
    and judge the maps.

    The images are chosen evenly over the classes, up to a quarter of them wrongly predicted ones;
    where only some hold a cause, such as the synapse in real tissue, only those.
    """
    history = None
    if case.network is None:
        training = Training(
            case.make_network,
            [case.recipe],
            case.make_transform,
            seed=seed,
            work_folder=Path(work_folder) / case.name,
            model=case.name,
            report=report,
        )
        result = training.cross_validate(case.images, case.split)
        network = result.last.network
        predictions = result.predictions.where(split="test")
        history = result.histories
    else:
        network = case.network
        predictions = Predictions.build(
            ids=case.images.ids,
            labels=case.images.table["label"],
            groups=case.images.groups,
            classes=case.images.classes,
            probabilities=predict_probabilities(
                network, case.images.pixels, case.make_transform(case.recipe)
            ),
            model=case.name,
        )
    rows = chosen_rows(predictions, case, look_at, seed)
    images = case.images.take(rows)
    seen = case.make_transform(case.recipe).evaluate(torch.from_numpy(np.array(images.pixels)))
    cause, mark = (None if one is None else one[rows] for one in (case.cause, case.mark))
    belief = judge(
        network,
        seen,
        name=case.name,
        classes=images.labels,
        method=method,
        cause=cause,
        mark=mark,
        groups=images.groups if len(set(images.groups)) >= 8 else None,
        seed=seed,
    )
    return Study(case, network, images, seen, cause, predictions, history, belief)


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
    right = (
        right.assign(turn=right.groupby("label").cumcount())
        .sort_values("turn", kind="stable")
        .head(count - len(wrong))
    )
    return pd.concat([wrong, right])["row"].to_numpy()


def titles(study: Study, rows: Sequence[int]) -> tuple[list[str], list[bool]]:
    """Of images that were looked at: the true class, the predicted one with its probability; and
    whether it is right.
    """
    probabilities = study.belief.probabilities
    labels = study.images.labels
    names = study.images.classes
    guessed = probabilities.argmax(1)
    texts = [
        f"{names[labels[row]][:14]}\n→ {names[guessed[row]][:14]} {probabilities[row].max():.2f}"
        for row in rows
    ]
    return texts, [bool(guessed[row] == labels[row]) for row in rows]


def method_table(
    studies: Sequence[Study], methods: Sequence[str], *, most: int = 6
) -> pd.DataFrame:
    """Energy inside the injected cause, times its share of the area, by network and method: which
    method to use where.

    From ``most`` images of each study whose cause is known.
    """
    rows = []
    for study in studies:
        truth = study.cause if study.case.mark is None else None
        if truth is None:
            continue
        row = {"network": study.case.name, "n": min(most, len(study.seen))}
        for method in methods:
            maps = saliency_maps(
                study.network,
                study.seen[:most],
                method=method,
                target_class=study.belief.classes[:most],
            )
            found = mean_interval(energy_ratio(maps, fit_cause(truth[:most], maps)))
            row[method] = found.text(1)
        rows.append(row)
    return pd.DataFrame(rows)


def sentences(studies: Sequence[Study]) -> list[str]:
    """What was found, one sentence per network."""
    found = []
    for study in studies:
        table = study.belief.table.set_index("check")
        verdict = study.belief.verdict
        text = f"{study.case.name}: {verdict}."
        if "injected mark" in table.index and table.at["injected mark", "passed"] is False:
            times = table.at["injected mark", "value"]
            text += (
                f" SHORTCUT: the maps point at the mark in the corner ({times:.0f} times its share "
                f"of the area), not "
                "at the synapse. The network read the mark."
            )
        elif table.at["corners", "passed"] is False:
            text += (
                " SHORTCUT? The maps point into one corner of the image: look for a mark, a label "
                "or a scale bar there."
            )
        found.append(text)
    return found


def draw_maps(study: Study, count: int = 8):
    """The figure of a study's maps, wrong predictions first: images, sections of cubes, or a grid
    of stains; stamped where the maps failed."""
    from nbhelpers.figures.saliency import map_sheet, maps_per_encoder, section_maps

    maps = study.belief.maps
    stamp = study.belief.verdict if study.belief.failed else ""
    right = study.belief.probabilities.argmax(1) == study.images.labels
    rows = np.argsort(right, kind="stable")[: count if maps.ndim == 4 and maps.shape[1] == 1 else 4]
    texts, good = titles(study, rows)
    pixels = np.asarray(study.images.pixels)[rows]
    cause = None if study.cause is None else fit_cause(study.cause[rows], maps[rows])
    if maps.shape[1] > 1:
        return maps_per_encoder(
            _at_size(pixels, maps),
            maps[rows],
            [(at,) for at in range(maps.shape[1])],
            study.images.channels,
            texts,
            right=good,
            stamp=stamp,
        )
    more = {"cause": None if cause is None else cause[:, 0], "stamp": stamp}
    if maps.ndim == 5:
        stored = study.images.pixel_size_nm or (1, 1, 1)
        seen = [
            size * of / to
            for size, of, to in zip(stored, pixels.shape[2:], maps.shape[2:], strict=True)
        ]
        return section_maps(
            _at_size(pixels, maps)[:, 0], maps[rows, 0], texts, good, voxel_nm=seen, **more
        )
    return map_sheet(_at_size(pixels, maps), maps[rows, 0], texts, good, **more)


def _at_size(pixels: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The stored pixels (n, c, ...) averaged to the size of the maps, with their type kept."""
    if pixels.shape[2:] == maps.shape[2:]:
        return pixels
    pool = (
        torch.nn.functional.adaptive_avg_pool2d
        if pixels.ndim == 4
        else torch.nn.functional.adaptive_avg_pool3d
    )
    return (
        pool(torch.from_numpy(pixels.astype(np.float32)), maps.shape[2:])
        .round()
        .numpy()
        .astype(pixels.dtype)
    )
