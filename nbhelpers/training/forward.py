"""From stored pixels to probabilities: what predicting needs, without what training needs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nbhelpers.training.transform import EvaluationTransform

VOXELS_AT_ONCE = 2**22  # of volumes: 16 cubes of 16 x 128 x 128


@torch.inference_mode()
def predict_probabilities(
    network: nn.Module,
    pixels: np.ndarray,
    transform: EvaluationTransform,
    *,
    test_time_augmentation: int = 1,
    precision: str = "auto",
    channels_last: bool = True,
    batch_size: int = 128,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Images or volumes, uint8 or uint16, to (n, classes) float64 probabilities, averaged over
    ``test_time_augmentation`` views of each.

    ``pixels`` is (n, c, y, x) or (n, c, z, y, x), read batch by batch, so it may be a memory map
    larger than memory; ``rows`` are the row numbers to predict (all without), which are so never in
    memory together. At most ``batch_size`` at a time, fewer of large volumes. The network comes out
    as it went in.
    """
    was_training = network.training
    network = network.eval()
    device = next(network.parameters()).device
    low = uses_bf16(precision, device.type)
    count = len(pixels) if rows is None else len(rows)
    batch_size = images_at_once(pixels, batch_size)
    parts = []
    for start in range(0, count, batch_size):
        some = slice(start, start + batch_size)
        stored = np.array(pixels[some if rows is None else rows[some]])
        batch = torch.from_numpy(stored).to(device)
        total = 0.0
        for view in range(test_time_augmentation):
            images = transform.evaluate(batch, view)
            order = memory_format(images.ndim, network, channels_last)
            images = images.contiguous(memory_format=order)
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                logits = network(images)
            total = total + logits.double().softmax(1)
        parts.append((total / test_time_augmentation).cpu().numpy())
    network.train(was_training)
    return np.concatenate(parts) if parts else np.zeros((0, 0))


@torch.inference_mode()
def head_features(
    network: nn.Module,
    pixels: np.ndarray,
    evaluate: Callable[[torch.Tensor], torch.Tensor],
    batch_size: int = 128,
) -> np.ndarray:
    """Stored pixels, (n, c, ...), to (n, d) float64: what the head of the network sees of each
    image, which ``evaluate`` makes ready for it. The network comes out as it went in.
    """
    was_training = network.training
    device = next(network.parameters()).device
    network.eval()
    found = []
    for start in range(0, len(pixels), batch_size):
        batch = torch.from_numpy(np.array(pixels[start : start + batch_size])).to(device)
        found.append(network.features(evaluate(batch)).double().cpu().numpy())
    network.train(was_training)
    return np.concatenate(found)


def images_at_once(pixels: np.ndarray, most: int) -> int:
    """How many images are predicted at a time: ``most``, or fewer of volumes, so that memory stays
    bounded.
    """
    if pixels.ndim == 4:
        return most
    return max(1, min(most, VOXELS_AT_ONCE // int(np.prod(pixels.shape[2:]))))


def memory_format(axes: int, network: nn.Module, channels_last: bool = True) -> torch.memory_format:
    """The order in memory in which a batch goes through the network fastest, where
    ``channels_last`` allows it.

    Images, with four ``axes`` (n, c, y, x), go channels last. So do volumes (n, c, z, y, x), but
    not in the training of a network with group norm on a processor: the backward pass of group norm
    takes several times as long there.
    """
    if not channels_last or axes not in (4, 5):
        return torch.contiguous_format
    if axes == 4:
        return torch.channels_last
    slow = (
        network.training
        and next(network.parameters()).device.type == "cpu"
        and any(isinstance(part, nn.GroupNorm) for part in network.modules())
    )
    return torch.contiguous_format if slow else torch.channels_last_3d


def default_device() -> str:
    """Where networks are trained: "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def uses_bf16(precision: str, device: str | None = None) -> bool:
    """Whether training and prediction run in bfloat16: asked for, or "auto" and the processor has
    it.

    ``device`` is "cuda" or "cpu"; without it, the one that training uses.
    """
    if precision != "auto":
        return precision == "bf16"
    if (device or default_device()) == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # without its instructions, bf16 on the CPU is emulated and slower than fp32
    flags = processor_flags()
    arm = flags.split("Features", 1)[-1].split("\n", 1)[0]
    has_bf16 = "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in arm
    return has_bf16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def processor_flags() -> str:
    """What Linux says of the processor; empty elsewhere, where fp32 is the safe choice."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
