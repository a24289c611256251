"""Prediction by the backend that is asked for, refused where it drifts from plain fp32."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import shutil
import tempfile
import threading
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.training.trainer import memory_format, predict_probabilities, uses_bf16

if TYPE_CHECKING:
    from nbhelpers.training.augment import Transform

BACKENDS = (
    "eager fp32",
    "eager bf16",
    "compiled bf16",
    "int8",
    "onnx fp32",
    "onnx int8",
    "openvino fp32",
    "openvino bf16",
    "openvino int8",
)
ENGINES = ("x86", "onednn", "fbgemm")  # torch's int8 kernels, the fastest first


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
        return cls(
            probability=float(np.where(np.isfinite(difference), difference, 1.0).max()),
            changed=float((np.argmax(probabilities, 1) != np.argmax(reference, 1)).mean()),
            n=len(reference),
        )

    def __str__(self) -> str:
        return (
            f"probabilities differ by up to {self.probability:.4f} and {100 * self.changed:.1f} % "
            f"of the labels "
            f"change, on {self.n} images"
        )


@dataclass(frozen=True)
class DriftLimit:
    """What is let pass. On 200 phantoms the network of demo2d in bf16 and in int8 lies up to .07
    from fp32, on the steep part between the classes, and changes no label."""

    probability: float = 0.1
    changed: float = 0.005

    def exceeded_by(self, drift: Drift) -> bool:
        return drift.probability > self.probability or drift.changed > self.changed

    def __str__(self) -> str:
        return f"the limits are {self.probability:g} and {100 * self.changed:g} %"


def why_not(backend: str) -> str:
    """Why a backend cannot be used on this machine, in words; '' where it can. Raises
    ParameterError for an unknown name."""
    if backend not in BACKENDS:
        raise ParameterError(
            "parameter backend", f"{backend!r} is unknown.", f"Give one of {', '.join(BACKENDS)}."
        )
    if backend.startswith("openvino") and importlib.util.find_spec("openvino") is None:
        return (
            "OpenVINO is not installed; it comes with the environment of this collection, or: "
            "pip install openvino"
        )
    if backend == "openvino int8" and importlib.util.find_spec("nncf") is None:
        return (
            "NNCF is not installed; it comes with the environment of this collection, or: pip "
            "install nncf"
        )
    if backend.startswith("onnx") and importlib.util.find_spec("onnxruntime") is None:
        return (
            "ONNX Runtime is not installed; it comes with this collection, or: pip install "
            "onnxruntime"
        )
    if backend.startswith("onnx") and importlib.util.find_spec("onnxscript") is None:
        return (
            "onnxscript is not installed; it comes with this collection, or: pip install onnxscript"
        )
    if backend.startswith("compiled") and not _compiler():
        return "torch.compile needs a C++ compiler (g++ or clang++), and this machine has none"
    if backend == "int8" and not _int8_engine():
        return "this PyTorch has no int8 kernels for this processor"
    if backend in ("eager bf16", "compiled bf16") and not uses_bf16("auto"):
        return "this processor has no bfloat16 instructions, so bfloat16 would be slower than fp32"
    if backend == "openvino bf16" and not _openvino_has_bf16():
        return "this processor has no bfloat16 instructions that OpenVINO uses"
    return ""


def _int8_engine() -> str:
    return next(
        (name for name in ENGINES if name in torch.backends.quantized.supported_engines), ""
    )


def _compiler() -> str:
    return next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), "")


def _openvino_has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def predict(
    network: nn.Module,
    pixels: np.ndarray,
    transform: Transform,
    *,
    backend: str = "eager fp32",
    views: int = 1,
    check: np.ndarray | None = None,
    limit: DriftLimit | None = None,
    threads: int | None = None,
    batch_size: int = 128,
) -> np.ndarray:
    """(n, c, y, x) or (n, c, z, y, x) uint8 or uint16 to (n, classes) float64 probabilities, by one
    backend.

    Transform and views are those of ``predict_probabilities``, whatever the backend. ``check``
    holds images of the same shape (validation images, say) on which the backend is first compared
    with eager fp32; the int8 backends need them, as half of them set the ranges and the other half
    is compared. ``threads`` is of OpenVINO; by default as many as torch has. Raises BackendError
    when the backend is not installed, or drifts beyond ``limit`` on ``check``, with the figures.
    """
    if not len(pixels):
        return np.zeros((0, 0))
    calibration = None
    if backend.endswith("int8") and check is not None:
        calibration = check[::2]
        check = check[1::2]
    ready = prepared_for(
        network, pixels[:1], transform, backend, threads=threads, calibration=calibration
    )
    if check is not None:
        if not len(check):
            raise ParameterError(
                "parameter check", "there are too few images to compare on.", "Give at least 2."
            )
        drift = Drift.between(
            _run(ready, check, transform, backend, views, batch_size),
            _run(network, check, transform, "eager fp32", views, batch_size),
        )
        limit = limit or DriftLimit()
        if limit.exceeded_by(drift):
            raise BackendError(
                f"backend {backend}", f"it drifts from fp32: {drift}; {limit}.", "Use eager fp32."
            )
    return _run(ready, pixels, transform, backend, views, batch_size)


def prepared_for(
    network: nn.Module,
    pixels: np.ndarray,
    transform: Transform,
    backend: str,
    *,
    threads: int | None = None,
    calibration: np.ndarray | None = None,
    one_at_a_time: bool = False,
) -> nn.Module:
    """The network as the backend runs it: itself, or compiled for images of the shape of
    ``pixels``.

    ``calibration`` holds images like those to come, some dozens of them, from which the int8
    backends take the range of every layer. What comes out can be given to ``predict_probabilities``
    in place of the network. ``one_at_a_time`` is for images that come singly and are waited for:
    all threads of OpenVINO then work on the same image. Raises BackendError.
    """
    reason = why_not(backend)
    if reason:
        raise BackendError(f"backend {backend}", f"{reason}.", "Use eager fp32.")
    if backend.startswith("eager"):
        return network
    if backend.endswith("int8"):
        if calibration is None or not len(calibration):
            raise BackendError(
                f"backend {backend}",
                "it has no images to take the ranges of its layers from.",
                "Give some dozens of images as check or calibration.",
            )
        calibration = transform.evaluate(torch.from_numpy(np.array(calibration)))
    if backend == "int8":
        return Int8Network(network, calibration)
    example = transform.evaluate(torch.from_numpy(np.array(pixels[:1])))
    threads = threads or torch.get_num_threads()
    if backend.startswith("compiled"):
        return CompiledNetwork(network, example)
    if not backend.endswith("int8"):
        calibration = None
    if backend.startswith("onnx"):
        return OnnxNetwork(network, example, threads=threads, calibration=calibration)
    return OpenVinoNetwork(
        network,
        example,
        bf16=backend.endswith("bf16"),
        threads=threads,
        calibration=calibration,
        one_at_a_time=one_at_a_time,
    )


def _run(
    ready: nn.Module,
    pixels: np.ndarray,
    transform: Transform,
    backend: str,
    views: int,
    batch_size: int,
) -> np.ndarray:
    return predict_probabilities(
        ready,
        pixels,
        transform,
        views=views,
        batch_size=batch_size,
        precision="bf16" if backend == "eager bf16" else "fp32",
        channels_last=backend in ("eager bf16", "int8"),
    )


class Int8Network(nn.Module):
    """A network whose convolutions compute in 8-bit integers (PyTorch's static quantisation), for
    the processor.

    The range of every layer comes from the ``calibration`` images, (n, c, ...) float. A network
    that cannot be traced as a whole is quantised part by part: each direct part that holds
    convolutions.
    """

    def __init__(self, network: nn.Module, calibration: torch.Tensor):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells callers the device
        network = deepcopy(network).cpu().eval()
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = self.engine = _int8_engine()
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter(
                    "ignore"
                )  # deprecated in favour of a package that has no faster kernels yet
                self.network = self._quantised(network, calibration)
        except Exception as error:  # whatever the tracer or the quantiser cannot follow
            raise BackendError(
                "backend int8",
                f"{type(network).__name__} cannot be quantised "
                f"({type(error).__name__}: {str(error)[:200]}).",
                "Use eager bf16 or fp32.",
            ) from None
        finally:
            torch.backends.quantized.engine = before

    def _quantised(self, network: nn.Module, calibration: torch.Tensor) -> nn.Module:
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
        from torch.fx.proxy import TraceError

        settings = get_default_qconfig_mapping(self.engine)
        try:
            observed = prepare_fx(network, settings, (calibration[:1],))
            observed(calibration)
            return convert_fx(observed)
        except TraceError:
            parts = [
                name
                for name, part in network.named_children()
                if any(isinstance(inner, nn.Conv2d | nn.Conv3d) for inner in part.modules())
            ]
            if not parts:
                raise
        for name in parts:
            seen = []
            hook = network.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, seen=seen: seen.append(inputs)
            )
            network(calibration[:1])
            hook.remove()
            setattr(network, name, prepare_fx(network.get_submodule(name), settings, seen[0]))
        network(calibration)
        for name in parts:
            setattr(network, name, convert_fx(network.get_submodule(name)))
        return network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, c, ...) float to (n, classes) float32 logits."""
        return self.network(images)


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


class CompiledNetwork(nn.Module):
    """A network in bfloat16, compiled by torch.compile with its weights frozen into the code;
    images go in one by one.

    Compiling takes up to a minute and needs a C++ compiler; what it makes is found again in torch's
    own cache.
    """

    def __init__(self, network: nn.Module, example: torch.Tensor):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells callers the device
        network = deepcopy(network).cpu().eval()
        network = network.to(memory_format=memory_format(example.ndim, network))
        self._run = torch.compile(network, options={"freezing": True})
        try:
            self(example[:1])
        except Exception as error:  # whatever torch.compile cannot follow, and compilers that fail
            raise BackendError(
                "backend compiled",
                f"{type(network).__name__} cannot be compiled "
                f"({type(error).__name__}: {str(error)[:200]}).",
                "Use eager bf16 or fp32.",
            ) from None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, c, ...) float to (n, classes) float32 logits."""
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            images = images.clone()  # not made in inference mode, which freezing does not know
            order = memory_format(images.ndim, self)
            return torch.cat(
                [self._run(image[None].contiguous(memory_format=order)).float() for image in images]
            )


def onnx_file(
    network: nn.Module,
    example: torch.Tensor,
    path: str | Path,
    calibration: torch.Tensor | None = None,
) -> None:
    """Write a network in evaluation mode as one ONNX file for single images of the shape of
    ``example``, (1, c, ...).

    With ``calibration`` images, (n, c, ...) float, its layers compute in 8-bit integers. Raises
    BackendError.
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
        if calibration is not None:
            _onnx_in_8_bits(path, calibration)
    except Exception as error:  # whatever the exporter or the quantiser cannot follow
        raise BackendError(
            "backend onnx",
            f"{type(network).__name__} cannot be converted "
            f"({type(error).__name__}: {str(error)[:200]}).",
            "Use eager bf16 or fp32.",
        ) from None


