"""Losses with soft labels agree with hard ones; mixed labels are the true shares of what is in the
image.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import ParameterError
from nbhelpers.training.losses import balanced_bce, cross_entropy, make_loss, soft_labels
from nbhelpers.training.mixing import cutmix, mix_batch
from nbhelpers.training.recipe import Recipe


@st.composite
def batches(draw, classes=None):
    count = draw(st.integers(1, 9))
    classes = classes or draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    return (
        3 * torch.randn(count, classes, generator=generator),
        torch.randint(classes, (count,), generator=generator),
        classes,
    )


@given(
    batches(),
    st.sampled_from(["cross_entropy", "balanced_bce"]),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_whole_share_is_a_hard_label(batch, name, smoothing, weighted):
    logits, labels, classes = batch
    recipe = Recipe(loss=name, label_smoothing=smoothing)
    weight = torch.arange(1, classes + 1.0) if weighted else None
    loss = make_loss(recipe, np.arange(3, 3 + classes), weight)
    torch.testing.assert_close(
        loss(logits, labels), loss(logits, soft_labels(labels, classes)), rtol=1e-4, atol=1e-5
    )


@given(batches(), st.booleans(), st.sampled_from([0.0, 0.2]))
@settings(max_examples=40, deadline=None)
def test_cross_entropy_is_torchs(batch, weighted, smoothing):
    logits, labels, classes = batch
    weight = torch.arange(1, classes + 1.0) if weighted else None
    expected = F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    assert torch.equal(cross_entropy(logits, labels, weight=weight, smoothing=smoothing), expected)


@given(batches(classes=2), st.integers(1, 90))
@settings(max_examples=40, deadline=None)
def test_balanced_bce_of_two_classes_is_balanced_cross_entropy(batch, first):
    logits, labels, _ = batch
    counts = torch.tensor([float(first), 100.0 - first])
    weight = 100 / (2 * counts)
    expected = (F.cross_entropy(logits, labels, reduction="none") * weight[labels]).mean()
    torch.testing.assert_close(
        balanced_bce(logits, labels, counts=counts), expected, rtol=1e-4, atol=1e-5
    )


def test_balanced_bce_of_three_classes_is_that_of_the_softmax():
    logits = torch.tensor([[1.0, -0.5, 0.3]])
    labels = torch.tensor([2])
    counts = torch.tensor([10.0, 20.0, 70.0])
    p = logits.softmax(1)
    t = torch.tensor([[0.0, 0.0, 1.0]])
    own = 50 / counts
    rest = 50 / (100 - counts)
    expected = -(own * t * p.log() + rest * (1 - t) * (1 - p).log()).mean()
    torch.testing.assert_close(balanced_bce(logits, labels, counts=counts), expected)


@given(st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=20, deadline=None)
def test_rare_classes_pull_as_hard_as_common_ones(rare, common):
    """Over a whole epoch, a network that knows nothing is pulled to neither class."""
    labels = torch.cat([torch.zeros(rare), torch.ones(common)]).long()
    logits = torch.zeros(rare + common, 2, requires_grad=True)
    balanced_bce(logits, labels, counts=torch.tensor([float(rare), float(common)])).backward()
    torch.testing.assert_close(logits.grad.sum(0), torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["cross_entropy", "balanced_bce"])
def test_extreme_logits_stay_finite(name):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = make_loss(Recipe(loss=name), np.array([1, 1]))(
        logits, torch.tensor([[0.7, 0.3], [0.5, 0.5]])
    )
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def flagged(count=64, shape=(6, 10, 12)):
    """Image i is full of the number i, so that what is in a mixed image can be counted."""
    return (
        torch.arange(count, dtype=torch.float32)
        .view(-1, *[1] * (len(shape) + 1))
        .expand(-1, 1, *shape)
        .clone()
    )


@given(
    st.integers(0, 2**40),
    st.sampled_from([(6, 10, 12), (9, 7)]),
    st.sampled_from([0.1, 0.4, 1.0, 5.0]),
)
@settings(max_examples=30, deadline=None)
def test_cutmix_labels_are_the_true_volume_shares(seed, shape, alpha):
    images = flagged(shape=shape)
    labels = torch.arange(64)
    mixed, shares = mix_batch(images, labels, 64, mix="cutmix", alpha=alpha, seed=seed)
    for image, share in zip(mixed, shares, strict=True):
        counted = torch.bincount(image.flatten().long(), minlength=64) / image.numel()
        torch.testing.assert_close(share, counted.float(), atol=1e-5, rtol=0)


@given(st.integers(0, 2**40))
@settings(max_examples=20, deadline=None)
def test_mixup_labels_are_the_weights_of_the_images(seed):
    images = F.one_hot(torch.arange(64)).float().view(64, 64, 1, 1, 1).expand(-1, -1, 2, 3, 3)
    labels = torch.arange(64)
    mixed, shares = mix_batch(images, labels, 64, mix="mixup", alpha=0.4, seed=seed)
    torch.testing.assert_close(mixed[..., 0, 0, 0], shares, atol=1e-5, rtol=0)
    assert mixed.shape == images.shape


def test_boxes_that_reach_over_the_border_count_less_than_asked():
    rng = np.random.default_rng(0)
    asked = np.full(500, 0.5)
    _, left = cutmix(flagged(500), torch.roll(torch.arange(500), 1), asked, rng)
    assert (
        left.min() > 0.4 and left.mean() > 0.6
    )  # much was cut off; nominal labels would be wrong by .1 and more
    _, none = cutmix(flagged(500), torch.roll(torch.arange(500), 1), np.ones(500), rng)
    assert (none == 1).all()


@given(st.integers(0, 2**40), st.sampled_from(["mixup", "cutmix", "both"]))
@settings(max_examples=20, deadline=None)
def test_mixing_follows_its_seed_and_leaves_the_input_alone(seed, mix):
    images = flagged(16)
    labels = torch.arange(16) % 3
    before = images.clone()
    one, again, other = (
        mix_batch(images, labels, 3, mix=mix, alpha=1.0, seed=value)
        for value in (seed, seed, seed + 1)
    )
    assert (
        torch.equal(one[0], again[0])
        and torch.equal(one[1], again[1])
        and not torch.equal(one[0], other[0])
    )
    assert torch.equal(images, before)
    torch.testing.assert_close(one[1].sum(1), torch.ones(16))


def test_both_uses_both():
    mixed, _ = mix_batch(flagged(200), torch.arange(200), 200, mix="both", alpha=1.0, seed=0)
    whole = (mixed.flatten(1) == mixed.flatten(1).round()).all(
        1
    )  # boxes keep whole numbers, blends do not
    assert 60 < int(whole.sum()) < 140


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"loss": "bce"}, "loss.*balanced_bce"),
        ({"mix": "cutout"}, "mix.*cutmix"),
        ({"mix_alpha": 0}, "mix_alpha"),
        ({"loss": "focal"}, "loss.*cross_entropy, balanced_bce"),
        ({"loss": "balanced_bce", "class_weight_power": 1}, "balances.*already"),
    ],
)
def test_wrong_recipes_are_named(wrong, words):
    with pytest.raises(ParameterError, match=words):
        Recipe(**wrong)
