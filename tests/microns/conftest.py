"""A miniature over a small volume of noise (the phantom takes seconds to draw), and a proxy of it
that spoils replies.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

# looks like a token of CAVE, so that a search for it finds any leak
SECRET = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"


def noise_volume(
    shape_px=(32, 192, 256), neurons: int = 16, synapses: int = 400, seed: int = 0
) -> SimpleNamespace:
    """What make_synapse_volume gives, but of noise."""
    rng = np.random.default_rng(seed)
    origin = np.array([64000.0, 128000.0, 4000.0])
    voxel = np.array([8.0, 8.0, 40.0])
    extent = np.array(shape_px[::-1]) * voxel
    roots = 864691135000000000 + rng.permutation(neurons) * 1000

    def places(number: int, prefix: str = "") -> dict[str, np.ndarray]:
        at = origin + rng.uniform(0.1, 0.9, (number, 3)) * extent
        return {f"{prefix}{axis}_nm": at[:, column] for column, axis in enumerate("xyz")}

    table = pd.DataFrame(
        {
            "root_id": roots,
            "nucleus_id": 200000 + np.arange(neurons),
            "cell_type": np.where(np.arange(neurons) % 2, "inhibitory", "excitatory"),
            **places(neurons),
        }
    )
    owner = rng.integers(0, neurons, synapses)
    post = np.where(
        rng.random(synapses) < 0.5,
        rng.choice(roots, synapses),
        864691130000000000 + np.arange(synapses),
    )
    rows = pd.DataFrame(
        {
            "id": 10**8 + rng.permutation(synapses),
            "pre_root_id": roots[owner],
            "post_root_id": post,
            **places(synapses),
            **places(synapses, "pre_"),
            **places(synapses, "post_"),
            "size": rng.integers(100, 10000, synapses),
        }
    )
    return SimpleNamespace(
        pixels=rng.integers(1, 255, shape_px, dtype=np.uint8),
        origin_nm=tuple(origin),
        voxel_nm=(40.0, 8.0, 8.0),
        neurons=table,
        synapses=rows,
    )


@pytest.fixture(scope="session")
def make_miniature():
    """Starts a miniature over noise; the caller closes it."""
    from nbhelpers.microns.miniature import MiniatureSettings, miniature

    volume = noise_volume()
    named = {field.name for field in fields(MiniatureSettings)}

    def make(volume_seed: int = 0, **options: object):
        here = noise_volume(seed=volume_seed) if volume_seed else volume
        settings = MiniatureSettings(**{name: options.pop(name) for name in named & set(options)})
        return miniature(settings, **{"volume": here, "token": SECRET, **options})

    return make


@pytest.fixture(scope="session")
def miniature(make_miniature):
    """One running miniature over noise, with a token that is to stay secret."""
    with make_miniature() as server:
        yield server


@pytest.fixture
def asked(monkeypatch):
    """The paths that any miniature is asked for, in order."""
    from nbhelpers.microns.miniature_server import _Handler

    paths = []
    answer = _Handler._answer

    def noted(handler, data):
        paths.append(handler.path)
        return answer(handler, data)

    monkeypatch.setattr(_Handler, "_answer", noted)
    return paths


@pytest.fixture
def faulty(miniature):
    """Starts a proxy of the miniature that spoils replies: ``faulty(kind="503", times=2)`` -> its
    address.
    """
    spec = importlib.util.spec_from_file_location(
        "faulty_proxy", Path(__file__).with_name("faulty_proxy.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    made = []

    def make(**fault: object):
        made.append(module.FaultyProxy(miniature.address, module.Fault(**fault)))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()