def _onnx_in_8_bits(path: str | Path, calibration: torch.Tensor) -> None:
    """Quantise an ONNX file in its place, by ONNX Runtime."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self):
            self.left = iter(calibration.contiguous())

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"images": image[None].numpy()}

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it gives advice that was just followed
    try:
        quant_pre_process(str(path), str(path))
        quantize_static(str(path), str(path), Images(), per_channel=True)
    finally:
        logging.getLogger().setLevel(level)


class OnnxNetwork(nn.Module):
    """A network run by ONNX Runtime on the processor, image by image; in 8-bit integers with
    ``calibration``.
    """

    def __init__(
        self,
        network: nn.Module,
        example: torch.Tensor,
        *,
        threads: int,
        calibration: torch.Tensor | None = None,
    ):
        super().__init__()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            onnx_file(network, example, path, calibration)
            self._open(path, threads)

    @classmethod
    def from_file(cls, path: str | Path, *, threads: int) -> OnnxNetwork:
        """One that :func:`onnx_file` wrote."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._open(path, threads)
        return made

    def _open(self, path: str | Path, threads: int) -> None:
        import onnxruntime

        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells callers the device
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, c, ...) float to (n, classes) float32 logits."""
        return torch.from_numpy(
            np.concatenate(
                [
                    self.session.run(None, {"images": image[None]})[0]
                    for image in images.contiguous().numpy()
                ]
            )
        )


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
        raise BackendError(
            "backend openvino",
            f"{type(network).__name__} cannot be converted "
            f"({type(error).__name__}: {str(error)[:200]}).",
            "Use eager bf16 or fp32.",
        ) from None
    model.reshape([1, *example.shape[1:]])
    return model if calibration is None else _in_8_bits(model, calibration)


class OpenVinoNetwork(nn.Module):
    """A network compiled by OpenVINO for the processor; in evaluation mode, whatever it was in
    before.

    Images go in one by one on as many streams as fit the threads: on processors without matrix
    instructions (AMX) one image stays in the cache where a batch does not, which is more than twice
    as fast for a ResNet-18. With ``one_at_a_time`` all threads work on the same image instead.
    ``calibration`` images, (n, c, ...) float, turn the network into 8-bit integers first.
    """

    def __init__(
        self,
        network: nn.Module,
        example: torch.Tensor,
        *,
        bf16: bool,
        threads: int,
        calibration: torch.Tensor | None = None,
        one_at_a_time: bool = False,
    ):
        super().__init__()
        self._compile(openvino_model(network, example, calibration), bf16, threads, one_at_a_time)

    @classmethod
    def from_file(
        cls, path: str | Path, *, bf16: bool, threads: int, one_at_a_time: bool = False
    ) -> OpenVinoNetwork:
        """One that OpenVINO saved: the ``.xml`` file with the ``.bin`` beside it."""
        import openvino

        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._compile(openvino.Core().read_model(str(path)), bf16, threads, one_at_a_time)
        return made

    def _compile(self, model: object, bf16: bool, threads: int, one_at_a_time: bool) -> None:
        import openvino

        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells callers the device
        # With several streams, OpenVINO 2026.4 packs 8-bit weights wrongly in 2 to 5 of 100
        # compilations.
        in_8_bits = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
        self.compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY" if one_at_a_time else "THROUGHPUT",
                **({"NUM_STREAMS": 1} if in_8_bits else {}),
            },
        )
        self.classes = int(model.output(0).get_partial_shape()[1].get_length())
        self.mine = threading.local()  # a request of its own for each thread that asks
        self.queue = None if one_at_a_time else openvino.AsyncInferQueue(self.compiled)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, c, ...) float to (n, classes) float32 logits. Several threads may ask at once, each
        with one image.
        """
        arrays = images.contiguous().numpy()
        found = np.full((len(arrays), self.classes), np.nan, np.float32)
        if (
            self.queue is None or len(arrays) == 1
        ):  # without a queue and without copying what goes in
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
