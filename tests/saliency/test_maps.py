"""GradCAM: the maps of the library, on the cause, and a network that comes out as it went in."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.models.four_stain import encoder_parts, make_stain_network
from nbhelpers.models.keras_head import KerasHead
from nbhelpers.models.resnet import PretrainedCNN
from nbhelpers.models.synapse_cnn import SynapseCNN
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.models.unet3d import UNet3D
from nbhelpers.models.video3d import make_cube_network
from nbhelpers.saliency.maps import (
    METHODS,
    blurred,
    grad_cam_of_layers,
    in_batches,
    saliency_maps,
    save_maps,
    target_layers,
)
from nbhelpers.training.checkpoints import hash_of_weights


@pytest.fixture
def network():
    torch.manual_seed(4)  # of these random weights some speak for every class
    return TinyCNN(1, 3).train()


def state(network):
    return (
        hash_of_weights(network),
        [part.training for part in network.modules()],
        [(one.requires_grad, one.grad is None) for one in network.parameters()],
        sum(len(part._forward_hooks) + len(part._backward_hooks) for part in network.modules()),
    )


def grad_cam(network, images, target_layer, target_class=None, batch_size=16):
    return grad_cam_of_layers(network, images, [target_layer], target_class, batch_size)[:, 0]


def last_block(network):
    return network.convolutions[-2]  # before the last pooling


@pytest.mark.parametrize("target_class", [None, 0, 2])
def test_maps_are_those_of_the_library_before_it_rescales_them(network, target_class):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images = torch.rand(5, 1, 48, 32)
    maps = grad_cam(network, images, last_block(network), target_class, batch_size=2)
    assert maps.shape == (5, 48, 32) and maps.dtype == np.float32 and (maps >= 0).all()
    library = GradCAM(network, [last_block(network)])
    targets = None if target_class is None else [ClassifierOutputTarget(target_class)] * 5
    theirs = library(images, targets)
    library.activations_and_grads.release()
    for ours, other in zip(maps, theirs, strict=True):
        if ours.max() > 0:
            assert np.corrcoef(ours.ravel(), other.ravel())[0, 1] > 0.99
    assert len({one.max() for one in maps}) > 1  # not each to its own maximum


def test_the_map_lies_on_the_cause():
    """A filter that finds bright spots and a head that adds them up: the map is
    where the spot is."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 2),
    )
    with torch.no_grad():
        network[0].weight.fill_(1 / 9)
        network[0].bias.fill_(-0.2)
        network[4].weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    images = torch.zeros(1, 1, 32, 32)
    images[0, 0, 20:25, 6:11] = 1
    for layer in (network[0], network[1]):  # the first is changed in place by the second
        found = grad_cam(network, images, layer, 1)[0]
        assert (
            np.unravel_index(found.argmax(), found.shape)[0] in range(20, 25)
            and found[:16].max() == 0
        )
    assert grad_cam(network, images, network[1], 0).max() == 0  # nothing speaks for the other class


def test_the_network_comes_out_as_it_went_in(network):
    network.head.requires_grad_(False)
    network.pool.eval()
    network.convolutions[0].weight.grad = torch.ones_like(network.convolutions[0].weight)
    before = state(network)
    grad_cam(network, torch.rand(3, 1, 32, 32), last_block(network))
    assert state(network) == before
    assert torch.equal(
        network.convolutions[0].weight.grad, torch.ones_like(network.convolutions[0].weight)
    )
    for wrong in (
        {"images": torch.rand(2, 7, 32, 32)},
        {"target_class": 9},
        {"target_layer": network.head},
    ):
        with pytest.raises((RuntimeError, ParameterError, InputError)):
            grad_cam(
                network,
                **(
                    {"images": torch.rand(2, 1, 32, 32), "target_layer": last_block(network)}
                    | wrong
                ),
            )
        assert state(network) == before


def test_a_network_whose_parameters_are_all_frozen_has_maps_too(network):
    images = torch.rand(2, 1, 32, 32)
    layer = last_block(network)
    before = grad_cam(network, images, layer, 1)
    with torch.inference_mode():
        network.requires_grad_(False)
    np.testing.assert_array_equal(grad_cam(network, images, layer, 1), before)
    with torch.no_grad():
        np.testing.assert_array_equal(grad_cam(network, images, layer, 1), before)


