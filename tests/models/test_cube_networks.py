"""Networks for cubes: z is not crushed, weights of torchvision fit, too small
volumes are refused."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torchvision.models.video import mc3_18, r2plus1d_18, r3d_18

from nbhelpers.core.errors import CheckpointError, DownloadError, InputError, ParameterError
from nbhelpers.models.unet3d import FEWEST_SECTIONS, UNet3D, depth_strides, groups_for
from nbhelpers.models.video3d import BACKBONES_3D, CubeResNet, SectionsAsChannels, make_cube_network
from nbhelpers.models.weights import imagenet_file
from nbhelpers.training.checkpoints import load_checkpoint, save_checkpoint

SHAPE = (8, 32, 32)
VOXEL = (40.0, 8.0, 8.0)
SMALL = {"shape": SHAPE, "width": 0.125}
TORCHVISION = {"r3d_18": r3d_18, "mc3_18": mc3_18, "r2plus1d_18": r2plus1d_18}


def sizes_of_maps(network, shape):
    """(z, y, x) of the output of every convolution, in the order of the forward pass."""
    sizes = []
    for part in network.modules():
        if isinstance(part, nn.Conv3d):
            part.register_forward_hook(lambda part, given, out: sizes.append(tuple(out.shape[2:])))
    with torch.inference_mode():
        network.eval()(torch.rand(1, 1, *shape))
    return sizes


@pytest.mark.parametrize("backbone", BACKBONES_3D)
@pytest.mark.parametrize("voxel_nm", [VOXEL, None])
def test_sixteen_thick_sections_are_not_crushed(backbone, voxel_nm):
    shape = (16, 128, 128)
    sizes = sizes_of_maps(
        make_cube_network(backbone, 2, shape=shape, voxel_nm=voxel_nm, width=0.0625), shape
    )
    assert min(depth for depth, _, _ in sizes) >= 4
    apart = 5.0 if voxel_nm else 8.0
    for (
        depth,
        height,
        _,
    ) in sizes:  # sections are only merged where a voxel is about a cube: 128 / height times 8 nm
        if depth < 16:
            assert 128 / 2 / height * 2**0.5 > apart
    assert sizes[-1][1] < 20


@pytest.mark.parametrize("backbone", TORCHVISION)
@pytest.mark.parametrize(("side", "left"), [(16, 16), (24, 24), (47, 47), (48, 24), (128, 32)])
def test_small_sections_pass_the_stem_whole(backbone, side, left):
    """Halved by the stem, sections of 24 px lose what is a pixel or two wide: r3d_18 stayed near
    chance on them.
    """
    network = make_cube_network(
        backbone, 2, shape=(8, side, side), voxel_nm=(40, 10, 10), width=0.0625
    )
    found = []
    network.backbone.stem.register_forward_hook(
        lambda part, given, out: found.append(tuple(out.shape[2:]))
    )
    with torch.inference_mode():
        network.eval()(torch.rand(1, 1, 8, side, side))
    assert found == [(8, left, left)]


def test_torchvision_itself_would_leave_two_sections():
    network = r3d_18(weights=None)
    found = []
    network.layer4.register_forward_hook(
        lambda part, given, out: found.append(tuple(out.shape[2:]))
    )
    with torch.inference_mode():
        network.eval()(torch.rand(1, 3, 16, 64, 64))
    assert found[0][0] == 2


@given(st.integers(1, 64), st.floats(0.2, 20), st.integers(1, 5))
def test_depth_is_halved_late_and_never_below_the_fewest(sections, apart, halvings):
    left = sections
    for stride in depth_strides(sections, apart, halvings):
        assert stride == 1 or apart < 2**0.5
        left, apart = (left // 2, apart) if stride == 2 else (left, apart / 2)
    assert left >= min(sections, FEWEST_SECTIONS)


@pytest.mark.parametrize("backbone", BACKBONES_3D)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_backbone_learns_from_one_step(backbone, norm):
    torch.manual_seed(0)
    network = make_cube_network(backbone, 3, norm=norm, **SMALL)
    volumes = torch.rand(4, 1, *SHAPE)
    labels = torch.tensor([0, 1, 2, 0])
    logits = network(volumes)
    assert logits.shape == (4, 3) and network.features(volumes).ndim == 2
    nn.functional.cross_entropy(logits, labels).backward()
    assert all(
        part.grad is not None and torch.isfinite(part.grad).all() for part in network.parameters()
    )
    norms = {
        type(part) for part in network.modules() if isinstance(part, nn.BatchNorm3d | nn.GroupNorm)
    }
    assert norms == {nn.GroupNorm if norm == "group" or backbone == "unet3d" else nn.BatchNorm3d}


@pytest.mark.parametrize("backbone", BACKBONES_3D)
def test_the_order_of_sections_matters(backbone):
    """A network that averaged over sections alone could not tell 3D structure."""
    torch.manual_seed(1)
    network = make_cube_network(backbone, 2, norm="group", **SMALL).eval()
    volumes = torch.rand(2, 1, *SHAPE)
    shuffled = volumes[:, :, [3, 0, 6, 1, 7, 4, 2, 5]]
    assert not torch.allclose(
        network.features(volumes), network.features(shuffled), rtol=1e-4, atol=1e-5
    )


def test_the_published_width():
    filters = [part.out_channels for part in UNet3D().modules() if isinstance(part, nn.Conv3d)]
    assert filters == [16, 16, 32, 32, 64, 64, 128, 128]
    network = make_cube_network("r3d_18", 2, shape=(16, 128, 128))
    theirs = sum(part.numel() for part in r3d_18(weights=None, num_classes=2).parameters())
    colours = 2 * network.backbone.stem[0].weight.numel()
    assert sum(part.numel() for part in network.parameters()) == theirs - colours


@given(st.integers(1, 2000), st.integers(1, 32))
@settings(max_examples=50)
def test_groups_divide_the_channels(channels, most):
    groups = groups_for(channels, most)
    assert 1 <= groups <= most and channels % groups == 0


@pytest.mark.parametrize("backbone", BACKBONES_3D)
@pytest.mark.parametrize("shape", [(2, 32, 32), (8, 8, 32), (8, 32), (0, 64, 64)])
def test_too_small_volumes_are_refused_with_the_smallest(backbone, shape):
    with pytest.raises(InputError, match="too small.*smallest allowed is 4 x 16 x 16"):
        make_cube_network(backbone, 2, shape=shape)


@pytest.mark.parametrize("backbone", BACKBONES_3D)
def test_volumes_below_the_stride_are_refused_when_they_come(backbone):
    network = make_cube_network(backbone, 2, **SMALL)
    smallest = " x ".join(map(str, network.smallest))
    with pytest.raises(InputError, match=f"4 x 4 voxels are too small.*{smallest}"):
        network(torch.rand(1, 1, 8, 4, 4))
    network(torch.rand(2, 1, *network.smallest))


@pytest.mark.parametrize(
    ("backbone", "wrong", "words"),
    [
        ("r3d18", {}, "r3d18.*unet3d"),
        ("r3d_18", {"norm": "layer"}, "layer.*batch, group"),
        ("r3d_18", {"width": 0}, "width"),
        ("unet3d", {"weights": "kinetics"}, "no Kinetics weights for unet3d"),
        (
            "mc3_18",
            {"weights": "kinetics", "width": 0.5},
            "no Kinetics weights for mc3_18 of width 0.5",
        ),
        ("unet3d", {"voxel_nm": (40, 0, 8)}, "no voxel size"),
    ],
)
def test_unknown_parameters_are_named(backbone, wrong, words):
    with pytest.raises(ParameterError, match=words):
        make_cube_network(backbone, 2, shape=SHAPE, **wrong)


def as_torchvision(backbone):
    torch.manual_seed(2)
    network = TORCHVISION[backbone](weights=None).eval()
    for part in network.modules():  # as if trained: statistics that are not 0 and 1
        if isinstance(part, nn.BatchNorm3d):
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 2)
    return network


def test_torchvisions_weights_fit_and_grey_gives_the_same_stem(tmp_path):
    theirs = as_torchvision("mc3_18")
    torch.save(theirs.state_dict(), tmp_path / "mc3.pth")
    shape = (8, 64, 64)  # smaller sections are not halved by our stem
    ours = make_cube_network(
        "mc3_18", 2, shape=shape, voxel_nm=(16, 8, 8), weights=tmp_path / "mc3.pth"
    ).eval()
    volumes = torch.rand(1, 1, *shape)
    torch.testing.assert_close(
        ours.backbone.stem(volumes),
        theirs.stem(volumes.expand(-1, 3, -1, -1, -1)),
        rtol=1e-4,
        atol=1e-5,
    )
    other = make_cube_network("mc3_18", 2, shape=SHAPE)
    assert ours.weights_from != "none" and repr(ours) != repr(
        other
    )  # finished trainings are told apart by this
    # with strides of torchvision this would be torchvision's network
    torch.testing.assert_close(
        ours.backbone.layer1(ours.backbone.stem(volumes)),
        theirs.layer1(theirs.stem(volumes.expand(-1, 3, -1, -1, -1))),
        rtol=1e-4,
        atol=1e-5,
    )
    grouped = make_cube_network(
        "mc3_18", 2, shape=SHAPE, weights=tmp_path / "mc3.pth", norm="group"
    )
    torch.testing.assert_close(
        grouped.backbone.layer1[0].conv1[0].weight, theirs.layer1[0].conv1[0].weight
    )
    torch.testing.assert_close(
        grouped.backbone.layer1[0].conv1[1].weight, theirs.layer1[0].conv1[1].weight
    )


def test_a_trained_network_of_the_collection_is_taken_too(tmp_path):
    for backbone in ("unet3d", "r3d_18"):
        torch.manual_seed(3)
        trained = make_cube_network(backbone, 5, norm="group", **SMALL)
        save_file(trained.state_dict(), tmp_path / "trained.safetensors")
        again = make_cube_network(
            backbone, 2, norm="group", weights=tmp_path / "trained.safetensors", **SMALL
        )
        volumes = torch.rand(1, 1, *SHAPE)
        torch.testing.assert_close(again.eval().features(volumes), trained.eval().features(volumes))
        assert repr(again) != repr(make_cube_network(backbone, 2, norm="group", **SMALL))


def test_weights_of_another_network_and_pickles_are_refused(tmp_path):
    network = make_cube_network("r2plus1d_18", 2, **SMALL)
    torch.save(network.backbone.state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no weights of r3d_18"):
        make_cube_network("r3d_18", 2, weights=tmp_path / "other.pth", **SMALL)
    torch.save({"epoch": 3, "network": network}, tmp_path / "pickle.pth")
    with pytest.raises(CheckpointError, match="any code"):
        make_cube_network("r2plus1d_18", 2, weights=tmp_path / "pickle.pth", **SMALL)
    with pytest.raises(CheckpointError, match="does not exist.*'kinetics', 'none'"):
        make_cube_network("r3d_18", 2, weights=tmp_path / "absent.pth", **SMALL)


def test_kinetics_without_a_network_says_what_to_put_where(tmp_path, monkeypatch):
    import requests

    def offline(*arguments, **named):
        raise requests.ConnectionError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(requests, "get", offline)
    url, file, digits = imagenet_file("r3d_18")
    with pytest.raises(
        DownloadError, match=f"{re.escape(url)}.*data/weights/{re.escape(file)}.*weights = 'none'"
    ):
        make_cube_network(
            "r3d_18", 2, shape=SHAPE, weights="kinetics", data_folder=tmp_path / "data"
        )
    (tmp_path / "data/weights").mkdir(parents=True, exist_ok=True)
    (tmp_path / "data/weights" / file).write_bytes(b"cut")
    with pytest.raises(DownloadError, match="sha256 differs"):
        make_cube_network(
            "r3d_18", 2, shape=SHAPE, weights="kinetics", data_folder=tmp_path / "data"
        )
    assert file.startswith("r3d_18-") and digits in file


@pytest.mark.parametrize("backbone", BACKBONES_3D)
def test_a_checkpoint_rebuilds_the_network(tmp_path, backbone):
    torch.manual_seed(4)
    network = make_cube_network(backbone, 2, voxel_nm=VOXEL, **SMALL).eval()
    save_checkpoint(tmp_path / "network.safetensors", network, classes=("a", "b"), about={})
    again, _ = load_checkpoint(
        tmp_path / "network.safetensors", UNet3D if backbone == "unet3d" else CubeResNet
    )
    volumes = torch.rand(1, 1, *SHAPE)
    torch.testing.assert_close(again(volumes), network(volumes))


def test_25d_mixes_sections_once():
    network = SectionsAsChannels(3, shape=SHAPE).eval()
    volumes = torch.rand(2, 1, *SHAPE)
    assert network(volumes).shape == (2, 3) and network.features(volumes).shape == (2, 256)
    assert not any(isinstance(part, nn.Conv3d) for part in network.modules())
    with pytest.raises(InputError, match="have 6 sections.*made for 8"):
        network(volumes[:, :, :6])
    with pytest.raises(InputError, match="smallest allowed is 1 x 16 x 16"):
        SectionsAsChannels(2, shape=(8, 8, 8))
