"""Figures: labelled, readable at final size, no pyplot state, and they show the numbers they were
given.
"""

import io
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from nbhelpers.core.errors import InputError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split
from nbhelpers.evaluation.calibration import apply_temperature
from nbhelpers.evaluation.metrics import evaluate, reliability_bins
from nbhelpers.figures.images import image_sheet, predictions_sheet, to_display
from nbhelpers.figures.scores import (
    class_balance,
    confusion_matrix,
    reliability_diagram,
    scores_with_floors,
)
from nbhelpers.figures.style import SMALL, WIDTH, class_colours, new_figure, styled, use_style
from nbhelpers.figures.training import history

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("Mushroom", "Stubby", "A class with a very long name")


def image_set(shape=(1, 20, 20), dtype=np.uint8, channels=("mask",), pixel_size_nm=None, n=30):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, np.iinfo(dtype).max, (n, *shape), dtype=dtype)
    table = pd.DataFrame(
        {
            "id": [f"i{index}" for index in range(n)],
            "label": [CLASSES[i % 3] for i in range(n)],
            "group": [f"g{index // 2}" for index in range(n)],
        }
    )
    return ImageSet(
        "test",
        table,
        pixels,
        CLASSES,
        "made for a test",
        True,
        channels=channels,
        pixel_size_nm=pixel_size_nm,
    )


def predict(images, seed=0):
    probabilities = np.random.default_rng(seed).dirichlet([1, 1, 1], len(images))
    return Predictions.build(
        ids=images.ids,
        labels=images.table["label"],
        groups=images.groups,
        probabilities=probabilities,
        classes=CLASSES,
    )


def training(fold=0):
    epochs = np.arange(1, 6)
    return pd.DataFrame(
        {
            "epoch": epochs,
            "learning_rate": 1e-3,
            "train_loss": 1 / epochs + fold,
            "validation_loss": 2 / epochs + fold,
            "validation_macro_f1": 1 - 1 / epochs,
            "fold": fold,
        }
    )


def all_figures():
    images = image_set(pixel_size_nm=(16.0, 16.0))
    predictions = predict(images)
    split = Split(
        pd.DataFrame(
            {
                "repeat": 0,
                "fold": 0,
                "part": ["train"] * 20 + ["test"] * 10,
                "id": images.ids,
                "group": images.groups,
            }
        ),
        "test",
        0,
    )
    rows = [
        ("TinyCNN", "model", Estimate(0.9, 0.85, 0.94)),
        ("majority class", "floor", Estimate(0.6)),
        ("elsewhere", "published", Estimate.undefined("never scored")),
    ]
    return {
        "image_sheet": image_sheet(images),
        "predictions_sheet": predictions_sheet(images, predictions),
        "confusion_matrix": confusion_matrix(evaluate(predictions)),
        "reliability_diagram": reliability_diagram(predictions, apply_temperature(predictions, 2)),
        "history": history(pd.concat([training(0), training(1)]), kept_epoch=3),
        "scores_with_floors": scores_with_floors(rows),
        "class_balance": class_balance(images, split),
    }


@pytest.fixture(scope="module")
def figures():
    return all_figures()


def texts(figure):
    return [
        text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()
    ]


def test_no_pyplot_state_and_no_setting_is_left_behind():
    import matplotlib.pyplot as pyplot

    before = dict(matplotlib.rcParams)
    all_figures()
    assert pyplot.get_fignums() == [] and dict(matplotlib.rcParams) == before
    with use_style():
        assert matplotlib.rcParams["font.size"] == 10
    assert dict(matplotlib.rcParams) == before


def test_every_figure_is_readable_at_final_size_and_can_be_saved(figures):
    for name, figure in figures.items():
        assert 4 <= figure.get_size_inches()[0] <= 9, name
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9, (
            name
        )
        for kind, beginning in (("png", b"\x89PNG"), ("svg", b"<?xml")):
            file = io.BytesIO()
            figure.savefig(file, format=kind)
            assert file.getvalue().startswith(beginning)


