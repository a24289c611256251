"""Every backend gives what fp32 gives, or is refused with the figures."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbhelpers.core.errors import ParameterError
from nbhelpers.inference import backends as inference
from nbhelpers.inference.backends import BACKENDS, BackendError, Drift, DriftLimit, predict
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.training.augment import Transform
from nbhelpers.training.recipe import Augmentation
from nbhelpers.training.trainer import predict_probabilities

PREPARATION = Transform(Augmentation(rotation_degrees=10, shift=0.05), 24, 3)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (9, 1, 32, 32), np.uint8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return TinyCNN(3, 3).eval()


def usable(backend: str) -> str:
    reason = inference.why_not(backend)
    if reason:
        pytest.skip(f"{backend}: {reason}")
    return backend


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=[pytest.mark.slow] * name.startswith("compiled"))
        for name in BACKENDS
    ],
)
def test_same_probabilities_as_the_trainer_for_every_view_and_batch_size(network, pixels, backend):
    ready = inference.prepared_for(
        network, pixels, PREPARATION, usable(backend), calibration=pixels
    )
    near = 1e-5 if backend.endswith("fp32") else 0.02
    for views, batch_size in ((1, 4), (3, 9)):
        settings = {"views": views, "channels_last": False, "batch_size": batch_size}
        plain = predict_probabilities(network, pixels, PREPARATION, precision="fp32", **settings)
        precision = "bf16" if backend == "eager bf16" else "fp32"
        found = predict_probabilities(ready, pixels, PREPARATION, precision=precision, **settings)
        assert found.shape == (9, 3) and found.dtype == np.float64
        assert np.allclose(found, plain, atol=near)
    turned = predict_probabilities(
        ready, pixels[::-1], PREPARATION, precision=precision, **settings
    )[::-1]
    assert np.allclose(turned, found, atol=near)  # each row belongs to its own image


@pytest.mark.parametrize(
    "backend", ["eager fp32", "int8", "onnx fp32", "openvino fp32", "openvino int8"]
)
def test_the_network_comes_out_as_it_went_in(pixels, backend):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = predict(network, pixels, PREPARATION)
    assert np.allclose(
        predict(network, pixels, PREPARATION, backend=usable(backend), check=pixels),
        plain,
        atol=0.02,
    )
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_3d_images(pixels):
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()

    class Volumes(Transform):
        def evaluate(self, pixels, view=0):
            return pixels.float() / 255

    volumes = np.random.default_rng(0).integers(0, 256, (3, 1, 6, 16, 16), np.uint8)
    plain = predict(network, volumes, Volumes(Augmentation()))
    assert np.allclose(
        predict(network, volumes, Volumes(Augmentation()), backend=usable("openvino fp32")),
        plain,
        atol=1e-5,
    )


@pytest.mark.parametrize("backend", ["eager bf16", "int8", "openvino bf16", "openvino int8"])
def test_a_backend_that_drifts_is_refused_with_the_figures(pixels, backend):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    images = PREPARATION.evaluate(torch.from_numpy(pixels))
    with (
        torch.no_grad()
    ):  # logits that are small differences of large numbers: eight bits of precision decide them
        network[-1].weight *= 1e4
        network[-1].bias.copy_(-network[:-1](images).mean(0) @ network[-1].weight.T)
    with pytest.raises(
        BackendError,
        match=r"differ by up to 0\.\d+ and .* % of the labels.*limits are 0\.1 and 0\.5 %",
    ):
        predict(network, pixels, PREPARATION, backend=usable(backend), check=pixels)
    wide = DriftLimit(probability=1, changed=1)
    assert (
        len(predict(network, pixels, PREPARATION, backend=backend, check=pixels, limit=wide)) == 9
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(2, 5))
def test_drift_is_what_it_says(seed, count, classes):
    rng = np.random.default_rng(seed)
    a = rng.dirichlet(np.ones(classes), count)
    b = rng.dirichlet(np.ones(classes), count)
    drift = Drift.between(a, b)
    assert drift.n == count and 0 <= drift.changed <= 1
    assert (np.abs(a - b) <= drift.probability).all() and (np.abs(a - b) == drift.probability).any()
    assert round(drift.changed * count) == sum(
        x.argmax() != y.argmax() for x, y in zip(a, b, strict=True)
    )
    assert Drift.between(a, a) == Drift(0, 0, count)
    assert not DriftLimit(0, 0).exceeded_by(Drift.between(a, a))


def test_values_that_are_not_finite_never_pass():
    fine = np.array([[0.5, 0.5], [0.1, 0.9]])
    assert DriftLimit().exceeded_by(Drift.between(np.where(fine == 0.1, np.nan, fine), fine))


def test_what_is_not_installed_or_unknown_is_named(network, pixels, monkeypatch):
    with pytest.raises(
        ParameterError,
        match="eager fp32, eager bf16, compiled bf16, int8, onnx fp32, onnx int8, openvino",
    ):
        predict(network, pixels, PREPARATION, backend="tensorflow")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        inference.importlib.util,
        "find_spec",
        lambda name: None if name == "openvino" else find(name),
    )
    with pytest.raises(BackendError, match="OpenVINO is not installed"):
        predict(network, pixels, PREPARATION, backend="openvino bf16")


def test_a_network_that_cannot_be_converted_is_named(pixels):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 2)

        def forward(self, images):
            return self.linear(
                images.mean((1, 2, 3), keepdim=True)[:, 0, 0] if images.sum().item() > 0 else images
            )

    usable("openvino fp32")
    with pytest.raises(BackendError, match="Odd cannot be converted"):
        predict(Odd(), pixels, PREPARATION, backend="openvino fp32")


class Undecided(nn.Module):
    """Cannot be traced: what it does depends on the image."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        return self.head(self.convolutions(images)) if images.shape[-1] > 4 else images.mean((2, 3))


