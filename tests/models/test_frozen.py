"""Frozen features: taps, views, the cache, and heads that are what they say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.models import frozen
from nbhelpers.models.frozen import (
    PARTS,
    TAPS,
    View,
    fit_linear_head,
    fit_neural_head,
    frozen_features,
    make_features,
    make_views,
    mean_features,
)
from nbhelpers.phantoms.glomerulus import load_phantom_glomeruli


@pytest.fixture(scope="module")
def images():
    return load_phantom_glomeruli(24, 1, size_px=48)


@pytest.fixture(scope="module")
def network():
    return make_features("squeezenet1_0", weights="none", seed=1)


@pytest.mark.parametrize("backbone", ["squeezenet1_0", "mobilenet_v2", "resnet18"])
def test_taps_give_finite_features_in_named_columns(backbone):
    network = make_features(backbone, weights="none")
    found = network.train()(torch.rand(2, 3, 64, 64))
    assert (
        found.shape == (2, network.width) and torch.isfinite(found).all() and not network.training
    )
    columns = [network.columns(part) for part in PARTS]
    assert set(np.concatenate(columns)) == set(range(network.width))
    assert not set(columns[2]) & (set(columns[0]) | set(columns[1]))
    assert len(TAPS[backbone][0]) <= len(network.taps)


def test_a_flat_image_has_no_texture_and_the_pooled_part_is_a_mean(network):
    with torch.no_grad():
        varied = network(torch.rand(1, 3, 64, 64))
        maps = network.body((torch.full((1, 3, 64, 64), 0.4) - network.mean) / network.std)
        flat = network(torch.full((1, 3, 64, 64), 0.4))
    last = maps[network.taps[-1]]
    assert torch.allclose(flat[:, network.columns("pooled")], last.mean((2, 3)), atol=1e-5)
    middle = network.columns("middle")
    assert flat[:, middle].mean() < varied[:, middle].mean()


def test_random_weights_come_from_the_seed_and_leave_torchs_own_alone():
    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = (
        make_features("squeezenet1_0", weights="none", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), before)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(one(images), two(images)) and not torch.equal(one(images), other(images))


def test_weights_of_a_file_are_taken(tmp_path):
    from nbhelpers.models.weights import make_backbone

    torch.manual_seed(3)
    source = make_backbone("squeezenet1_0")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    network = make_features("squeezenet1_0", weights=tmp_path / "weights.pth").eval()
    images = torch.rand(1, 3, 64, 64)
    pooled = network(images)[:, network.columns("pooled")]
    assert torch.allclose(pooled, source.eval()((images - network.mean) / network.std), atol=1e-5)


# views


def test_the_first_view_is_the_image_and_views_do_not_depend_on_how_many_there_are():
    views = make_views(10, seed=3)
    assert (
        views[0] == View()
        and views[:4] == make_views(4, seed=3)
        and make_views(4, seed=4)[1] != views[1]
    )
    pixels = torch.rand(2, 3, 40, 40)
    assert torch.equal(views[0](pixels), pixels)
    assert all(view(pixels).shape == pixels.shape for view in views)


@given(st.integers(0, 23), st.integers(24, 60))
@settings(max_examples=20, deadline=None)
def test_a_view_of_one_image_does_not_depend_on_its_neighbours(number, size):
    view = make_views(24)[number]
    images = torch.rand(3, 3, size, size)
    assert torch.allclose(view(images)[1:2], view(images[1:2]), atol=1e-5)
    assert view(images).min() >= -1e-5 and view(images).max() <= 1 + 1e-5


def test_without_stain_no_view_changes_dyes():
    assert not any(view.dyes for view in make_views(12, stain=0)) and any(
        view.zoom > 1 for view in make_views(12, stain=0)
    )
    with pytest.raises(ParameterError, match="views"):
        make_views(0)


# the cache


def test_features_are_computed_once_and_found_by_all_they_depend_on(
    network, images, tmp_path, monkeypatch
):
    found = frozen_features(network, images, make_views(2), cache_folder=tmp_path)
    assert np.allclose(found, mean_features(network, images.pixels, make_views(2)), atol=1e-4)
    same = make_features("squeezenet1_0", weights="none", seed=1)
    again = frozen_features(same, images, make_views(2), cache_folder=tmp_path)
    assert np.array_equal(found, again) and len(list(tmp_path.glob("features-*.npy"))) == 1
    monkeypatch.setattr(
        frozen, "mean_features", lambda *arguments, **named: pytest.fail("computed again")
    )
    assert np.array_equal(
        found, frozen_features(network, images, make_views(2), cache_folder=tmp_path)
    )
    monkeypatch.undo()
    reseeded = make_features("squeezenet1_0", weights="none", seed=2)
    unscaled = make_features("squeezenet1_0", weights="none", seed=1, preprocessing="published")
    for other in (
        (network, images.take(range(20)), make_views(2)),
        (network, images, make_views(3)),
        (reseeded, images, make_views(2)),
        (unscaled, images, make_views(2)),
    ):
        frozen_features(*other, cache_folder=tmp_path)
    assert len(list(tmp_path.glob("features-*.npy"))) == 5


def test_grey_images_are_refused(network, images, tmp_path):
    from dataclasses import replace

    grey = replace(images, pixels=images.pixels[:, :1], channels=("grey",), content_hash="")
    with pytest.raises(InputError, match="three colour channels"):
        frozen_features(network, grey, make_views(1), cache_folder=tmp_path)


# heads


@pytest.fixture(scope="module")
def separable():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 120)
    return draw.normal(size=(120, 6)) + labels[:, None] * [2, 0, 0, 1, 0, 0], labels


def test_the_linear_head_is_the_logistic_regression(separable):
    features, labels = separable
    head = fit_linear_head(features, labels, [np.arange(6)], regularisation=0.5)
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=0.5, max_iter=1000).fit(scaler.transform(features), labels)
    assert np.allclose(
        head.probabilities(features), model.predict_proba(scaler.transform(features)), atol=1e-6
    )


def test_a_column_of_rounding_errors_has_no_weight(separable):
    """Random filters that never fire give columns such as this one: on the next image the error
    may be a thousand times as large.
    """
    features, labels = separable
    errors = np.random.default_rng(1).normal(0, 6e-15, (120, 1))
    both = np.concatenate([features, errors], 1)
    new = both[:5].copy()
    new[:, 6] = 1e-10
    head = fit_linear_head(both, labels, [np.arange(7)], regularisation=0.5)
    assert np.allclose(head.probabilities(new), head.probabilities(both[:5]))
    neural = fit_neural_head(both, labels, epochs=2)
    assert np.allclose(neural.probabilities(new), neural.probabilities(both[:5]))


def test_several_parts_are_averaged_and_views_average_to_logits(separable):
    features, labels = separable
    parts = [np.array([0, 1, 2]), np.array([2, 3, 4])]
    both = fit_linear_head(features, labels, parts, regularisation=1)
    alone = [fit_linear_head(features, labels, [part], regularisation=1) for part in parts]
    assert np.allclose(
        both.logits(features), (alone[0].logits(features) + alone[1].logits(features)) / 2
    )
    shifted = features + 1
    assert np.allclose(
        both.logits((features + shifted) / 2), (both.logits(features) + both.logits(shifted)) / 2
    )


def test_three_classes_and_an_absent_class(separable):
    features, _ = separable
    labels = np.arange(120) % 3
    head = fit_linear_head(
        features + labels[:, None], labels, [np.arange(6)], regularisation=1, classes=3
    )
    assert head.probabilities(features).shape == (120, 3)
    with pytest.raises(InputError, match="no training image of class number 1"):
        fit_linear_head(features, np.zeros(120, int), [np.arange(6)], regularisation=1)


def test_neural_heads_learn_and_are_the_same_from_the_same_seed(separable):
    features, labels = separable
    heads = [
        fit_neural_head(features, labels, epochs=80, learning_rate=3e-3, attention=True, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert (heads[0].probabilities(features).argmax(1) == labels).mean() > 0.85
    assert np.array_equal(heads[0].probabilities(features), heads[1].probabilities(features))
    assert not np.array_equal(heads[0].probabilities(features), heads[2].probabilities(features))


def test_a_head_whose_loss_is_not_finite_is_not_given_out():
    features = np.random.default_rng(0).normal(size=(64, 8))
    features[3, 2] = np.nan
    words = "training, head, epoch 1, step [12]: the loss is nan at a learning rate of 0.0001"
    with pytest.raises(InputError, match=words):
        fit_neural_head(features, np.arange(64) % 2, kind="custom")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_features("vgg16", weights="none"), "vgg16.*is unknown"),
        (lambda: make_features("resnet18", weights="none", preprocessing="x"), "preprocessing"),
    ],
)
def test_unknown_names(call, words):
    with pytest.raises(ParameterError, match=words):
        call()
