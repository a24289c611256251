"""Sanity checks of maps: sound maps pass, maps that are not about the network fail, and every
figure is what it says.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbhelpers.core.errors import InputError
from nbhelpers.core.means import mean_interval
from nbhelpers.saliency import checks
from nbhelpers.saliency.checks import (
    Injected,
    corner_energy,
    energy_ratio,
    fit_cause,
    in_words,
    judge,
    least_energy,
    pointing,
    similarity,
    stability,
    typical,
    verdict_table,
    weight_cascade,
)
from nbhelpers.saliency.perturbation import STEPS, Scorer, central_blobs, filled_in, random_maps
from nbhelpers.training.checkpoints import hash_of_weights

SPOT = 5


class SpotNetwork(nn.Module):
    """Knows what a bright spot is, in 2D or 3D: class 1 where there is one. ``corner`` looks into
    the upper left alone.
    """

    def __init__(self, axes=2, corner=False):
        super().__init__()
        convolution = nn.Conv2d if axes == 2 else nn.Conv3d
        self.find = nn.Sequential(
            convolution(1, 4, 3, padding=1), nn.ReLU(), convolution(4, 4, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(4, 2)
        self.corner = corner
        with torch.no_grad():
            for layer in (self.find[0], self.find[2]):
                layer.weight.fill_(1 / layer.weight[0].numel())
            self.find[0].bias.fill_(-0.3)
            self.find[2].bias.zero_()
            self.head.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
            self.head.bias.copy_(torch.tensor([1.0, -1.0]))

    def forward(self, images):
        found = self.find(images)
        if self.corner:
            found = found[..., :8, :8]
        return self.head(
            (150 if found.ndim == 5 else 60)
            * found.flatten(2).mean(2)
            * (found.shape[-1] / 32) ** 2
        )


def spots(count=12, axes=2, seed=0, mark=False):
    """Images with a spot away from the corners, and where it is; with ``mark`` also a square in the
    upper left corner.
    """
    draw = np.random.default_rng(seed)
    side = (8, 32, 32)[-axes:]
    images = torch.zeros(count, 1, *side)
    cause = np.zeros((count, *side), bool)
    for image, truth in zip(images, cause, strict=True):
        corner = [
            draw.integers(0, length - SPOT) if length < 32 else draw.integers(8, 19)
            for length in side
        ]
        truth[tuple(slice(start, start + SPOT) for start in corner)] = True
        image[0][torch.from_numpy(truth)] = 1
        if mark:
            image[..., :6, :6] = 1
    return images + 0.02 * torch.from_numpy(draw.random(images.shape, dtype=np.float32)), cause


@pytest.fixture(scope="module", params=[2, 3])
def sound(request):
    images, cause = spots(axes=request.param)
    return judge(
        SpotNetwork(request.param),
        images,
        name="spots",
        classes=np.ones(len(images)),
        injected=Injected(cause),
        method="gradcam",
        seed=3,
    )


def test_a_sound_map_passes_in_2d_and_in_3d(sound):
    table = sound.table.set_index("check")
    assert sound.failed == [] and sound.verdict.startswith("passed "), sound.table
    judged = table["passed"].notna()  # a blob in the middle may be as good
    assert judged[~table.index.str.contains("blob") & (table["must be"] != "informational")].all()
    assert table.at["injected cause", "value"] > 5 and table.at["pointing game", "value"] == 1
    assert np.isfinite(table["value"]).all() and (table["n"] == 12).all()
    assert (
        table.at["injected cause, other class", "value"] < 1
    )  # nothing there speaks against the spot
    curves = sound.curves.set_index(["map", "order", "share"])["probability"]
    assert curves["map", "insertion", 1.0] == pytest.approx(
        curves["map", "deletion", 0.0], abs=1e-6
    )
    assert curves["map", "deletion", 0.2] < curves["random map", "deletion", 0.2] - 0.2


def test_a_map_that_is_not_about_the_network_fails(monkeypatch):
    """An edge detector in place of a map: the random weights do not change it."""
    images, cause = spots()
    edges = np.abs(np.diff(images.numpy()[:, 0], axis=1, append=0))[:, None]
    monkeypatch.setattr(checks, "saliency_maps", lambda *_, **__: edges)
    found = judge(
        SpotNetwork(), images, name="edges", classes=np.ones(12), injected=Injected(cause)
    )
    assert "random weights" in found.failed and found.verdict.startswith("FAILED")


def test_a_tie_with_a_blob_in_the_middle_is_no_pass_and_no_failure(monkeypatch):
    images, _ = spots()
    monkeypatch.setattr(
        checks, "saliency_maps", lambda *_, **__: central_blobs(np.zeros(images.shape))
    )
    found = judge(SpotNetwork(), images, name="blob", classes=np.ones(12)).table.set_index("check")[
        "passed"
    ]
    assert [
        found[f"{check}, over blob in the middle"] for check in ("insertion - deletion", "ROAD")
    ] == [None, None]
    told = in_words(judge(SpotNetwork(), images, name="blob", classes=np.ones(12)).table).set_index(
        "check"
    )["passed"]
    assert told["ROAD, over blob in the middle"] == "open" and told["random weights, by rank"] == ""
    away = 1 - central_blobs(np.zeros(images.shape))  # what the middle does not hold
    middle = torch.zeros_like(images)
    middle[..., 13:18, 13:18] = 1
    monkeypatch.setattr(checks, "saliency_maps", lambda *_, **__: away)
    worse = judge(SpotNetwork(), middle, name="away", classes=np.ones(12))
    assert {
        f"{check}, over blob in the middle" for check in ("insertion - deletion", "ROAD")
    } <= set(worse.failed)


def test_maps_of_random_weights_fail_to_matter():
    torch.manual_seed(0)
    images, cause = spots()
    network = SpotNetwork()
    for layer in (network.find[0], network.find[2], network.head):
        layer.reset_parameters()
    found = judge(
        network, images, name="random", classes=np.arange(12) % 2, injected=Injected(cause)
    )
    assert found.failed and "FAIL" in " ".join(verdict_table([found]).astype(str).iloc[0])


def test_a_injected_mark_is_caught():
    images, cause = spots(mark=True)
    mark = np.zeros_like(cause)
    mark[:, :6, :6] = True
    found = judge(
        SpotNetwork(corner=True),
        images,
        name="mark",
        classes=np.ones(12),
        injected=Injected(cause, mark),
    )  # not "gradcam": it weighs whole filters, so it would mark the spot as well
    assert {"corners", "injected mark", "injected cause"} <= set(found.failed)
    table = found.table.set_index("check")
    assert (
        "upper left" in table.at["corners", "in words"] and table.at["injected mark", "value"] > 10
    )
    sound = judge(
        SpotNetwork(),
        spots()[0],
        name="no mark",
        classes=np.ones(12),
        injected=Injected(mark=mark),
    )
    assert sound.failed == []


def test_the_network_is_not_touched():
    network = SpotNetwork().train()
    (images, cause) = spots(4)
    before = hash_of_weights(network)
    judge(network, images, name="spots", classes=np.ones(4), injected=Injected(cause))
    assert hash_of_weights(network) == before and network.training and torch.is_grad_enabled()
    assert all(one.requires_grad and one.grad is None for one in network.parameters())


def test_images_without_a_cause_are_left_out_of_that_check_alone():
    images, cause = spots()
    cause[:5] = False
    groups = [f"g{at % 6}" for at in range(12)]
    found = judge(
        SpotNetwork(),
        images,
        name="some",
        classes=np.ones(12),
        injected=Injected(cause),
        groups=groups,
    )
    assert found.table.set_index("check")["n"].loc[["injected cause", "corners"]].tolist() == [
        7,
        12,
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"classes": [1]}, "4, and 1 classes"),
        ({"images": torch.rand(1, 1, 32, 32), "classes": [1]}, "there are 1"),
        ({"injected": Injected(np.ones((3, 32, 32)))}, "does not go with maps"),
        ({"injected": Injected(np.ones((4, 2, 32, 32)))}, "does not go with maps"),
        ({"injected": Injected(np.zeros((4, 32, 32)))}, "only 0 of the images"),
    ],
)
def test_what_does_not_belong_together_is_named(wrong, words):
    given_ = {"images": spots(4)[0], "classes": [1, 1, 1, 1]} | wrong
    with pytest.raises(InputError, match=words):
        judge(SpotNetwork(), given_.pop("images"), name="wrong", **given_)


# filling in


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_filled_in_is_the_linear_imputation_of_road(share):
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    torch.manual_seed(0)
    images = torch.nn.functional.avg_pool2d(torch.rand(3, 2, 36, 36), 9, 1)
    away = torch.rand(3, 1, *images.shape[2:]) < share
    ours = filled_in(images, away, noise=0)
    for image, gone, found in zip(images, away, ours, strict=True):
        theirs = NoisyLinearImputer(noise=0)(image, (~gone[0]).float())
        inner = (
            slice(None),
            slice(2, -2),
            slice(2, -2),
        )  # the library counts neighbours beyond the border otherwise
        np.testing.assert_allclose(found[inner], theirs[inner], atol=0.01)


def test_a_missing_section_is_filled_in_from_those_beside_it():
    volume = torch.linspace(0, 1, 9).view(1, 1, 9, 1, 1).expand(1, 1, 9, 16, 16)
    away = torch.zeros(1, 1, 9, 16, 16, dtype=torch.bool)
    away[:, :, 3:6] = True
    assert torch.allclose(filled_in(volume, away, noise=0), volume, atol=0.02)


@settings(max_examples=20, deadline=None)
@given(axes=st.sampled_from([2, 3]), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_filled_in_is_finite_keeps_what_is_there_and_stays_within_its_range(axes, share, seed):
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 2, *(4, 9, 7)[-axes:], generator=draw)
    away = torch.rand(2, 1, *images.shape[2:], generator=draw) < share
    found = filled_in(images, away, noise=0)
    assert torch.isfinite(found).all() and torch.equal(
        found[~away.expand_as(images)], images[~away.expand_as(images)]
    )
    assert found.min() > -0.01 and found.max() < 1.01


def test_all_taken_away_is_black_and_not_nan():
    assert (
        filled_in(torch.rand(1, 1, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool), noise=0)
        .abs()
        .max()
        == 0
    )


@pytest.mark.parametrize("axes", [2, 3])
def test_road_and_curves_tell_a_right_map_from_a_wrong_one(axes):
    images, cause = spots(axes=axes)
    scored = Scorer(SpotNetwork(axes), images, np.ones(len(images), int))
    right = cause[:, None].astype(np.float32)
    wrong = 1 - cause[:, None].astype(np.float32)
    assert (scored.road(right) > scored.road(wrong) + 0.2).all()
    inserted = scored.insertion(right)
    assert (
        inserted.shape == (12, STEPS + 1)
        and inserted[:, 1].mean() > scored.insertion(wrong)[:, 1].mean() + 0.2
    )
    np.testing.assert_allclose(inserted[:, -1], scored.probabilities[:, 1], atol=1e-6)


def test_a_map_per_stain_takes_away_that_stain_only():
    class OneStain(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.ModuleList([nn.Identity(), nn.Identity()])
            self.scale = nn.Parameter(torch.tensor(9.0))

        def forward(self, images):
            found = self.scale * (images[:, 1].mean((1, 2)) - 0.25)
            return torch.stack([-found, found], 1)

    images = torch.rand(6, 2, 16, 16)
    maps = np.zeros((6, 2, 16, 16), np.float32)
    maps[:, 1] = 1
    scored = Scorer(OneStain(), images, np.ones(6, int))
    deleted = scored.deletion(maps[:, ::-1])  # the stain that does not matter, first
    np.testing.assert_allclose(deleted[:, :3], deleted[:, :1].repeat(3, 1), atol=1e-6)


class UpperHalf(nn.Module):
    """Class 1 where the upper half is bright; ``lower``: where the lower half is."""

    def __init__(self, lower=False):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.rows = slice(16, None) if lower else slice(0, 16)

    def forward(self, images):
        found = self.scale * (images[:, 0, self.rows].mean((1, 2)) - 0.25)
        return torch.stack([-found, found], 1)


@pytest.mark.parametrize("lower", [False, True])
def test_an_empty_map_gains_nothing_wherever_the_evidence_lies(lower):
    images = torch.zeros(96, 1, 32, 32)
    rows = slice(20, 28) if lower else slice(4, 12)
    images[:, :, rows, 4:28] = 1.0
    scored = Scorer(UpperHalf(lower), images, np.ones(96, int), seed=3)
    empty = np.zeros(images.shape, np.float32)
    found = scored.road(empty)
    assert abs(found.mean()) < 3 * found.std() / np.sqrt(96) + 0.01 and abs(found.mean()) < 0.05
    gained = (scored.insertion(empty) - scored.deletion(empty)[:, ::-1]).mean()
    assert abs(gained) < 0.1
    assert (scored.road(images.numpy()) > 0.1).all()
    flat = np.full(images.shape, 0.3, np.float32)  # as empty: rounding alone orders nothing
    assert np.array_equal(scored.road(flat), found)
    again = Scorer(UpperHalf(lower), images, np.ones(96, int), seed=3).road(empty)
    assert np.array_equal(again, found)


def test_masks_are_judged_with_their_outline_moved_and_not_with_grey_noise():
    images, cause = spots(6)
    masks = torch.from_numpy(cause[:, None].astype(np.float32))
    seen = []

    def explain(network, changed):
        seen.append(changed)
        return changed.numpy()

    for given_ in (masks, images):
        stability(None, given_, given_.numpy(), explain, seed=1)
    moved, noisy = seen[0], seen[2]
    assert ((moved == 0) | (moved == 1)).float().mean() > 0.9 and not torch.equal(moved, masks)
    inner = torch.from_numpy(cause)
    assert (moved[:, 0][inner].mean() > 0.7) and moved[:, 0][~inner].mean() < 0.05
    assert (noisy != images).all()
    assert "outline" in checks._nudge(masks) and "noise" in checks._nudge(images)
    volume = torch.zeros(2, 1, 6, 16, 16)
    volume[..., 2:4, 5:11, 5:11] = 1
    assert checks._outline_moved(volume, torch.Generator().manual_seed(0)).shape == volume.shape


def test_checks_decide_by_their_interval():
    rows = checks._Checks(np.arange(12), 0)
    near = np.linspace(0.5, 1.05, 12)  # its mean lies below .8, its interval holds it
    rows.add("a", near, "at least 0.8", checks._at_least(0.8), "")
    rows.add("b", near + 1, "at least 0.8", checks._at_least(0.8), "")
    rows.add("c", near - 1, "at least 0.8", checks._at_least(0.8), "")
    rows.add("d", near, "below 0.8", checks._below(0.8), "")
    rows.add("e", near - 1, "below 0.8", checks._below(0.8), "")
    rows.add("f", near + 1, "below 0.8", checks._below(0.8), "")
    assert [row["passed"] for row in rows.rows] == [None, True, False, None, True, False]


# figures


@settings(max_examples=30, deadline=None)
@given(
    side=st.integers(8, 20), top=st.integers(0, 6), size=st.integers(1, 6), level=st.floats(0.1, 99)
)
def test_energy_and_pointing_of_known_maps(side, top, size, level):
    cause = np.zeros((1, 1, side, side), np.float32)
    cause[..., top : top + size, top : top + size] = 1
    all_inside = level * cause
    even = np.full_like(cause, level)
    area = cause.mean()
    assert energy_ratio(all_inside, cause)[0] == pytest.approx(1 / area, rel=1e-4)
    assert energy_ratio(even, cause)[0] == pytest.approx(1, rel=1e-4)
    assert energy_ratio(0 * even, cause)[0] == 0 and not pointing(0 * even, cause)[0]
    assert pointing(all_inside, cause)[0] and not pointing(1 - cause, cause)[0]


def test_what_is_asked_of_a_cause_that_covers_much():
    assert least_energy(0.05) == least_energy(0.2) == 3 and least_energy(0.5) == 1.5
    assert all(1 < least_energy(area) < 1 / area for area in (0.01, 0.21, 0.34, 0.9))


def test_a_larger_cause_is_averaged_to_the_maps():
    cause = np.zeros((2, 16, 16))
    cause[:, :8, :6] = 1
    found = fit_cause(cause, np.zeros((2, 1, 8, 8)))
    assert found.shape == (2, 1, 8, 8) and found[0, 0, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("where", "at"), [("upper left", (2, 2)), ("lower right", (-2, -2)), ("upper right", (1, -1))]
)
def test_the_corner_is_named(where, at):
    maps = np.full((3, 2, 20, 20), 0.01, np.float32)
    maps[(..., *at)] = 50
    values, name = corner_energy(maps)
    assert name == where and (values > 10).all()
    assert corner_energy(np.ones((3, 1, 4, 20, 20)))[0] == pytest.approx(1)


def test_similarity_is_the_correlation_of_values_and_0_for_what_is_constant():
    maps = np.random.default_rng(0).random((3, 1, 9, 9))
    assert similarity(maps, 5 * maps + 2) == pytest.approx(1) and similarity(
        maps, -maps
    ) == pytest.approx(-1)
    assert similarity(maps, np.zeros_like(maps)).tolist() == [0, 0, 0]
    other = np.random.default_rng(1).random(maps.shape)
    assert similarity(maps, other)[1] == pytest.approx(
        np.corrcoef(maps[1].ravel(), other[1].ravel())[0, 1]
    )
    sparse = np.where(
        np.arange(81).reshape(9, 9) == 40, 9.0, 1e-6 * maps
    )  # only the order of what is next to 0 differs
    assert similarity(sparse, np.where(sparse > 1, 9.0, 1e-6 * other)) == pytest.approx(1)


def test_the_cascade_ends_with_all_layers_and_goes_from_the_head_on(monkeypatch):
    images, _ = spots(4)
    network = SpotNetwork()

    def explain(of, seen):
        return checks.saliency_maps(of, seen, target_class=1)

    maps = explain(network, images)
    monkeypatch.setattr(checks, "CASCADE_STEPS", 3)
    table, last = weight_cascade(network, images, maps, explain)
    assert table["from"].tolist() == ["head", "find.2", "find.0"] and table["layers"].tolist() == [
        1,
        2,
        3,
    ]
    assert table["similarity"].iloc[-1] == pytest.approx(similarity(maps, last).mean())
    again, _ = weight_cascade(network, images, maps, explain)
    assert again.equals(table)
    assert (stability(network, images, maps, explain) > 0.8).all()


def test_layers_that_cannot_be_reset_are_shuffled():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.arange(50.0))

    part = Own()
    checks._make_random(part)
    assert sorted(part.weight.tolist()) == list(range(50)) and part.weight.tolist() != list(
        range(50)
    )


def test_rivals_have_the_shape_of_the_maps_and_a_blob_is_in_the_middle():
    maps = np.zeros((3, 2, 5, 16, 17))
    assert random_maps(maps).shape == central_blobs(maps).shape == maps.shape
    assert np.unravel_index(central_blobs(maps)[0, 0].argmax(), maps.shape[2:]) == (2, 7, 8)
    assert not np.allclose(random_maps(maps)[0], random_maps(maps)[1])


def test_intervals_draw_groups_and_leave_out_what_is_not_defined():
    values = np.random.default_rng(1).random(60)
    alone = mean_interval(values)
    grouped = mean_interval(np.repeat(values[:12], 5), np.repeat(np.arange(12), 5))
    assert alone.low < values.mean() < alone.high and alone.n == 60
    assert grouped.high - grouped.low > alone.high - alone.low
    assert mean_interval([np.nan, 1.0, 2.0]).n == 2 and mean_interval([np.nan]).n == 0


def test_typical_images_are_those_whose_maps_are_like_the_others():
    draw = np.random.default_rng(0)
    maps = np.stack(
        [np.eye(12) + 0.1 * draw.random((12, 12)) for _ in range(5)]
        + [np.eye(12)[::-1]]
        + [np.ones((12, 12))]
    )
    found = typical(maps, np.array([0] * 6 + [1]))
    assert found[:5].min() > found[5] and found[6] == 0