def test_a_map_per_encoder_sees_its_own_stain_only():
    torch.manual_seed(0)
    network = make_stain_network("s4", 3, encoder="small").eval()
    layers = [part.layer for part in encoder_parts(network)]
    images = torch.rand(4, 3, 64, 64)
    maps = grad_cam_of_layers(network, images, layers, 1)
    assert maps.shape == (4, 3, 64, 64)
    np.testing.assert_allclose(
        maps[:, 1], grad_cam(network, images, layers[1], 1), rtol=1e-4, atol=1e-6
    )
    other = images.clone()
    other[:, 2] = 0
    changed = np.abs(grad_cam_of_layers(network, other, layers, 1) - maps).max((0, 2, 3))
    assert changed[0] < 1e-5 and changed[1] < 1e-5 < changed[2]


def test_volumes():
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 4, 3),
        nn.Flatten(),
        nn.LazyLinear(2),
    )
    images = torch.rand(2, 1, 8, 12, 16)
    network(images)
    assert grad_cam(network, images, network[3]).shape == (2, 8, 12, 16)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"target_class": 3}, "3 is no class of 3"),
        ({"target_class": -1}, "-1 is no class"),
        ({"images": torch.full((1, 1, 32, 32), float("nan"))}, "not finite"),
    ],
)
def test_bad_input_is_named(network, wrong, words):
    with pytest.raises((InputError, ParameterError), match=words):
        grad_cam(
            network,
            **({"images": torch.rand(1, 1, 32, 32), "target_layer": last_block(network)} | wrong),
        )


def test_layers_that_have_no_map_are_named(network):
    images = torch.rand(1, 1, 32, 32)
    with pytest.raises(InputError, match="without a place in the image"):
        grad_cam(network, images, network.head[0])
    with pytest.raises(ParameterError, match="Conv2d is no part"):
        grad_cam(network, images, nn.Conv2d(1, 1, 3))


def test_no_images(network):
    assert grad_cam(network, torch.zeros(0, 1, 32, 32), last_block(network)).shape == (0, 32, 32)


# every model of the collection by its name


def small_transformer():
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        32, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=2
    )


