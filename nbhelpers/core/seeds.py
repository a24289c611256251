"""One seed for everything: Python, NumPy, torch, and every draw that is derived from it."""

from __future__ import annotations

import hashlib
import random

import numpy as np


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part, e.g. ``derive_seed(7, "augment", epoch, step)``.

    The same parts give the same seed on every machine and in every process (unlike ``hash``).
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*parts: object) -> np.random.Generator:
    """NumPy's generator, seeded by every part as :func:`derive_seed` says."""
    return np.random.default_rng(derive_seed(*parts))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask torch for deterministic algorithms."""
    import os

    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first CUDA call
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.set_flush_denormal(True)  # here, before torch starts its threads; see the trainer
