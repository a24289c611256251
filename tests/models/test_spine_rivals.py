"""The rivals of TinyCNN have the published sizes, and the ViT sees other sizes than 224 px too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import CheckpointError
from nbhelpers.models.spine_rivals import CNN3Layer, SpineResNet18, SpineViT, make_vit
from nbhelpers.models.tinycnn import TinyCNN


@pytest.fixture(scope="module")
def vit():
    return make_vit(3, seed=1)


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (TinyCNN, 457_539),
        (SpineResNet18, 11_304_003),
        (CNN3Layer, 8_482_883),
        (SpineViT, 85_800_963),
    ],
)
def test_as_many_parameters_as_published(make, parameters):
    assert sum(parameter.numel() for parameter in make().parameters()) == parameters


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([SpineResNet18, CNN3Layer]),
    st.integers(1, 3),
    st.integers(2, 4),
    st.integers(16, 40),
)
def test_any_size_and_number_of_classes(make, channels, classes, px):
    network = make(channels, classes).eval()
    with torch.inference_mode():
        assert network(torch.rand(2, channels, px, px)).shape == (2, classes)
    assert network.settings == {"in_channels": channels, "classes": classes}


def test_the_stem_of_the_resnet_keeps_the_full_resolution():
    network = SpineResNet18().eval()
    seen = []
    network.body.layer1.register_forward_hook(lambda _, __, output: seen.append(output.shape[-2:]))
    with torch.inference_mode():
        network(torch.rand(1, 3, 20, 20))
    assert seen == [(20, 20)] and network.body.conv1.kernel_size == (5, 5)


def test_the_vit_is_torchvisions_at_224_px_and_only_its_head_is_trained(vit):
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(vit.features(images), vit.body(images), atol=1e-4)
        assert vit(torch.rand(2, 3, 48, 64)).shape == (2, 3)
    trained = [name for name, parameter in vit.named_parameters() if parameter.requires_grad]
    assert trained == ["head.weight", "head.bias"] and vit.weights_from == "random"


def test_random_features_come_from_the_seed_and_leave_the_other_draws_alone(vit):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = make_vit(3, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(again.body.conv_proj.weight, vit.body.conv_proj.weight)


def test_weights_from_a_file_are_loaded_and_named(vit, tmp_path):
    torch.save(
        vit.body.state_dict() | {"heads.head.weight": torch.zeros(1000, 768)}, tmp_path / "vit.pth"
    )
    loaded = make_vit(3, weights=tmp_path / "vit.pth", seed=2)
    assert torch.equal(
        loaded.body.conv_proj.weight, vit.body.conv_proj.weight
    ) and loaded.weights_from.startswith("file ")


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(TinyCNN().state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(CheckpointError, match=r"tiny\.pth.*no weights of vit_b_16.*class_token"):
        make_vit(3, weights=tmp_path / "tiny.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        make_vit(3, weights=tmp_path / "missing.pth")
