"""Where it fails: each quality number follows what was done to the image, and errors are found
where they were put.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.quality import (
    QUALITIES,
    errors_by_neuron,
    errors_by_quality,
    failure_sentences,
    image_quality,
)

CLASSES = ("a", "b")


def texture(seed=0, blur=1.5, size=96):
    values = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), blur)
    return 128 + 30 * values / values.std()


def measured(*images, dtype=np.uint8, factor=1):
    pixels = np.stack(
        [np.clip(np.rint(image * factor), 0, np.iinfo(dtype).max).astype(dtype) for image in images]
    )
    pixels = pixels[:, None]
    table = pd.DataFrame({"id": [str(at) for at in range(len(pixels))], "label": "a", "group": "g"})
    return image_quality(ImageSet("test", table, pixels, CLASSES, "a test", True))


def test_each_number_follows_what_was_done_to_the_image():
    image = texture()
    rng = np.random.default_rng(1)
    plain, blurred, dim, noisy, cut = measured(
        image,
        texture(blur=3),
        64 + (image - 128) / 2,
        image + rng.normal(0, 10, image.shape),
        np.where(np.arange(96) < 24, 0, image),
    ).to_dict("records")
    assert blurred["sharpness"] < 0.3 * plain["sharpness"]
    assert dim["sharpness"] == pytest.approx(plain["sharpness"], rel=0.05)
    assert dim["contrast"] == pytest.approx(plain["contrast"] / 2, rel=0.02)
    assert dim["brightness"] == pytest.approx(64, abs=1) and plain["brightness"] == pytest.approx(
        128, abs=1
    )
    assert cut["zero_fraction"] == 0.25 and plain["zero_fraction"] == 0
    assert noisy["noise"] > plain["noise"] + 5


@pytest.mark.parametrize("sigma", [4.0, 8.0, 16.0])
def test_the_noise_is_found_in_grey_levels(sigma):
    image = texture(blur=6) + np.random.default_rng(2).normal(0, sigma, (96, 96))
    assert measured(image)["noise"].item() == pytest.approx(sigma, rel=0.12)


def test_bit_depth_does_not_matter_and_black_images_are_no_error():
    image = texture()
    eight = measured(image)
    deep = measured(image, dtype=np.uint16, factor=257)
    assert deep.drop(columns="id").to_numpy() == pytest.approx(
        eight.drop(columns="id").to_numpy(), rel=0.01, abs=0.3
    )
    black = measured(np.zeros((32, 32))).iloc[0]
    assert black["sharpness"] == 0 and black["zero_fraction"] == 1


def test_cubes_are_means_over_their_sections():
    sections = np.stack([texture(0), texture(1)]).astype(np.uint8)
    table = pd.DataFrame({"id": ["1"], "label": ["a"], "group": ["g"]})
    cube = image_quality(ImageSet("test", table, sections[None, None], CLASSES, "a test", True))
    alone = measured(*sections)
    assert cube[list(QUALITIES)].iloc[0].to_numpy() == pytest.approx(
        alone[list(QUALITIES)].mean().to_numpy()
    )


def predict(wrong, groups, labels=None):
    labels = ["a"] * len(wrong) if labels is None else labels
    first = [
        0.1 if (label == "a") == bool(is_wrong) else 0.9
        for label, is_wrong in zip(labels, wrong, strict=True)
    ]
    return Predictions.build(
        ids=[f"i{at}" for at in range(len(wrong))],
        labels=labels,
        groups=groups,
        classes=CLASSES,
        probabilities=np.stack([first, 1 - np.array(first)], 1),
    )


def blurred_ones_fail(n=400, neurons=20, seed=0):
    rng = np.random.default_rng(seed)
    sharpness = rng.uniform(0, 1, n)
    wrong = rng.random(n) < np.where(sharpness < 0.25, 0.4, 0.05)
    quality = pd.DataFrame(
        {
            "id": [f"i{at}" for at in range(n)],
            "sharpness": sharpness,
            "contrast": rng.uniform(0, 1, n),
            "constant": 1.0,
        }
    )
    return predict(wrong, [f"n{at % neurons}" for at in range(n)]), quality, wrong


def test_errors_are_found_where_they_were_put():
    predictions, quality, wrong = blurred_ones_fail()
    table = errors_by_quality(predictions, quality)
    assert set(table["quality"]) == {"sharpness", "contrast"}  # what never varies has no quarters
    sharp = table[table["quality"] == "sharpness"]
    assert (
        sharp["n"].tolist() == [100] * 4
        and (sharp["to"].to_numpy()[:-1] <= sharp["from"].to_numpy()[1:]).all()
    )
    assert sharp["error"].mean() == pytest.approx(wrong.mean())
    assert sharp["difference_low"].iloc[0] > 0.1
    assert ((table["low"] <= table["error"]) & (table["error"] <= table["high"])).all()
    other = table[table["quality"] == "contrast"]
    assert other["difference_low"].iloc[0] < 0 < other["difference_high"].iloc[0]
    said = failure_sentences(table, errors_by_neuron(predictions))
    assert "low sharpness" in said[0] and not any("contrast" in line for line in said)


def test_black_pixels_in_a_few_images_are_set_against_none():
    predictions, quality, _ = blurred_ones_fail(200)
    quality["zero_fraction"] = np.where(np.arange(200) < 20, 0.1, 0.0)
    table = errors_by_quality(predictions, quality[["id", "zero_fraction"]])
    assert table["n"].tolist() == [180, 20] and table["to"].iloc[0] == 0


def test_qualities_that_do_not_matter_are_rarely_blamed():
    blamed = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        quality = pd.DataFrame({"id": [f"i{at}" for at in range(300)], "x": rng.uniform(size=300)})
        predictions = predict(rng.random(300) < 0.15, [f"n{at % 15}" for at in range(300)])
        first = errors_by_quality(predictions, quality).iloc[0]
        blamed += first["difference_low"] > 0 or first["difference_high"] < 0
    assert blamed <= 4


def test_the_worst_neuron_stands_first_and_few_synapses_are_not_called_worst():
    wrong = [1] * 12 + [0] * 8 + [1] + [0] * 19 + [1]
    groups = ["bad"] * 20 + ["good"] * 20 + ["tiny"]
    table = errors_by_neuron(predict(wrong, groups, ["a"] * 20 + ["b"] * 21))
    assert table["neuron"].tolist() == ["bad", "tiny", "good"]
    assert table["errors"].tolist() == [12, 1, 1] and table["wrong_as"].tolist() == ["b", "a", "a"]
    said = failure_sentences(pd.DataFrame(columns=["quality"]), table)
    assert "1 of 3 neurons" in said[-1] and "bad (60% of 20)" in said[-1]


def test_repeats_count_images_once():
    predictions = predict([1, 0, 0, 0], ["n", "n", "m", "m"])
    twice = Predictions.concatenate(
        [predictions, Predictions(predictions.table.assign(repeat=1), CLASSES)]
    )
    pd.testing.assert_frame_equal(errors_by_neuron(twice), errors_by_neuron(predictions))


def test_bad_input():
    predictions, quality, _ = blurred_ones_fail(40, 4)
    with pytest.raises(PredictionsError, match="i39"):
        errors_by_quality(predictions, quality[:39])
    with pytest.raises(PredictionsError, match="contrast"):
        errors_by_quality(predictions, quality.assign(contrast=np.nan))