@pytest.mark.parametrize("asked", [8, 8.9])
def test_letters_that_are_too_small_at_half_size_are_found(asked):
    """All tests draw under this check (tests/conftest.py); here it is shown to see."""

    @styled
    def small():
        figure = new_figure()
        figure.text(0, 0, "tiny", fontsize=asked)
        return figure

    with pytest.raises(AssertionError, match="tiny"):
        small()
    # the report's column, as style.css has it
    text_width_inches = 58 * 16 / 96
    journals_ask_pt = 5
    assert "max-width: 58rem" in (ROOT / "nbhelpers/reports/templates/style.css").read_text()
    assert SMALL * min(1, text_width_inches / 2 / WIDTH) >= journals_ask_pt


def test_every_figure_of_the_package_is_drawn_by_a_test():
    drawn = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for file in (ROOT / "nbhelpers").rglob("*.py"):
        for name in re.findall(r"^@styled\ndef (\w+)", file.read_text(), re.MULTILINE):
            assert re.search(rf"\b{name}\(", drawn), f"{file.name}: no test calls {name}"


def test_nothing_sticks_out_of_a_figure(figures):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for name, figure in figures.items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = canvas.get_width_height()
        for text in figure.findobj(Text):
            if text.get_text() and text.get_visible():
                box = text.get_window_extent(canvas.get_renderer())
                ticks_outside_the_limits = (
                    box.x0 > width or box.y0 > height or box.x1 < 0 or box.y1 < 0
                )
                assert ticks_outside_the_limits or (box.x0 >= -3 and box.x1 <= width + 3), (
                    name,
                    text,
                )


def test_charts_name_their_axes(figures):
    assert figures["confusion_matrix"].axes[0].get_xlabel() == "predicted class"
    assert figures["confusion_matrix"].axes[0].get_ylabel() == "true class"
    assert figures["reliability_diagram"].axes[0].get_ylabel() == "accuracy"
    assert "confidence" in figures["reliability_diagram"].axes[1].get_xlabel()
    assert [axis.get_ylabel() for axis in figures["history"].axes] == [
        "loss",
        "validation score",
        "learning rate",
    ]
    assert figures["scores_with_floors"].axes[0].get_xlabel() == "Accuracy, 95 % interval"


def test_the_confusion_matrix_shows_counts_and_row_percentages():
    metrics = {
        "classes": {"a": 4, "b": 0},
        "confusion_matrix": [[3, 1], [0, 0]],
        "n_repeats": 1,
        "n_images": 4,
    }
    shown = texts(confusion_matrix(metrics))
    assert "3\n75 %" in shown and "1\n25 %" in shown
    assert shown.count("0\nno images") == 2


def drawn(axis):
    """The lines of the axes without those that only stand in the legend."""
    return [line for line in axis.lines if len(line.get_xdata())]


def test_thin_lines_and_a_median_for_several_trainings():
    losses, scores, _ = history(pd.concat([training(0), training(1), training(5)])).axes
    assert len(drawn(losses)) == 8 and len(drawn(scores)) == 4
    assert losses.get_legend_handles_labels()[1] == [
        "train, median of 3",
        "validation, median of 3",
    ]
    middle = drawn(losses)[6]
    assert middle.get_linewidth() > drawn(losses)[0].get_linewidth()
    assert np.allclose(middle.get_ydata(), 1 / np.arange(1, 6) + 1)
    assert len(drawn(history(training()).axes[0])) == 2
    with pytest.raises(InputError, match="nothing to draw"):
        history(pd.DataFrame({"epoch": []}))


def test_scores_without_interval_or_value_are_said_to_be_so(figures):
    shown = texts(figures["scores_with_floors"])
    assert "0.900 [0.850, 0.940]" in shown and "0.600" in shown and "n/a" in shown
    with pytest.raises(InputError, match="best"):
        scores_with_floors([("x", "best", Estimate(1.0, 1.0, 1.0))])
    with pytest.raises(InputError, match="nothing to draw"):
        scores_with_floors([])


