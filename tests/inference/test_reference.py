"""What a checkpoint keeps of the training images: the same flags from the file as from the fit, and
no use of what is damaged or belongs to another network.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nbhelpers.core.errors import CheckpointError
from nbhelpers.inference import reference
from nbhelpers.inference.new_images import OutOfDistribution, flags, image_statistics
from nbhelpers.inference.reference import fit_reference, reference_tensors
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.phantoms.synapse import load_phantom_synapses
from nbhelpers.training.augment import Transform
from nbhelpers.training.checkpoints import load_checkpoint, save_checkpoint
from nbhelpers.training.recipe import Augmentation

LOOK = Transform(Augmentation(), 32)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return load_phantom_synapses(96, tmp_path_factory.mktemp("data"), neurons=12, seed=3)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return TinyCNN(1, 2).eval()


@pytest.fixture(scope="module")
def usual(network, images):
    return reference_tensors(network, images, images.ids, LOOK)


def save(path, network, beside):
    save_checkpoint(path, network, classes=("a", "b"), about={}, beside=beside)
    return path


@settings(max_examples=15, deadline=None)
@given(
    groups=st.integers(3, 30),
    per_group=st.integers(1, 6),
    widths=st.lists(st.integers(2, 40), min_size=1, max_size=2),
    seed=st.integers(0, 99),
)
def test_flags_are_the_same_before_and_after_the_file(
    tmp_path_factory, network, groups, per_group, widths, seed
):
    draw = np.random.default_rng(seed)
    count = max(20, groups * per_group)
    tables = [draw.normal(size=(count, width)) * 10.0 ** draw.integers(-3, 4) for width in widths]
    tables[0][:, 0] = 7  # a feature that never varies has no scale
    new = [table[:9] * factor for table, factor in zip(tables, (3, 2), strict=False)]
    known = fit_reference(*tables, groups=np.arange(count) % groups)
    path = save(tmp_path_factory.mktemp("file") / "x.safetensors", network, known.tensors())
    read = OutOfDistribution.of_checkpoint(path)
    assert np.array_equal(read.distances(*new), known.distances(*new))
    assert np.array_equal(read.unlike(*new), known.unlike(*new))
    assert (read.limit, read.rate) == (known.limit, known.rate)


def test_flags_come_from_the_file_alone(tmp_path, network, images, usual):
    path = save(tmp_path / "x.safetensors", network, usual)
    same, _ = load_checkpoint(path, TinyCNN)
    assert all(map(torch.equal, same.state_dict().values(), network.state_dict().values()))
    noise = np.random.default_rng(0).integers(0, 256, images.pixels[:8].shape).astype(np.uint8)
    strange = replace(images.take(range(8)), pixels=noise)
    unlike, rate = flags(path, network, strange, LOOK)
    assert unlike.all() and 0.01 <= rate < 0.1
    assert flags(path, network, images, LOOK)[0].mean() < 0.05


@pytest.mark.parametrize("few", [range(19), slice(0, 16)], ids=["images", "groups"])
def test_of_too_few_nothing_is_kept(tmp_path, network, images, few):
    ids = images.ids[np.argsort(images.groups, kind="stable")][few]
    kept = reference_tensors(network, images, ids, LOOK)
    path = save(tmp_path / "x.safetensors", network, kept)
    assert kept is None and OutOfDistribution.of_checkpoint(path) is None
    assert flags(path, network, images, LOOK) == (None, None)


def test_of_many_so_many_are_drawn(network, images, usual, monkeypatch):
    monkeypatch.setattr(reference, "MOST", 60)
    kept = reference_tensors(network, images, images.ids, LOOK)
    assert len(usual["usual_reference"]) == 96 and len(kept["usual_reference"]) == 60
    again = reference_tensors(network, images, images.ids, LOOK)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_a_model_of_before_that_kept_nothing_is_read(tmp_path, network, usual):
    empty = {name: value[:0] for name, value in usual.items() if value.ndim}
    path = save(tmp_path / "old.safetensors", network, empty)
    assert OutOfDistribution.of_checkpoint(path) is None


DAMAGE = {
    "not a number": lambda kept: kept | {"usual_mean": kept["usual_mean"] * torch.nan},
    "no scale": lambda kept: kept | {"usual_scale": kept["usual_scale"] * 0},
    "endless": lambda kept: kept | {"usual_axes": kept["usual_axes"] + torch.inf},
    "narrow": lambda kept: kept | {"usual_weight": kept["usual_weight"][1:]},
    "other axes": lambda kept: kept | {"usual_reference": kept["usual_reference"][:, 1:]},
    "flat": lambda kept: kept | {"usual_axes": kept["usual_axes"][0]},
    "no limit": lambda kept: {name: kept[name] for name in kept if name != "usual_limit"},
    "no axes": lambda kept: {name: kept[name] for name in kept if name != "usual_axes"},
    "more": lambda kept: kept | {"usual_more": torch.zeros(2)},
    "two limits": lambda kept: kept | {"usual_limit": torch.ones(2)},
    "no reference": lambda kept: {name: kept[name] for name in kept if "reference" not in name},
    "empty reference": lambda kept: kept | {"usual_reference": kept["usual_reference"][:0]},
    "one place": lambda kept: kept | {"usual_reference": torch.tensor(1.0)},
    "one axis": lambda kept: kept | {"usual_axes": torch.tensor(1.0)},
    "half": lambda kept: kept | {"usual_reference": kept["usual_reference"].bfloat16()},
    "whole": lambda kept: kept | {"usual_reference": kept["usual_reference"].int()},
    "complex": lambda kept: kept | {"usual_limit": torch.tensor(1 + 1j)},
    "limit 0": lambda kept: kept | {"usual_limit": torch.tensor(0.0)},
    "rate 0": lambda kept: kept | {"usual_rate": torch.tensor(0.0)},
    "rate 1": lambda kept: kept | {"usual_rate": torch.tensor(1.0)},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_refused_with_the_file(tmp_path, network, usual, damage):
    path = save(tmp_path / "mine.safetensors", network, damage(usual))
    with pytest.raises(CheckpointError, match=r"mine\.safetensors.*training images.*damaged"):
        OutOfDistribution.of_checkpoint(path)


def test_that_of_another_network_is_refused_with_the_file(tmp_path, network, images):
    look = image_statistics(images.pixels)
    path = save(tmp_path / "mine.safetensors", network, fit_reference(look).tensors())
    with pytest.raises(
        CheckpointError, match=r"mine\.safetensors.* 8 features, those of .* are 264"
    ):
        flags(path, network, images, LOOK)


def test_it_is_covered_by_the_hash_of_the_file(tmp_path, network, usual):
    path = save(tmp_path / "x.safetensors", network, usual)
    content = bytearray(path.read_bytes())
    place = content.find(load_file(path)["usual_mean"].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    for use in (OutOfDistribution.of_checkpoint, lambda file: load_checkpoint(file, TinyCNN)):
        with pytest.raises(CheckpointError, match="damaged after they were written"):
            use(path)
