"""A trained network run by another program than PyTorch, or in fewer bits, and how far that drifts
from plain fp32.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
import threading
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nbhelpers.core.errors import InputError, check_choice
from nbhelpers.training.forward import memory_format, predict_probabilities, uses_bf16
from nbhelpers.training.transform import EvaluationTransform

BACKENDS = (
    "eager fp32",
    "eager bf16",
    "onnx fp32",
    "openvino fp32",
    "openvino bf16",
    "openvino int8",
)
# What is let pass. On 200 phantoms the network of demo2d in bf16 and in int8 lies up to .07 from
# fp32, on the steep part between the classes, and changes no label.
MOST_DRIFT = 0.1  # of a probability
MOST_CHANGED = 0.005  # share of the labels


class BackendError(InputError):
    """A backend that is not installed, cannot run a network, or whose probabilities drift too far
    from fp32.
    """


@dataclass(frozen=True)
class Drift:
    """How far a backend's probabilities lie from those of eager fp32 on the same images."""

    probability: float  # the largest absolute difference of any probability
    changed: float  # the share of images whose most probable class is another one
    n: int  # images compared

    @classmethod
    def between(cls, probabilities: np.ndarray, reference: np.ndarray) -> Drift:
        """Of two (n, classes) tables of the same images; values that are not finite count as the
        widest drift.
        """
        difference = np.abs(np.asarray(probabilities) - reference)
        changed = np.argmax(probabilities, 1) != np.argmax(reference, 1)
        widest = np.where(np.isfinite(difference), difference, 1.0).max()
        return cls(float(widest), float(changed.mean()), len(reference))

    @property
    def too_far(self) -> str:
        """Why it must not be used, with the figures; '' where it may."""
        if self.probability <= MOST_DRIFT and self.changed <= MOST_CHANGED:
            return ""
        return f"{self}; {limits()}"

    def __str__(self) -> str:
        return (
            f"probabilities differ by up to {self.probability:.4f} and {100 * self.changed:.1f} % "
            f"of the labels change, on {self.n} images"
        )


def limits() -> str:
    """How far a backend may drift, in words."""
    return f"the limits are {MOST_DRIFT:g} and {100 * MOST_CHANGED:g} %"


@dataclass(frozen=True)
class Ready:
    """A network as one backend runs it."""

    backend: str
    network: nn.Module

    def probabilities(
        self,
        pixels: np.ndarray,
        transform: EvaluationTransform,
        *,
        test_time_augmentation: int = 1,
        batch_size: int = 128,
    ) -> np.ndarray:
        """Of stored images, as :func:`predict_probabilities` gives them."""
        low = self.backend == "eager bf16"
        return predict_probabilities(
            self.network,
            pixels,
            transform,
            test_time_augmentation=test_time_augmentation,
            precision="bf16" if low else "fp32",
            channels_last=low,
            batch_size=batch_size,
        )

    @torch.inference_mode()
    def run(self, images: torch.Tensor) -> torch.Tensor:
        """Prepared images, (n, c, y, x) float, to (n, classes) probabilities."""
        low = self.backend == "eager bf16"
        if low:
            images = images.contiguous(memory_format=memory_format(images.ndim, self.network))
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            return self.network(images).float().softmax(1)


# what an optional backend needs, and what to say where it is missing
_NEEDS = {
    "openvino": ("openvino", "OpenVINO", "pip install openvino"),
    "openvino int8": ("nncf", "NNCF", "pip install nncf"),
    "onnx": ("onnxruntime", "ONNX Runtime", "pip install onnxruntime"),
    "onnx fp32": ("onnxscript", "onnxscript", "pip install onnxscript"),
}


def why_not(backend: str) -> str:
    """Why a backend cannot be used on this machine, in words; '' where it can. Raises
    ParameterError for an unknown name."""
    check_choice("parameter backend", backend, BACKENDS)
    for of in (program_of(backend), backend):
        if of not in _NEEDS:
            continue
        module, name, command = _NEEDS[of]
        if importlib.util.find_spec(module) is None:
            return (
                f"{name} is not installed; it comes with the environment of this collection, or: "
                f"{command}"
            )
    if backend == "eager bf16" and not uses_bf16("auto"):
        return "this processor has no bfloat16 instructions, so bfloat16 would be slower than fp32"
    if backend == "openvino bf16" and not _openvino_has_bf16():
        return "this processor has no bfloat16 instructions that OpenVINO uses"
    return ""


def check_usable(backend: str, fix: str) -> None:
    """Raises BackendError, with this fix, for a backend that :func:`why_not` has a reason
    against.
    """
    reason = why_not(backend)
    if reason:
        raise BackendError(f"backend {backend}", f"{reason}.", fix)


def program_of(backend: str) -> str:
    """What runs it: "eager", "onnx" or "openvino"."""
    return backend.split(" ", 1)[0]