def test_int8_of_a_network_that_cannot_be_traced_as_a_whole(pixels):
    torch.manual_seed(0)
    network = Undecided().eval()
    plain = predict(network, pixels, PREPARATION)
    ready = inference.prepared_for(network, pixels, PREPARATION, usable("int8"), calibration=pixels)
    assert "Quantized" in repr(ready.network.convolutions)
    found = predict(network, pixels, PREPARATION, backend="int8", check=pixels)
    assert 0 < np.abs(found - plain).max() < 0.02


@pytest.mark.parametrize("backend", ["int8", "openvino int8"])
def test_int8_without_images_to_calibrate_on(network, pixels, backend):
    usable(backend)
    with pytest.raises(BackendError, match="no images to take the ranges"):
        predict(network, pixels, PREPARATION, backend=backend)
    with pytest.raises(ParameterError, match="too few images"):
        predict(network, pixels, PREPARATION, backend=backend, check=pixels[:1])


def test_no_images():
    assert predict(nn.Identity(), np.zeros((0, 1, 8, 8), np.uint8), PREPARATION).shape == (0, 0)


def test_8_bits_are_compiled_for_one_stream(network, pixels):
    """With several streams OpenVINO sometimes packs 8-bit weights wrongly; bfloat16 is not
    concerned.
    """
    ready = inference.prepared_for(
        network, pixels, PREPARATION, usable("openvino int8"), threads=2, calibration=pixels
    )
    assert int(ready.compiled.get_property("NUM_STREAMS")) == 1


def test_several_threads_may_ask_openvino_at_once(network, pixels):
    from concurrent.futures import ThreadPoolExecutor

    ready = inference.prepared_for(network, pixels, PREPARATION, usable("openvino fp32"), threads=2)
    images = PREPARATION.evaluate(torch.from_numpy(np.tile(pixels, (8, 1, 1, 1))))
    alone = torch.cat([ready(image[None]) for image in images])
    with ThreadPoolExecutor(4) as pool:
        at_once = torch.cat(list(pool.map(lambda image: ready(image[None]), images)))
    assert (
        torch.equal(at_once, alone)
        and torch.equal(ready(images), alone)
        and not torch.equal(alone[0], alone[1])
    )
