"""Every backend gives what fp32 gives, or is refused with the figures."""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbhelpers.core.errors import ParameterError
from nbhelpers.inference import backends as inference
from nbhelpers.inference.backends import BACKENDS, BackendError, Drift, Ready, prepared_for
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.training.augment import Transform
from nbhelpers.training.forward import predict_probabilities
from nbhelpers.training.recipe import Augmentation

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


def predicted(network, pixels, backend="eager fp32", transform=PREPARATION, **settings):
    ready = prepared_for(network, pixels, transform, usable(backend), calibration=pixels)
    return ready.probabilities(pixels, transform, **settings)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_probabilities_as_the_trainer_for_every_view_and_batch_size(network, pixels, backend):
    ready = prepared_for(network, pixels, PREPARATION, usable(backend), calibration=pixels)
    near = 1e-5 if backend.endswith("fp32") else 0.02
    for views, batch_size in ((1, 4), (3, 9)):
        settings = {"test_time_augmentation": views, "batch_size": batch_size}
        plain = predict_probabilities(
            network, pixels, PREPARATION, precision="fp32", channels_last=False, **settings
        )
        found = ready.probabilities(pixels, PREPARATION, **settings)
        assert found.shape == (9, 3) and found.dtype == np.float64
        assert np.allclose(found, plain, atol=near)
    turned = ready.probabilities(pixels[::-1], PREPARATION, **settings)[::-1]
    assert np.allclose(turned, found, atol=near)  # each row belongs to its own image


@pytest.mark.parametrize("backend", BACKENDS)
def test_prepared_images_and_stored_ones_give_the_same(network, pixels, backend):
    ready = prepared_for(network, pixels, PREPARATION, usable(backend), calibration=pixels)
    seen = PREPARATION.evaluate(torch.from_numpy(pixels)).contiguous()
    near = 1e-6 if backend.endswith("fp32") else 0.02
    assert np.allclose(ready.run(seen).numpy(), ready.probabilities(pixels, PREPARATION), atol=near)


@pytest.mark.parametrize("backend", ["eager fp32", "onnx fp32", "openvino fp32", "openvino int8"])
def test_the_network_comes_out_as_it_went_in(pixels, backend):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = predicted(network, pixels)
    assert np.allclose(predicted(network, pixels, backend), plain, atol=0.02)
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
    look = Volumes(Augmentation())
    plain = predicted(network, volumes, transform=look)
    assert np.allclose(predicted(network, volumes, "openvino fp32", look), plain, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager bf16", "openvino bf16", "openvino int8"])
def test_a_backend_that_drifts_says_so_with_the_figures(pixels, backend):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    images = PREPARATION.evaluate(torch.from_numpy(pixels))
    # logits that are small differences of large numbers: eight bits of precision decide them
    with torch.no_grad():
        network[-1].weight *= 1e4
        network[-1].bias.copy_(-network[:-1](images).mean(0) @ network[-1].weight.T)
    drift = Drift.between(predicted(network, pixels, backend), predicted(network, pixels))
    assert re.search(
        r"differ by up to 0\.\d+ and .* % of the labels.*limits are 0\.1 and 0\.5 %", drift.too_far
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
    assert Drift.between(a, a).too_far == ""


def test_values_that_are_not_finite_never_pass():
    fine = np.array([[0.5, 0.5], [0.1, 0.9]])
    assert Drift.between(np.where(fine == 0.1, np.nan, fine), fine).too_far


def test_what_is_not_installed_or_unknown_is_named(network, pixels, monkeypatch):
    with pytest.raises(
        ParameterError,
        match="eager fp32, eager bf16, onnx fp32, openvino",
    ):
        prepared_for(network, pixels, PREPARATION, "tensorflow")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        inference.importlib.util,
        "find_spec",
        lambda name: None if name == "openvino" else find(name),
    )
    with pytest.raises(BackendError, match="OpenVINO is not installed"):
        prepared_for(network, pixels, PREPARATION, "openvino bf16")


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
        prepared_for(Odd(), pixels, PREPARATION, "openvino fp32")


def test_int8_without_images_to_calibrate_on(network, pixels):
    usable("openvino int8")
    for some in (None, pixels[:0]):
        with pytest.raises(BackendError, match="no images to take the ranges"):
            prepared_for(network, pixels, PREPARATION, "openvino int8", calibration=some)


def test_no_images(network):
    nothing = np.zeros((0, 1, 8, 8), np.uint8)
    assert Ready("eager fp32", network).probabilities(nothing, PREPARATION).shape == (0, 0)


def test_8_bits_are_compiled_for_one_stream(network, pixels):
    """With several streams OpenVINO sometimes packs 8-bit weights wrongly; bfloat16 is not
    concerned.
    """
    ready = prepared_for(
        network, pixels, PREPARATION, usable("openvino int8"), threads=2, calibration=pixels
    )
    assert int(ready.network.compiled.get_property("NUM_STREAMS")) == 1


def test_several_threads_may_ask_openvino_at_once(network, pixels):
    from concurrent.futures import ThreadPoolExecutor

    backend = usable("openvino fp32")
    ready = prepared_for(network, pixels, PREPARATION, backend, threads=2).network
    images = PREPARATION.evaluate(torch.from_numpy(np.tile(pixels, (8, 1, 1, 1))))
    alone = torch.cat([ready(image[None]) for image in images])
    with ThreadPoolExecutor(4) as pool:
        at_once = torch.cat(list(pool.map(lambda image: ready(image[None]), images)))
    assert (
        torch.equal(at_once, alone)
        and torch.equal(ready(images), alone)
        and not torch.equal(alone[0], alone[1])
    )
