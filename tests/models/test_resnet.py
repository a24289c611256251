"""Torchvision networks for grey images: sizes, stems, and what is trained of them."""

import pytest
import torch

from nbhelpers.core.errors import ParameterError
from nbhelpers.models.resnet import PretrainedCNN, make_pretrained
from nbhelpers.training.checkpoints import load_checkpoint, save_checkpoint


def count(network, trained_only=False):
    return sum(
        part.numel() for part in network.parameters() if part.requires_grad or not trained_only
    )


@pytest.mark.parametrize(
    ("depth", "parameters"), [(18, 11_176_512 + 1026), (50, 23_508_032 + 4098)]
)
def test_parameters_are_those_of_torchvision_with_a_new_head(depth, parameters):
    assert count(make_pretrained(f"resnet{depth}", 2, weights="none")) == parameters


@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_0", "mobilenet_v2"])
@pytest.mark.parametrize("grey", ["repeat", "one channel", "colour"])
def test_shapes(backbone, grey):
    network = PretrainedCNN(backbone, 4, grey=grey).eval()
    images = torch.rand(2, 3 if grey == "colour" else 1, 64, 64)
    assert network(images).shape == (2, 4)
    assert network.features(images).shape == (2, network.backbone.width)


def test_a_one_channel_stem_gives_nearly_the_same_features(tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "weights.pth"
    torch.save(make_pretrained("resnet18", 2, weights="none").backbone.state_dict(), path)
    images = torch.rand(4, 1, 96, 96)
    several, single = (
        make_pretrained("resnet18", 2, weights=path, grey=grey).eval().features(images)
        for grey in ("repeat", "one channel")
    )
    assert torch.corrcoef(torch.stack([several.flatten(), single.flatten()]))[0, 1] > 0.99
    assert (
        count(make_pretrained("resnet18", 2, weights="none", grey="one channel"))
        == 11_176_512 + 1026 - 64 * 2 * 49
    )


def test_normalisation_is_inside():
    network = PretrainedCNN("squeezenet1_0").eval()
    grey = torch.rand(1, 1, 64, 64)
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    by_hand = (grey.expand(-1, 3, -1, -1) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(network.features(grey), network.backbone(by_hand))


def test_networks_with_other_first_weights_are_told_apart_by_their_text(tmp_path):
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save(PretrainedCNN("squeezenet1_0").backbone.state_dict(), tmp_path / f"{seed}.pth")
    texts = {
        repr(make_pretrained("squeezenet1_0", 2, weights=source, grey=grey))
        for source in ("none", tmp_path / "1.pth", tmp_path / "2.pth")
        for grey in ("repeat", "colour")
    }
    assert len(texts) == 6


def test_it_comes_back_from_a_checkpoint(tmp_path):
    network = PretrainedCNN("squeezenet1_0", 3, grey="one channel").eval()
    save_checkpoint(tmp_path / "network.safetensors", network, classes=["a", "b", "c"], about={})
    again, card = load_checkpoint(tmp_path / "network.safetensors", PretrainedCNN)
    images = torch.rand(2, 1, 64, 64)
    assert torch.equal(again(images), network(images)) and card["settings"]["classes"] == 3


def test_a_checkpoint_with_settings_of_an_earlier_version_is_read(tmp_path):
    network = PretrainedCNN("squeezenet1_0", 2).eval()
    network.settings = network.settings | {"trained": "head", "dropout": 0.2, "fixed_norm": True}
    save_checkpoint(tmp_path / "network.safetensors", network, classes=["a", "b"], about={})
    again, _ = load_checkpoint(tmp_path / "network.safetensors", PretrainedCNN)
    images = torch.rand(2, 1, 64, 64)
    assert torch.equal(again(images), network(images))


@pytest.mark.parametrize("wrong", [{"grey": "gray"}, {"backbone": "vgg"}])
def test_unknown_settings_are_named(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong.values()))):
        PretrainedCNN(**wrong)
