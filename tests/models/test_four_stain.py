"""Networks for several stains: what each fusion sees, how they start, what is trained, and where
they lie.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbhelpers.core.errors import CheckpointError, InputError, ParameterError
from nbhelpers.models.four_stain import (
    FUSIONS,
    StainNetwork,
    continued,
    encoder_parts,
    make_stain_network,
)
from nbhelpers.models.weights import make_backbone
from nbhelpers.training.checkpoints import load_checkpoint, save_checkpoint


def made(fusion, stains=4, seed=0, **more):
    torch.manual_seed(seed)
    return make_stain_network(fusion, stains, encoder="small", **more).eval()


@given(
    fusion=st.sampled_from(FUSIONS),
    stains=st.integers(3, 6),
    size=st.sampled_from([(32, 32), (40, 33)]),
)
@settings(max_examples=15, deadline=None)
def test_any_number_of_stains_and_any_size(fusion, stains, size):
    network = made(fusion, stains)
    images = torch.rand(2, stains, *size)
    assert network(images).shape == (2, 2)
    assert network.features(images).shape == (2, 128 * (stains if fusion == "s4" else 1))


def test_published_sizes():
    s4, early, one = (StainNetwork(fusion) for fusion in ("s4", "early", "one-stain"))
    assert s4.head.in_features == 2048 and early.head.in_features == one.head.in_features == 512
    assert (
        s4.head.out_features,
        one.backbone[0].conv1.in_channels,
        early.backbone[0].conv1.in_channels,
    ) == (2, 1, 4)
    assert (
        sum(part.numel() for part in one.backbone.parameters()) == 21_284_672 - 64 * 2 * 49
    )  # resnet34 without its head


@pytest.mark.parametrize(
    ("fusion", "sees"),
    [
        ("one-stain", {2}),
        ("s4", {0, 1, 2, 3}),
        ("early", {0, 1, 2, 3}),
        ("sum", {0, 1, 2, 3}),
        ("weighted", {0, 1, 2, 3}),
    ],
)
def test_which_stains_reach_the_result(fusion, sees):
    network = made(fusion, stain=2)
    images = torch.rand(1, 4, 32, 32)
    before = network(images)
    changed = set()
    for stain in range(4):
        other = images.clone()
        other[:, stain] = 1 - other[:, stain]
        if not torch.equal(network(other), before):
            changed.add(stain)
    assert changed == sees


def test_s4_cannot_see_where_two_stains_lie_on_each_other_but_early_fusion_can():
    """Moving one whole stain by a whole field's width changes no encoder's average, only what lies
    on what.
    """
    torch.manual_seed(1)
    images = torch.zeros(1, 2, 64, 64)
    images[:, :, 16:24, 16:24] = 1
    apart = images.clone()
    apart[:, 1] = apart[:, 1].roll(
        (16, 16), (-2, -1)
    )  # by the stride of the last stage, far from the edges
    differences = {
        fusion: (made(fusion, 2).features(images) - made(fusion, 2).features(apart))
        .abs()
        .max()
        .item()
        / made(fusion, 2).features(images).abs().max().item()
        for fusion in ("s4", "early")
    }
    assert differences["early"] > 3 * differences["s4"]


def test_imagenet_filters_are_averaged_and_repeated(tmp_path):
    source = make_backbone("resnet18")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    mean = source.conv1.weight.mean(1, keepdim=True)
    for fusion, channels in (("one-stain", 1), ("s4", 1), ("early", 4), ("sum", 1)):
        network = make_stain_network(
            fusion, 4, encoder="resnet18", weights=tmp_path / "weights.pth"
        )
        for encoder in network.backbone:
            torch.testing.assert_close(encoder.conv1.weight, mean.expand(-1, channels, -1, -1))
            assert torch.equal(encoder.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    weighted = make_stain_network(
        "weighted", 4, encoder="resnet18", weights=tmp_path / "weights.pth"
    )
    assert (
        torch.equal(weighted.backbone[0].conv1.weight, source.conv1.weight)
        and weighted.weights_from != "none"
    )
    with pytest.raises(CheckpointError, match="no weights of resnet34"):
        make_stain_network("s4", 4, encoder="resnet34", weights=tmp_path / "weights.pth")


def test_s4_starts_from_the_one_stain_encoders():
    ones = [made("one-stain", stain=stain, seed=stain) for stain in range(4)]
    network = made("s4", encoders_from=ones)
    images = torch.rand(2, 4, 32, 32)
    expected = torch.cat([one.features(images) for one in ones], 1)
    torch.testing.assert_close(network.features(images), expected)
    other = made(
        "s4",
        encoders_from=[ones[0], *(made("one-stain", stain=stain, seed=9) for stain in (1, 2, 3))],
    )
    assert repr(other) != repr(network)  # a finished training is found again by this text
    for wrong in (ones[:3], ones[::-1], [made("early")] * 4):
        with pytest.raises(ParameterError, match="encoders_from"):
            made("s4", encoders_from=wrong)
    with pytest.raises(ParameterError, match="encoders_from"):
        made("early", encoders_from=ones)


@pytest.mark.parametrize("fusion", ["s4", "early", "weighted"])
def test_two_stages_train_the_last_stage_first_and_then_all(fusion):
    network = made(fusion, trained="last stage").train()
    learns = {
        name.split(".")[1]
        for name, part in network.backbone.named_parameters()
        if part.requires_grad
    }
    assert learns == {"layer4"} and all(part.requires_grad for part in network.head.parameters())
    network(torch.rand(4, 4, 32, 32)).square().mean().backward()
    again = continued(network)
    assert (
        all(part.requires_grad for part in again.parameters())
        and again.settings["trained"] == "everything"
    )
    images = torch.rand(2, 4, 32, 32)
    assert torch.equal(again.eval()(images), network.eval()(images))
    assert again.backbone[0].conv1.weight is not network.backbone[0].conv1.weight
    assert not any(
        part.requires_grad for part in made(fusion, trained="head").backbone.parameters()
    )


def test_batch_norm_is_fixed_at_inference_and_measures_in_training():
    network = made("s4", trained="last stage")
    images = torch.rand(4, 4, 32, 32)
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [part.running_mean.clone() for part in norms]
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(
        network(images), alone, atol=1e-4, rtol=1e-4
    )  # no image depends on its batch
    assert all(
        torch.equal(part.running_mean, mean) for part, mean in zip(norms, before, strict=True)
    )
    network.train()(images)
    assert not any(
        torch.equal(part.running_mean, mean) for part, mean in zip(norms, before, strict=True)
    )


def test_parts_for_saliency_name_their_stains():
    assert [part.stains for part in encoder_parts(made("s4", 3))] == [(0,), (1,), (2,)]
    assert [part.stains for part in encoder_parts(made("early", 3))] == [(0, 1, 2)]
    assert [part.stains for part in encoder_parts(made("one-stain", 3, stain=1))] == [(1,)]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_it_comes_back_from_a_checkpoint(tmp_path, fusion):
    network = made(fusion, 5, stain=3)
    save_checkpoint(tmp_path / "it.safetensors", network, classes=["a", "b"], about={})
    again, card = load_checkpoint(tmp_path / "it.safetensors", StainNetwork)
    images = torch.rand(2, 5, 32, 32)
    assert torch.equal(again(images), network(images)) and card["settings"]["stain"] == 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"fusion": "late"}, "'late' is unknown"),
        ({"encoder": "resnet50"}, "resnet50"),
        ({"trained": "nothing"}, "nothing"),
        ({"stain": 4}, "stain: 4 is out of range"),
        ({"fusion": "weighted", "stains": 2}, "from 3 to 64.*weighted"),
        ({"stains": 0}, "stains: 0 is out of range"),
    ],
)
def test_unknown_settings_are_named(wrong, words):
    with pytest.raises(ParameterError, match=words):
        StainNetwork(**({"encoder": "small"} | wrong))


def test_other_stains_and_missing_weights_are_refused():
    with pytest.raises(InputError, match="3 stains, and this network was made for 4"):
        made("s4")(torch.rand(1, 3, 32, 32))
    with pytest.raises(ParameterError, match="no weights 'imagenet' for the encoder 'small'"):
        made("s4", weights="imagenet")