class WithHead(nn.Module):
    """A glomeruli network with its linear head: (n, 3, y, x) float to (n, classes) logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.network(images).double() @ self.network.weight.T + self.network.bias).float()


def glomerulus_net():
    from nbhelpers.studies.glomerulus_model import GlomerulusNet

    network = GlomerulusNet("squeezenet1_0")
    network.weight.normal_(generator=torch.Generator().manual_seed(0))
    return WithHead(network)


MODELS = {
    "TinyCNN": (lambda: TinyCNN(1, 2), (1, 64, 64), 1),
    "SynapseCNN": (lambda: SynapseCNN(64, 2), (1, 64, 64), 1),
    "ResNet-18": (lambda: PretrainedCNN("resnet18", 2), (1, 64, 64), 1),
    "SqueezeNet": (lambda: PretrainedCNN("squeezenet1_0", 2), (1, 64, 64), 1),
    "glomeruli head": (lambda: KerasHead("mobilenet_v2", 2), (3, 64, 64), 1),
    "texture head": (glomerulus_net, (3, 96, 96), 1),
    "DenseNet": (lambda: KerasHead("densenet169", 2, head="densenet"), (3, 64, 64), 1),
    "ViT": (small_transformer, (3, 32, 32), 1),
    "UNet3D": (lambda: UNet3D(2, shape=(8, 32, 32), width=0.25), (1, 8, 32, 32), 1),
    "r3d_18": (
        lambda: make_cube_network("r3d_18", 2, shape=(8, 32, 32), width=0.1),
        (1, 8, 32, 32),
        1,
    ),
    "mc3_18": (
        lambda: make_cube_network("mc3_18", 2, shape=(8, 32, 32), width=0.1),
        (1, 8, 32, 32),
        1,
    ),
    "r2plus1d_18": (
        lambda: make_cube_network("r2plus1d_18", 2, shape=(8, 32, 32), width=0.1),
        (1, 8, 32, 32),
        1,
    ),
    "S4": (lambda: make_stain_network("s4", 3, encoder="small"), (3, 64, 64), 3),
    "early fusion": (lambda: make_stain_network("early", 3, encoder="small"), (3, 64, 64), 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_maps_by_every_method_and_comes_out_as_it_went_in(name):
    make, shape, parts = MODELS[name]
    torch.manual_seed(1)
    network = make().train()
    images = torch.rand(2, *shape)
    before = state(network)
    for method in (
        METHODS[:3] if name == "DenseNet" else METHODS
    ):  # 64 passes through 169 layers take too long
        maps = [
            saliency_maps(network, images, method=method, target_class=asked) for asked in (0, 1)
        ]
        assert maps[0].shape == (2, parts, *shape[1:]) and maps[0].dtype == np.float32
        assert all(np.isfinite(one).all() and (one >= 0).all() for one in maps)
        # random weights may speak for neither class: then the map is empty, and that is no fault
        assert all(np.isfinite(one).all() and one.min() >= 0 for one in maps), method
        assert state(network) == before, method


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("TinyCNN", "convolutions.14"),
        ("SynapseCNN", "convolutions.14"),
        ("ViT", "encoder.layers.encoder_layer_1.ln_1"),
    ],
)
def test_the_model_chooses_its_layer(name, layer):
    make, shape, _ = MODELS[name]
    assert target_layers(make(), torch.rand(1, *shape)) == [(layer,)]


def test_the_layer_goes_with_the_size_of_the_images():
    network = PretrainedCNN("resnet18", 2)
    chosen = {
        size: target_layers(network, torch.rand(1, 1, size, size))[0][0] for size in (224, 112, 64)
    }
    assert chosen == {224: "backbone.layer4", 112: "backbone.layer3", 64: "backbone.layer2"}
    fine = target_layers(network, torch.rand(1, 1, 224, 224), "layercam")[0]
    assert fine == ("backbone.relu", "backbone.layer1", "backbone.layer2")
    stains = make_stain_network("s4", 2, encoder="small")
    assert [
        names[0].split(".")[1] for names in target_layers(stains, torch.rand(1, 2, 64, 64))
    ] == ["0", "1"]


@pytest.mark.parametrize("method", ["gradcam++", "layercam"])
def test_the_other_methods_are_those_of_the_library_too(network, method):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images = torch.rand(4, 1, 48, 32)
    maps = grad_cam_of_layers(network, images, [last_block(network)], 1, method=method)[:, 0]
    kind = {"gradcam++": pytorch_grad_cam.GradCAMPlusPlus, "layercam": pytorch_grad_cam.LayerCAM}[
        method
    ]
    library = kind(network, [last_block(network)])
    theirs = library(images, [ClassifierOutputTarget(1)] * 4)
    library.activations_and_grads.release()
    for ours, other in zip(maps, theirs, strict=True):
        assert ours.max() == 0 or np.corrcoef(ours.ravel(), other.ravel())[0, 1] > 0.99


def spot_network():
    """Finds bright spots anywhere, and says class 1 where there are any."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 2),
    )
    with torch.no_grad():
        network[0].weight.fill_(1 / 9)
        network[0].bias.fill_(-0.2)
        network[4].weight.copy_(torch.tensor([[-9.0, -9.0], [9.0, 9.0]]))
        network[4].bias.zero_()
    return network


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=8, deadline=None)
@given(y=st.integers(2, 25), x=st.integers(2, 25), more=st.integers(0, 8))
def test_maps_lie_on_the_cause_wherever_it_is(method, y, x, more):
    images = torch.zeros(1, 1, 32, 32 + more)
    images[0, 0, y : y + 5, x : x + 5] = 1
    found = saliency_maps(spot_network(), images, method=method, target_class=1)[0, 0]
    at = np.array(np.unravel_index(found.argmax(), found.shape))
    assert np.abs(at - [y + 2, x + 2]).max() <= (5 if method == "occlusion" else 3)


def test_one_class_for_each_image(network):
    images = torch.rand(5, 1, 32, 32)
    asked = [0, 2, 1, 1, 0]
    together = saliency_maps(network, images, target_class=asked, batch_size=2)
    for at, one in enumerate(asked):
        np.testing.assert_allclose(
            together[at],
            saliency_maps(network, images[at : at + 1], target_class=one)[0],
            atol=1e-6,
        )


def test_a_class_against_the_others_adds_up_where_there_are_two():
    """Of two classes the slope of the log-odds is the slope of one logit less that of the other."""
    torch.manual_seed(0)
    network = TinyCNN(1, 2).eval()
    images = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        network.head[-1].weight[0] = 0  # then the logit of class 1 is all there is
    layer = last_block(network)
    np.testing.assert_allclose(
        grad_cam_of_layers(network, images, [layer], 1, against_others=True),
        grad_cam_of_layers(network, images, [layer], 1),
        atol=1e-6,
    )


