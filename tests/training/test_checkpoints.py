"""Checkpoints: what was saved comes back; what is foreign, cut or pickled is refused by name."""

import pytest
import torch
from torch import nn

from nbhelpers.core.errors import CheckpointError
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.training import checkpoints
from nbhelpers.training.checkpoints import (
    check_finite,
    load_checkpoint,
    read_card,
    save_checkpoint,
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = TinyCNN(1, 3).eval()
    path = tmp_path / "spine.safetensors"
    save_checkpoint(
        path, network, classes=("Mushroom", "Stubby", "Thin"), about={"note": "<b>", "score": None}
    )
    return path, network


def test_weights_and_card_come_back(saved):
    path, network = saved
    loaded, card = load_checkpoint(path, TinyCNN)
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(loaded(images), network(images)) and not loaded.training
    assert card["classes"] == ["Mushroom", "Stubby", "Thin"] and card["settings"] == {
        "in_channels": 1,
        "classes": 3,
    }


class OtherNetwork(nn.Module):
    pass


def test_another_architecture_is_refused(saved):
    with pytest.raises(CheckpointError, match=r"spine\.safetensors.*TinyCNN, not OtherNetwork"):
        load_checkpoint(saved[0], OtherNetwork)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    network = TinyCNN(1, 3)
    network.settings = {"in_channels": 3, "classes": 3}
    save_checkpoint(tmp_path / "x.safetensors", network, classes=("a", "b", "c"), about={})
    with pytest.raises(CheckpointError, match="do not fit TinyCNN"):
        load_checkpoint(tmp_path / "x.safetensors", TinyCNN)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.safetensors"])
def test_a_pickled_checkpoint_is_refused_whatever_its_name(tmp_path, name):
    torch.save(TinyCNN().state_dict(), tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name}.*pickled"):
        read_card(tmp_path / name)


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_a_cut_checkpoint_is_refused(saved, size):
    saved[0].write_bytes(saved[0].read_bytes()[:size])
    with pytest.raises(CheckpointError, match="cut or is no safetensors"):
        load_checkpoint(saved[0], TinyCNN)


def test_a_missing_or_foreign_checkpoint_is_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match="does not exist"):
        read_card(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no card"):
        read_card(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("first", [0x80, 0x50])
def test_a_header_length_that_looks_like_the_start_of_a_pickle_is_none(tmp_path, first):
    network = nn.Linear(2, 2)
    path = tmp_path / "net.safetensors"
    for length in range(600):
        save_checkpoint(path, network, classes=("a", "b"), about={"note": "x" * length})
        if path.read_bytes()[0] == first:
            break
    assert path.read_bytes()[0] == first
    assert read_card(path)["about"]["note"] == "x" * length
    path.write_bytes(b"\x80\x04" + bytes(20))
    with pytest.raises(CheckpointError, match="pickled"):
        read_card(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path, value, monkeypatch):
    network = TinyCNN(1, 2)
    with torch.no_grad():
        next(network.parameters()).view(-1)[3] = value
    name = next(iter(network.state_dict()))
    path = tmp_path / "broken.safetensors"
    with pytest.raises(CheckpointError, match=f"broken.*{name} hold NaN or infinity"):
        save_checkpoint(path, network, classes=("a", "b"), about={})
    assert not path.exists()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "check_finite", lambda tensors, path: None)
        save_checkpoint(path, network, classes=("a", "b"), about={})
    with pytest.raises(CheckpointError, match=f"broken.*{name} hold NaN or infinity"):
        load_checkpoint(path, TinyCNN)


@pytest.mark.parametrize("kind", ["float8", "sparse", "meta"])
def test_weights_of_a_kind_that_cannot_be_checked_are_refused_by_name(kind):
    value = {
        "float8": lambda: torch.zeros(2, 2).to(torch.float8_e4m3fn),
        "sparse": lambda: torch.eye(2).to_sparse_csr(),
        "meta": lambda: torch.zeros(2, 2, device="meta"),
    }[kind]()
    with pytest.raises(CheckpointError, match=r"weights head\.weight are of the kind"):
        check_finite({"head.weight": value}, "a.pth")