def test_dots_and_intervals_stand_where_their_values_are(figures):
    axis = figures["scores_with_floors"].axes[0]
    points = [line for line in drawn(axis) if line.get_marker() != "None"]
    places = {}
    for line in points:
        for value, at in zip(line.get_xdata(), line.get_ydata(), strict=True):
            if np.isfinite(value):
                places[at] = value
    assert places == {0: 0.9, 1: 0.6}
    spans = [sorted(line.get_xdata()) for line in drawn(axis) if line.get_marker() == "None"]
    assert [0.85, 0.94] in spans


def test_the_reliability_diagram_shows_each_bin_at_its_accuracy_and_stretches_the_sure_end():
    images = image_set(n=300)
    sure = apply_temperature(predict(images), 0.05)
    figure = reliability_diagram(sure)
    bins = reliability_bins(sure)
    dots = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert dots.get_ydata().tolist() == bins["accuracy"].tolist()
    assert dots.get_xdata().tolist() == bins["confidence"].clip(upper=0.9999).tolist()
    ends = [segment[:, 1].tolist() for segment in figure.axes[0].collections[0].get_segments()]
    assert np.allclose(ends, bins[["low", "high"]])
    assert figure.axes[1].get_xscale() == "logit"
    bars = figure.axes[1].lines[0].get_ydata()
    assert bars.sum() >= 300 - 1


def test_wrong_predictions_come_surest_first_and_none_is_said():
    images = image_set()
    predictions = predict(images)
    shown = texts(predictions_sheet(images, predictions))
    wrong = predictions.table[predictions.table["predicted"] != predictions.table["label"]]
    top = predictions.probabilities.max(axis=1)[wrong.index].max()
    assert any(text.startswith(f"Wrong: {len(wrong)} of 30") for text in shown)
    assert f"{top:.2f}" in next(text for text in shown if text.split("\n")[-1].startswith("→"))

    right = Predictions(predictions.table.assign(predicted=predictions.table["label"]), CLASSES)
    assert "Wrong: none of 30" in texts(predictions_sheet(images, right))


def test_the_image_sheet_counts_and_scales():
    shown = texts(image_sheet(image_set(pixel_size_nm=(16.0, 16.0))))
    assert "Mushroom\nn = 10" in shown and "50 nm" in shown  # 20 px of 16 nm are 320 nm wide
    assert "n = 10" not in shown
    assert not any("nm" in text.split() for text in texts(image_sheet(image_set())))
    few = texts(image_sheet(image_set(n=3), per_class=4))
    assert "Stubby\nn = 1" in few


@pytest.mark.parametrize(
    ("shape", "dtype", "channels"),
    [
        ((4, 12, 14), np.uint16, ("DNA", "actin", "tubulin", "ER")),
        ((1, 5, 12, 14), np.uint8, ("EM",)),
        ((2, 5, 12, 14), np.uint16, ("EM", "mask")),
        ((3, 12, 14), np.uint8, ("red", "green", "blue")),
    ],
)
def test_sheets_of_many_channels_and_of_volumes(shape, dtype, channels):
    images = image_set(shape, dtype, channels)
    legend = [text for text in texts(image_sheet(images, per_class=2)) if text in channels]
    assert legend == (list(channels) if len(channels) > 1 and channels[0] != "red" else [])
    predictions_sheet(images, predict(images)).savefig(io.BytesIO())


def test_masks_are_white_on_dark_whatever_their_values():
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    for image in (
        mask,
        mask * 255,
        mask.astype(bool),
        mask[None] + 7,
        mask.astype(np.uint16) * 900,
    ):
        assert np.array_equal(to_display(image), mask)
    assert np.array_equal(to_display(np.zeros((3, 3), np.uint8)), np.zeros((3, 3)))
    assert np.array_equal(to_display(np.full((3, 3), 255, np.uint8)), np.ones((3, 3)))