# bad input


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"method": "magic"}, "'magic' is unknown"),
        ({"target_class": 5}, "5 is no class of 3"),
        ({"target_class": [0, 7]}, "7 is no class of 3"),
        ({"layers": ["nowhere"]}, "no layer 'nowhere'"),
        ({"images": torch.full((2, 1, 32, 32), torch.nan)}, "not finite"),
        ({"images": torch.rand(2, 32, 32)}, "they have the shape"),
        ({"images": torch.rand(2, 1, 3, 3)}, "smaller than the stride"),
        ({"layers": ["head.0"]}, "without a place"),
    ],
)
@pytest.mark.parametrize("method", ["layercam", "occlusion"])
def test_what_cannot_be_mapped_is_named(network, wrong, words, method):
    if method == "occlusion" and "layers" in wrong:
        pytest.skip("occlusion needs no layer")
    before = state(network)
    with pytest.raises((InputError, ParameterError), match=words):
        saliency_maps(network, **({"images": torch.rand(2, 1, 32, 32), "method": method} | wrong))
    assert state(network) == before


def test_a_network_without_places_is_named_and_can_be_covered_up():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    images = torch.rand(3, 1, 8, 8)
    with pytest.raises(InputError, match="no layer that keeps the places"):
        saliency_maps(network, images)
    assert np.isfinite(saliency_maps(network, images, method="occlusion")).all()


def test_a_single_place_is_no_map():
    network = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten(), nn.Linear(2, 2))
    with pytest.raises(InputError, match="8 x 8 px leave a single place"):
        saliency_maps(network, torch.rand(1, 1, 8, 8))


def test_an_error_within_the_network_leaves_it_as_it_was(network):
    class Breaks(nn.Module):
        def forward(self, images):
            raise KeyError("inside")

    network.head.append(Breaks())
    before = state(network)
    for method in METHODS:
        with pytest.raises(KeyError, match="inside"):
            saliency_maps(network, torch.rand(2, 1, 32, 32), method=method)
        assert state(network) == before


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_a_batch_too_large_for_memory_is_split(network, method, error):
    sizes = []
    images = torch.rand(7, 1, 32, 32)

    def full(_, given):
        sizes.append(len(given[0]))
        if len(given[0]) > 2:
            raise error

    whole = saliency_maps(network, images, method=method, target_class=1)
    hook = network.register_forward_pre_hook(full)
    np.testing.assert_allclose(
        saliency_maps(network, images, method=method, target_class=1), whole, atol=1e-5
    )
    hook.remove()
    assert max(sizes) > 2 and sizes[-1] <= 2


def test_an_image_too_large_for_memory_is_named_and_other_errors_pass():
    def fail(error):
        def compute(rows):
            raise error

        return compute

    with pytest.raises(InputError, match="a single one"):
        in_batches(fail(MemoryError()), 4, 4)
    with pytest.raises(RuntimeError, match="memory format"):
        in_batches(fail(RuntimeError("unsupported memory format option")), 4, 4)


@pytest.mark.parametrize("shape", [(3, 1, 40, 32), (2, 2, 8, 32, 32)])
def test_blurred_keeps_the_mean_and_loses_the_detail(shape):
    images = torch.rand(shape)
    veiled = blurred(images)
    assert (
        veiled.shape == images.shape
        and abs(veiled.mean() - images.mean()) < 0.01
        and veiled.std() < 0.3 * images.std()
    )


@pytest.mark.parametrize("shape", [(3, 2, 12, 10), (3, 1, 5, 12, 10)])
def test_saved_maps_are_read_again_as_they_were(tmp_path, shape):
    import tifffile

    maps = np.random.default_rng(0).random(shape, dtype=np.float32) * 7
    path = save_maps(tmp_path / "new", "network", maps, pd.DataFrame({"id": ["a", "b", "c"]}))
    found = tifffile.imread(path).reshape(maps.shape if maps.ndim == 4 else (3, 5, 1, 12, 10))
    np.testing.assert_array_equal(found if maps.ndim == 4 else found.swapaxes(1, 2), maps)
    assert pd.read_csv(path.with_suffix(".csv"))["id"].tolist() == ["a", "b", "c"]
    with pytest.raises(InputError, match="table of 1 rows"):
        save_maps(tmp_path, "network", maps, pd.DataFrame({"id": ["a"]}))
