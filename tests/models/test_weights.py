"""Weights: from a file, from torchvision, or none; each wrong file is refused with what is wrong
with it.
"""

import hashlib
import http.server
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nbhelpers.core.errors import CheckpointError, DownloadError, ParameterError
from nbhelpers.models import weights as module
from nbhelpers.models.resnet import PretrainedCNN, make_pretrained
from nbhelpers.models.weights import imagenet_file, make_backbone, read_weights


@pytest.fixture(scope="module")
def squeezenet():
    import torchvision

    torch.manual_seed(3)
    return torchvision.models.squeezenet1_0(weights=None)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """torch hub's cache in a folder of its own, so that files of this machine do not matter."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_with_its_imagenet_head_is_taken_without_it(squeezenet, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    tensors = squeezenet.state_dict()
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    body = make_backbone("squeezenet1_0", weights=path).eval()
    images = torch.rand(2, 3, 64, 64)
    expected = squeezenet.features.eval()(images).mean((2, 3))
    torch.testing.assert_close(body(images), expected)
    assert body(images).shape == (2, body.width)


def test_another_network_is_refused_with_the_parts_that_do_not_fit(squeezenet, tmp_path):
    path = tmp_path / "squeezenet.pth"
    torch.save(squeezenet.state_dict(), path)
    with pytest.raises(
        CheckpointError,
        match=r"no weights of resnet18 .*Missing.*bn1\.weight.*Unexpected.*features\.0",
    ):
        make_pretrained("resnet18", 2, weights=path)
    changed = squeezenet.state_dict() | {"features.0.weight": torch.zeros(96, 1, 7, 7)}
    torch.save(changed, path)
    with pytest.raises(
        CheckpointError, match=r"features\.0\.weight.*\[96, 1, 7, 7\].*\[96, 3, 7, 7\]"
    ):
        make_backbone("squeezenet1_0", weights=path)


STARTS = ["module.", "model.", "net.", "backbone.", "encoder.", "_orig_mod.", "network."]


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(STARTS), max_size=3), st.sampled_from(["", *module.STATE_DICTS]))
def test_what_training_scripts_write_before_the_names_is_taken_off(
    squeezenet, tmp_path, starts, table
):
    """Whatever stands before all names, in whatever order, and whatever lies beside the weights."""
    start = "".join(starts)
    tensors = {start + name: value for name, value in squeezenet.state_dict().items()}
    tensors |= {"projector.weight": torch.zeros(3)} if start else {}
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3, table: tensors, "optimizer": {"lr": 0.1}} if table else tensors, path)
    body = make_backbone("squeezenet1_0", weights=path)
    assert torch.equal(body.features[0].weight, squeezenet.features[0].weight)


def test_a_beginning_is_taken_off_only_where_the_names_fit_then(squeezenet, tmp_path):
    path = tmp_path / "weights.pth"
    tensors = squeezenet.state_dict()
    torch.save({f"module.{name}x": value for name, value in tensors.items()}, path)
    with pytest.raises(CheckpointError, match="no weights of squeezenet1_0"):
        make_backbone("squeezenet1_0", weights=path)
    both = {f"{who}.{name}": value for name, value in tensors.items() for who in ("q", "k")}
    torch.save(both, path)
    with pytest.raises(CheckpointError, match="no weights of squeezenet1_0"):
        make_backbone("squeezenet1_0", weights=path)
    torch.save({f"module.{name}": value for name, value in tensors.items()}, path)
    with pytest.raises(CheckpointError, match="no weights of resnet18"):
        make_backbone("resnet18", weights=path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(squeezenet, tmp_path, suffix, value):
    tensors = {name: one.clone() for name, one in squeezenet.state_dict().items()}
    tensors["features.3.squeeze.bias"][2] = value
    path = tmp_path / f"broken{suffix}"
    torch.save({"model": tensors}, path) if suffix == ".pth" else save_file(tensors, path)
    with pytest.raises(
        CheckpointError, match=r"broken.*features\.3\.squeeze\.bias hold NaN or inf"
    ):
        make_backbone("squeezenet1_0", weights=path)


def test_a_trained_network_of_the_collection_gives_its_backbone(tmp_path):
    torch.manual_seed(0)
    trained = PretrainedCNN("squeezenet1_0", 5)
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    again = make_pretrained("squeezenet1_0", 2, weights=tmp_path / "trained.safetensors")
    images = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(again.eval().features(images), trained.eval().features(images))


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (Evil(), "evil.pth", "any code"),
        ({"epoch": 3, "state_dict": {}}, "nested.pth", "plain table of tensors"),
        ({}, "empty.pth", "plain table"),
        (b"not a checkpoint", "cut.pth", "cut|damaged"),
        (b"not a checkpoint", "cut.safetensors", "no safetensors"),
        (b"x", "weights.h5", r"\.h5 are not read"),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, content, name, words):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=words):
        read_weights(path)
    assert "run" not in capsys.readouterr().out


def test_names_that_do_not_exist(tmp_path):
    with pytest.raises(ParameterError, match="resnet18.*mobilenet_v2"):
        make_backbone("resnet19")
    with pytest.raises(ParameterError, match="'resnet101' is unknown.*resnet18"):
        make_pretrained("resnet101", 2)
    with pytest.raises(CheckpointError, match="does not exist.*'imagenet', 'none'"):
        make_pretrained("resnet18", 2, weights=tmp_path / "absent.pth")


@pytest.fixture
def server(squeezenet, tmp_path, monkeypatch, no_hub):
    """Serves one file on this machine in place of torchvision's; ``server.served``
    says how often."""
    served = tmp_path / "served"
    served.mkdir()
    torch.save(squeezenet.state_dict(), served / "content")
    digits = hashlib.sha256((served / "content").read_bytes()).hexdigest()[:8]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            host.served += 1
            content = (served / "content").read_bytes()[: host.cut]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host.served = 0
    host.cut = None
    host.file = f"squeezenet1_0-{digits}.pth"
    url = f"http://127.0.0.1:{host.server_port}/{host.file}"
    monkeypatch.setattr(module, "imagenet_file", lambda name: (url, host.file, digits))
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield host
    host.shutdown()


def test_imagenet_weights_are_fetched_once_and_checked(server, squeezenet, tmp_path):
    for _ in range(2):
        body = make_backbone("squeezenet1_0", weights="imagenet", data_folder=tmp_path / "data")
    assert server.served == 1 and [path.name for path in (tmp_path / "data/weights").iterdir()] == [
        server.file
    ]
    assert torch.equal(body.features[0].weight, squeezenet.features[0].weight)
    (tmp_path / "data/weights" / server.file).write_bytes(b"changed")
    with pytest.raises(DownloadError, match="sha256 differs.*Delete it"):
        make_backbone("squeezenet1_0", weights="imagenet", data_folder=tmp_path / "data")


def test_torch_hubs_own_cache_is_used(server, tmp_path):
    cache = tmp_path / "torch home/hub/checkpoints"
    cache.mkdir(parents=True)
    (tmp_path / "served/content").rename(cache / server.file)
    make_backbone("squeezenet1_0", weights="imagenet", data_folder=tmp_path / "data")
    assert server.served == 0


def test_a_cut_download_leaves_nothing(server, tmp_path):
    server.cut = 1000
    with pytest.raises(DownloadError, match="cut or changed"):
        make_backbone("squeezenet1_0", weights="imagenet", data_folder=tmp_path / "data")
    assert not list((tmp_path / "data/weights").iterdir())


def test_without_a_network_the_error_says_what_to_put_where(no_hub, tmp_path, monkeypatch):
    import requests

    def offline(*arguments, **named):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "get", offline)
    with pytest.raises(DownloadError) as caught:
        make_pretrained("resnet18", 2, weights="imagenet", data_folder=tmp_path / "data")
    url, file, digits = imagenet_file("resnet18")
    assert url in str(caught.value) and f"data/weights/{file}" in str(caught.value)
    assert (
        "weights = 'none'" in str(caught.value) and file.startswith("resnet18-") and digits in file
    )