def _openvino_has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def prepared_for(
    network: nn.Module,
    pixels: np.ndarray,
    transform: EvaluationTransform,
    backend: str,
    *,
    threads: int | None = None,
    calibration: np.ndarray | None = None,
    one_at_a_time: bool = False,
) -> Ready:
    """The network as the backend runs it: itself, or compiled for images of the shape of
    ``pixels``.

    ``calibration`` holds images like those to come, some dozens of them, from which int8 takes the
    range of every layer. ``threads`` is of the other programs; by default as many as torch has.
    ``one_at_a_time`` is for images that come singly and are waited for: all threads of OpenVINO
    then work on the same image. Raises BackendError.
    """
    check_usable(backend, "Use eager fp32.")
    if backend.startswith("eager"):
        return Ready(backend, network)
    ranges = None
    if backend.endswith("int8"):
        if calibration is None or not len(calibration):
            raise BackendError(
                f"backend {backend}",
                "it has no images to take the ranges of its layers from.",
                "Give some dozens of images as calibration.",
            )
        ranges = transform.evaluate(torch.from_numpy(np.array(calibration)))
    example = transform.evaluate(torch.from_numpy(np.array(pixels[:1])))
    threads = threads or torch.get_num_threads()
    if backend.startswith("onnx"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            onnx_file(network, example, path)
            return Ready(backend, OnnxNetwork(path, threads=threads))
    model = openvino_model(network, example, ranges)
    low = backend.endswith("bf16")
    compiled = OpenVinoNetwork(model, bf16=low, threads=threads, one_at_a_time=one_at_a_time)
    return Ready(backend, compiled)


def onnx_file(network: nn.Module, example: torch.Tensor, path: str | Path) -> None:
    """Write a network in evaluation mode as one ONNX file for single images of the shape of
    ``example``, (1, c, ...). Raises BackendError.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                deepcopy(network).cpu().eval(),
                (example[:1].contiguous(),),
                str(path),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # whatever the exporter cannot follow
        raise _not_converted("onnx", network, error) from None


def _not_converted(program: str, network: nn.Module, error: Exception) -> BackendError:
    return BackendError(
        f"backend {program}",
        f"{type(network).__name__} cannot be converted "
        f"({type(error).__name__}: {str(error)[:200]}).",
        "Use eager bf16 or fp32.",
    )


class OnnxNetwork(nn.Module):
    """A network that :func:`onnx_file` wrote, run by ONNX Runtime on the processor, image by
    image.
    """

    def __init__(self, path: str | Path, *, threads: int):
        import onnxruntime

        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells callers the device
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, c, ...) float to (n, classes) float32 logits."""
        found = [
            self.session.run(None, {"images": image[None]})[0]
            for image in images.contiguous().numpy()
        ]
        return torch.from_numpy(np.concatenate(found))


def openvino_model(
    network: nn.Module, example: torch.Tensor, calibration: torch.Tensor | None = None
) -> object:
    """A network in evaluation mode as an OpenVINO model for single images of the shape of
    ``example``, (1, c, ...).

    With ``calibration`` images, (n, c, ...) float, NNCF turns it into 8-bit integers. Raises
    BackendError.
    """
    import openvino

    try:
        with torch.no_grad():
            exported = torch.export.export(
                deepcopy(network).cpu().eval(), (example[:1].contiguous(),)
            )
        model = openvino.convert_model(exported)
    except Exception as error:  # whatever torch.export or the converter cannot follow
        raise _not_converted("openvino", network, error) from None
    model.reshape([1, *example.shape[1:]])
    return model if calibration is None else _in_8_bits(model, calibration)


def _in_8_bits(model: object, calibration: torch.Tensor) -> object:
    """An OpenVINO model quantised by NNCF after training, without its progress bars and hints."""
    for name in ("torch.utils.cpp_extension", "nncf"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import nncf

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its progress bar needs ipywidgets
            return nncf.quantize(
                model,
                nncf.Dataset([image[None].numpy() for image in calibration.contiguous()]),
                subset_size=len(calibration),
                preset=nncf.QuantizationPreset.MIXED,
            )
    except Exception as error:  # whatever NNCF cannot follow
        raise BackendError(
            "backend openvino int8",
            f"the network cannot be quantised ({type(error).__name__}: {str(error)[:200]}).",
            "Use openvino bf16 or eager fp32.",
        ) from None


class OpenVinoNetwork(nn.Module):
    """What :func:`openvino_model` made, or the path of its ``.xml`` file, compiled for the
    processor.

    Images go in one by one on as many streams as fit the threads: on processors without matrix
    instructions (AMX) one image stays in the cache where a batch does not, which is more than twice
    as fast for a ResNet-18. With ``one_at_a_time`` all threads work on the same image instead.
    """

    def __init__(self, model: object, *, bf16: bool, threads: int, one_at_a_time: bool = False):
        import openvino

        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells callers the device
        if isinstance(model, str):
            model = openvino.Core().read_model(model)
        # With several streams, OpenVINO 2026.4 packs 8-bit weights wrongly in 2 to 5 of 100
        # compilations.
        in_8_bits = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY" if one_at_a_time else "THROUGHPUT",
        }
        if in_8_bits:
            settings["NUM_STREAMS"] = 1
        self.compiled = openvino.Core().compile_model(model, "CPU", settings)
        self.classes = int(model.output(0).get_partial_shape()[1].get_length())
        self.mine = threading.local()  # a request of its own for each thread that asks
        self.queue = None if one_at_a_time else openvino.AsyncInferQueue(self.compiled)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, c, ...) float to (n, classes) float32 logits. Several threads may ask at once, each
        with one image.
        """
        arrays = images.contiguous().numpy()
        found = np.full((len(arrays), self.classes), np.nan, np.float32)
        if self.queue is None or len(arrays) == 1:
            # without a queue and without copying what goes in
            if not hasattr(self.mine, "request"):
                self.mine.request = self.compiled.create_infer_request()
            for row, image in enumerate(arrays):
                found[row] = self.mine.request.infer([image[None]], share_inputs=True)[0][0]
            return torch.from_numpy(found)
        self.queue.set_callback(
            lambda request, row: found.__setitem__(row, request.get_output_tensor(0).data[0])
        )
        for row, image in enumerate(arrays):
            self.queue.start_async([image[None]], row)
        self.queue.wait_all()
        return torch.from_numpy(found)
