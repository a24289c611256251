"""The Keras port: which modules the last layers are, what freezing freezes, and the published
heads.
"""

import numpy as np
import pytest
import torch
from torch import nn

from nbhelpers.core.errors import CheckpointError, ParameterError
from nbhelpers.models.keras_head import KerasHead, keras_layers, make_head, make_keras_head
from nbhelpers.models.weights import make_backbone
from nbhelpers.training.checkpoints import load_checkpoint, save_checkpoint

LAST_30 = [
    "layer4.0.conv2",
    "layer4.0.bn2",
    "layer4.0.downsample.0",
    "layer4.0.conv3",
    "layer4.0.downsample.1",
    "layer4.0.bn3",
    *(
        f"layer4.{block}.{part}{number}"
        for block in (1, 2)
        for number in (1, 2, 3)
        for part in ("conv", "bn")
    ),
]


def test_keras_counts_175_layers_and_the_last_30_are_these():
    layers = keras_layers("resnet50")
    assert len(layers) == 175
    assert [name for name, _ in layers[-30:]][:8] == [
        "conv5_block1_1_relu",
        "conv5_block1_2_conv",
        "conv5_block1_2_bn",
        "conv5_block1_2_relu",
        "conv5_block1_0_conv",
        "conv5_block1_3_conv",
        "conv5_block1_0_bn",
        "conv5_block1_3_bn",
    ]
    network = KerasHead("resnet50")
    assert network.trained_modules() == LAST_30
    trained = {
        name.rsplit(".", 1)[0]
        for name, one in network.backbone.named_parameters()
        if one.requires_grad
    }
    assert trained == set(LAST_30)


def test_the_last_50_of_densenet169():
    assert len(keras_layers("densenet169")) == 595
    trained = KerasHead("densenet169", head="densenet").trained_modules()
    assert (
        trained[0] == "features.denseblock4.denselayer26.conv1" and trained[-1] == "features.norm5"
    )
    assert "features.denseblock4.denselayer26.norm1" not in trained


@pytest.mark.parametrize("backbone", ["resnet50", "densenet169"])
def test_every_module_with_weights_is_counted_once(backbone):
    network = make_backbone(backbone)
    paths = [path for _, path in keras_layers(backbone) if path]
    owners = [
        name for name, part in network.named_modules() if list(part.parameters(recurse=False))
    ]
    assert len(paths) == len(set(paths)) and set(owners) <= set(paths)


def test_the_frozen_part_does_not_move_and_its_batch_norm_neither():
    torch.manual_seed(0)
    network = KerasHead("resnet18", trained_layers=12, head="linear").train()
    norms = {
        name: part
        for name, part in network.backbone.named_modules()
        if isinstance(part, nn.BatchNorm2d)
    }
    assert not norms["bn1"].training and norms["layer4.1.bn2"].training and network.head.training
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    optimizer = torch.optim.Adam(
        [one for one in network.parameters() if one.requires_grad], lr=1e-2
    )
    nn.functional.cross_entropy(
        network(torch.rand(4, 3, 48, 48)), torch.tensor([0, 1, 0, 1])
    ).backward()
    optimizer.step()
    moved = {
        name
        for name, value in network.backbone.state_dict().items()
        if not torch.equal(value, before[name])
    }
    frozen = tuple(f"{path}." for path in network.frozen)
    assert moved and not [name for name in moved if name.startswith(frozen)]
    assert "layer4.1.bn2.running_mean" in moved
    assert not network.eval().backbone.layer4[1].bn2.training


def test_the_published_head():
    kinds = [type(part).__name__ for part in make_head("custom", 2048, 2)]
    assert kinds == [
        "Linear",
        "ReLU",
        "BatchNorm1d",
        "Dropout",
        "Linear",
        "ReLU",
        "BatchNorm1d",
        "Dropout",
        "Linear",
    ]
    head = make_head("custom", 2048, 2)
    assert [head[0].out_features, head[3].p, head[4].out_features, head[7].p] == [
        512,
        0.4,
        256,
        0.3,
    ]
    assert head[2].eps == 1e-3 and not head[0].bias.any()
    assert "LayerNorm" in [type(part).__name__ for part in make_head("densenet", 64, 2)]


def test_squeeze_and_excite_weights_channels_between_0_and_1():
    head = make_head("linear", 32, 2, attention=True)
    values = torch.rand(5, 32)
    gated = head[0](values)
    assert ((gated >= 0) & (gated <= values)).all() and not torch.allclose(gated, values)


def test_published_preprocessing_leaves_values_alone():
    images = torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    plain = KerasHead("resnet18", preprocessing="published").eval()
    assert torch.allclose(plain.features(images), plain.backbone(images))
    torch.manual_seed(0)
    assert not torch.allclose(KerasHead("resnet18").eval().features(images), plain.features(images))


def test_weights_from_a_file_and_a_checkpoint_of_it(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    source = make_backbone("squeezenet1_0")
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    network = make_keras_head("squeezenet1_0", 3, weights=tmp_path / "weights.safetensors").eval()
    assert torch.equal(network.backbone.features[0].weight, source.features[0].weight)
    save_checkpoint(tmp_path / "model.safetensors", network, classes=["a", "b", "c"], about={})
    again, card = load_checkpoint(tmp_path / "model.safetensors", KerasHead)
    images = torch.rand(2, 3, 64, 64)
    assert torch.allclose(again(images), network(images)) and card["classes"] == ["a", "b", "c"]
    with pytest.raises(CheckpointError, match="no weights of resnet18"):
        make_keras_head("resnet18", 2, weights=tmp_path / "weights.safetensors")


def test_old_names_of_densenet_files_are_understood(tmp_path):
    import re

    network = make_backbone("densenet169")
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value
        for name, value in network.state_dict().items()
    }
    assert any("norm.1" in name for name in old)
    torch.save(old, tmp_path / "old.pth")
    found = make_backbone("densenet169", weights=tmp_path / "old.pth").state_dict()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone": "vgg"}, "backbone.*vgg"),
        ({"head": "big"}, "head.*'big'"),
        ({"trained_layers": 500}, "trained_layers.*from 0 to 52"),
        ({"preprocessing": "none"}, "preprocessing"),
    ],
)
def test_unknown_settings_are_named(settings, words):
    with pytest.raises(ParameterError, match=words):
        KerasHead(**{"backbone": "resnet18", **settings})


def test_fewer_layers_trained_means_fewer_parameters():
    counts = [
        sum(
            one.numel()
            for one in KerasHead("resnet18", trained_layers=count, head="linear").parameters()
            if one.requires_grad
        )
        for count in (0, 10, 52)
    ]
    assert np.all(np.diff(counts) > 0)