def test_grey_keeps_its_range_photographs_their_colour_and_16_bit_is_stretched():
    grey = np.arange(100, dtype=np.uint8).reshape(10, 10)
    assert np.allclose(to_display(grey), grey / 255)
    photograph = np.random.default_rng(0).integers(0, 256, (3, 6, 7), dtype=np.uint8)
    assert np.allclose(
        to_display(photograph, ("Red", "Green", "Blue")), photograph.transpose(1, 2, 0) / 255
    )
    dim = to_display(np.arange(100, dtype=np.uint16).reshape(10, 10) + 300)
    assert dim.min() == 0 and dim.max() == 1
    volume = np.zeros((1, 5, 4, 4), np.uint8)
    volume[0, 2] = 200
    assert np.allclose(to_display(volume), 200 / 255)
    assert to_display(np.zeros((5, 4, 4), np.uint16)).shape == (4, 4, 3)
    with pytest.raises(InputError, match="cannot be shown"):
        to_display(np.zeros((6, 4, 4)))


@pytest.mark.filterwarnings("error:Glyph")
def test_a_dollar_in_a_name_is_a_dollar():
    from nbhelpers.figures.gallery import prediction_gallery

    classes = ("a$b^$", "$x_{", "c $")
    images = image_set()
    names = dict(zip(CLASSES, classes, strict=True))
    table = images.table.assign(
        id="$_" + images.table["id"] + "^$", label=images.table["label"].map(names)
    )
    images = ImageSet(
        "test", table, images.pixels, classes, "made for a test", True, channels=("mask",)
    )
    predictions = Predictions.build(
        ids=images.ids,
        labels=table["label"],
        groups=images.groups,
        classes=classes,
        probabilities=np.random.default_rng(0).dirichlet([1, 1, 1], len(images)),
    )
    new = predictions.table.rename(columns={"id": "name"}).assign(
        low_confidence=True, out_of_distribution=False
    )
    rows = [("$model^$", "model", Estimate(0.9))]
    parts = {"repeat": 0, "fold": 0, "part": "train", "id": images.ids, "group": images.groups}
    split = Split(pd.DataFrame(parts), "test", 0)
    for figure in (
        image_sheet(images),
        predictions_sheet(images, predictions),
        class_balance(images, split),
        confusion_matrix(evaluate(predictions)),
        prediction_gallery(images, new),
        scores_with_floors(rows),
    ):
        figure.savefig(io.BytesIO(), dpi=40)
        texts = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert texts and not any(text.get_parse_math() for text in texts)


def test_bars_say_the_mean_and_the_range_over_the_folds():
    images = image_set()
    first = np.where(np.arange(30) < 16, "train", "test")
    second = np.where(np.arange(30) < 20, "train", "test")
    parts = [
        pd.DataFrame({"repeat": 0, "fold": fold, "part": part, "id": images.ids})
        for fold, part in enumerate((first, second))
    ]
    table = pd.concat(parts, ignore_index=True).assign(group=[*images.groups, *images.groups])
    figure = class_balance(images, Split(table, "test", 0))
    assert [bar.get_width() for bar in figure.axes[0].containers[0]] == [6.5, 6.0, 5.5]
    shown = texts(figure)
    assert "6 to 7" in shown and "5 to 6" in shown and "images (2 folds)" in shown


def test_the_scale_bar_ends_inside_the_picture_and_is_seen_on_white():
    figure = image_sheet(image_set(pixel_size_nm=(16.0, 16.0)), per_class=8)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    text = next(text for text in figure.axes[0].texts if text.get_text() == "50 nm")
    assert text.get_window_extent().x1 <= figure.axes[0].get_window_extent().x1
    assert text.get_path_effects()


def test_a_constant_rate_looks_constant():
    low, high = history(training()).axes[-1].get_ylim()
    assert low == 0 and high > 1e-3


def test_colours_of_classes_stay_the_same():
    assert class_colours(("a", "b")) == {"a": "#0072B2", "b": "#E69F00"}
    assert len(set(class_colours([str(index) for index in range(8)]).values())) == 8
