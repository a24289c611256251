"""The custom CNN has the size that was published, for both patch sizes."""

from itertools import pairwise

import pytest
import torch

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.models.synapse_cnn import SynapseCNN


@pytest.mark.parametrize(
    ("input_px", "pool"), [(128, "flatten"), (256, "flatten"), (128, "average")]
)
def test_parameters_follow_from_the_published_layers(input_px, pool):
    widths = (1, 32, 64, 128, 256)
    convolutions = sum(9 * a * b + b + 2 * b for a, b in pairwise(widths))
    flat = 256 * (input_px // 16) ** 2 if pool == "flatten" else 256
    network = SynapseCNN(input_px, pool=pool)
    assert (
        sum(part.numel() for part in network.parameters())
        == convolutions + flat * 256 + 256 + 2 * 256 + 2
    )
    assert (
        sum(part.numel() for part in network.parameters())
        == {(128, "flatten"): 4_583_874, (256, "flatten"): 17_166_786, (128, "average"): 455_106}[
            input_px, pool
        ]
    )


def test_shapes():
    network = SynapseCNN(64, 3).eval()
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 3)
    assert network.features(torch.rand(2, 1, 64, 64)).shape == (2, 256)
    assert SynapseCNN(64, pool="average").eval()(torch.rand(2, 1, 100, 80)).shape == (2, 2)


def test_patches_of_another_size_are_named():
    with pytest.raises(InputError, match="128 x 128 px, and this network was made for 64 x 64"):
        SynapseCNN(64)(torch.rand(1, 1, 128, 128))
    with pytest.raises(ParameterError, match="input_px"):
        SynapseCNN(8)
    with pytest.raises(ParameterError, match="max.*flatten"):
        SynapseCNN(64, pool="max")
