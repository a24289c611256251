"""How long a prediction takes, and how long it would have to: latency measured fairly, and the
roofline beneath it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from nbhelpers.core.errors import InputError, check_choice, check_range
from nbhelpers.inference.backends import BackendError, Drift, Ready, prepared_for, why_not
from nbhelpers.training.augment import Transform
from nbhelpers.training.forward import memory_format

DTYPES = ("fp32", "bf16", "int8")
PEAK_SIZE = 1024  # rows and columns of the matrices whose product is taken for the peak
STEADY = 1.5  # up to here the third quartile of times over the first is that of a quiet machine


@dataclass(frozen=True)
class Timing:
    """How times are measured: with so many threads (None: as many as torch has), in so many rounds,
    and for so many seconds at most.
    """

    threads: int | None = None
    rounds: int = 30
    seconds: float = 60.0


def timed_in_turn(
    runs: Mapping[str, Callable[[], object]], timing: Timing, warm_up: int = 3
) -> dict[str, np.ndarray]:
    """Milliseconds of every call, (rounds,) float64 by name: one call of each in turn, A B C A B C.

    What else runs on the machine slows all of them alike. ``warm_up`` rounds are not counted. When
    the seconds of ``timing`` are over no further round is begun, but three are made in any case.
    Its threads are up to the caller.
    """
    check_range("parameter rounds", timing.rounds, 1, 10**6)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(warm_up):
            run()
    began = time.perf_counter()
    for done in range(timing.rounds):
        if done >= 3 and time.perf_counter() - began > timing.seconds:
            break
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            spent[name].append(1e3 * (time.perf_counter() - started))
    return {name: np.asarray(values) for name, values in spent.items()}


def summary(spent_ms: np.ndarray, images: int = 1) -> dict[str, float | int]:
    """``median_ms``, ``p95_ms`` and ``fastest_ms`` per image, and ``rounds``, of calls that took
    ``images`` images each.
    """
    values = np.asarray(spent_ms) / images
    return {
        "median_ms": float(np.median(values)),
        "p95_ms": float(np.quantile(values, 0.95)),
        "fastest_ms": float(values.min()),
        "rounds": len(values),
    }


def multiply_adds(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of the matrix products and convolutions for one image of ``shape``, (channels,
    y, x).

    Counted by torch while the network runs; activations, pools and norms are left out, as they are
    in the peak.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    was_training = network.training
    fast = torch.backends.mha.get_fastpath_enabled()
    network.eval()
    # attention in fused steps would not be counted, here and in sdpa
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            network(torch.zeros(1, *shape, device=next(network.parameters()).device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        network.train(was_training)
    return counter.get_total_flops() // 2


def peak_product(dtype: str, size: int = PEAK_SIZE) -> Callable[[], object] | None:
    """A product of two square matrices in "fp32", "bf16" or "int8" (sums in 32 bit), with torch's
    threads: the most that this processor is asked for. None where torch has no such product here.
    """
    check_choice("matrix peak", dtype, DTYPES)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[dtype]
    product = torch._int_mm if dtype == "int8" else torch.mm
    draw = torch.Generator().manual_seed(size)
    pair = [torch.randint(-8, 8, (size, size), generator=draw).to(kind) for _ in range(2)]
    try:
        product(*pair)
    except (RuntimeError, NotImplementedError):  # no kernel for this processor
        return None
    return lambda: product(*pair)


def peak_rate(spent_ms: np.ndarray, size: int = PEAK_SIZE) -> float:
    """Multiply-adds per second of the fastest of these products."""
    return float(size**3 / (1e-3 * np.min(spent_ms)))


def disturbed(spent_ms: np.ndarray) -> bool:
    """Whether times differ so much that something else must have had the machine."""
    quarter, three_quarters = np.quantile(spent_ms, (0.25, 0.75))
    return bool(three_quarters > STEADY * quarter)


def floor_ms(work: int, peak: float | None) -> float | None:
    """The least time that ``work`` multiply-adds take at ``peak`` multiply-adds per second, in
    milliseconds.
    """
    return None if not peak else 1e3 * work / peak


def dtype_of(backend: str) -> str:
    """The number format that a backend computes in: "fp32", "bf16" or "int8"."""
    return backend.rsplit(" ", 1)[-1]


def offered(
    network: nn.Module,
    pixels: np.ndarray,
    transform: Transform,
    backends: Sequence[str],
    *,
    calibration: np.ndarray,
    threads: int | None = None,
) -> tuple[dict[str, Ready], pd.DataFrame]:
    """The backends that may be used for a network, and a table of all of them with the reasons.

    Each is compared with eager fp32 on ``pixels``, (n, c, y, x) uint8; ``calibration`` holds other
    images, from which int8 takes its ranges. Columns: ``backend``, ``status`` ("offered", "refused"
    or "not available"), ``drift`` (largest difference of a probability), ``changed`` (share of
    labels), ``n`` and ``reason``. All are made for images that come one at a time.
    """
    network = network.cpu().eval()
    plain = Ready("eager fp32", network).probabilities(pixels, transform)
    rows = []
    found = {}
    for backend in backends:
        row = {"backend": backend, "status": "not available"}
        row |= {"drift": None, "changed": None, "n": None, "reason": why_not(backend)}
        rows.append(row)
        if row["reason"]:
            continue
        try:
            ready = prepared_for(
                network,
                pixels,
                transform,
                backend,
                threads=threads,
                calibration=calibration,
                one_at_a_time=True,
            )
        except BackendError as error:
            row["reason"] = error.what
            continue
        drift = Drift.between(ready.probabilities(pixels, transform), plain)
        row |= {"drift": drift.probability, "changed": drift.changed, "n": drift.n}
        row |= {"status": "refused" if drift.too_far else "offered", "reason": drift.too_far}
        if backend == "eager bf16":
            order = memory_format(pixels.ndim, network)
            ready = Ready(backend, deepcopy(network).to(memory_format=order))
        found[backend] = ready
    return found, pd.DataFrame(rows)


def roofline(
    network: nn.Module,
    pixels: np.ndarray,
    transform: Transform,
    backends: Sequence[str],
    *,
    calibration: np.ndarray,
    timing: Timing,
) -> tuple[dict[str, Ready], pd.DataFrame]:
    """Every backend's distance from the least time that this processor could need for one image.

    The table of :func:`offered` with ``peak`` (multiply-adds per second of the backend's own
    dtype), ``floor_ms`` (multiply-adds by that), ``median_ms``, ``p95_ms``, ``fastest_ms`` of
    single images that are already decoded and prepared, ``times_floor`` and ``times_bf16_floor``
    (median over floor), and ``speedup`` over eager fp32. What is refused is timed too, so that it
    can be seen what the drift would have bought.

    Peaks are measured in the same rounds, in turn with the backends, so that what else runs here
    slows both. ``withdrawn`` says why there is no ``times_floor`` all
    the same: a backend was quicker than its floor, which therefore is none, or times differed too
    much.
    """
    backends = list(dict.fromkeys(["eager fp32", *backends]))
    ready, table = offered(
        network, pixels, transform, backends, calibration=calibration, threads=timing.threads
    )
    image = transform.evaluate(torch.from_numpy(np.array(pixels[:1]))).contiguous()
    work = multiply_adds(network, image.shape[1:])
    dtypes = dict.fromkeys([*map(dtype_of, ready), "bf16"])
    products = {dtype: peak_product(dtype) for dtype in dtypes}
    runs = {name: lambda one=one: one.run(image) for name, one in ready.items()}
    runs |= {dtype: product for dtype, product in products.items() if product}
    spent = timed_in_turn(runs, timing)
    peaks = {dtype: peak_rate(spent[dtype]) for dtype in dtypes if dtype in spent}
    bf16 = floor_ms(work, peaks.get("bf16"))
    rows = []
    for backend in table["backend"]:
        dtype = dtype_of(backend)
        floor = floor_ms(work, peaks.get(dtype))
        row = {"multiply_adds": work, "peak": peaks.get(dtype), "floor_ms": floor}
        if backend in spent:
            row |= summary(spent[backend])
            row["withdrawn"] = ""
            if floor and row["median_ms"] < floor:
                row["withdrawn"] = "quicker than its floor: the peak measured is not the highest"
            elif any(disturbed(spent[name]) for name in (backend, dtype, "bf16") if name in spent):
                row["withdrawn"] = "times differ too much: something else had the machine"
            if not row["withdrawn"]:
                row["times_floor"] = row["median_ms"] / floor if floor else None
                row["times_bf16_floor"] = row["median_ms"] / bf16 if bf16 else None
            row["speedup"] = float(np.median(spent["eager fp32"] / spent[backend]))
        rows.append(row)
    columns = ["times_floor", "times_bf16_floor", "withdrawn"]
    found = pd.DataFrame(rows)
    return ready, table.join(found.reindex(columns=[*found, *(set(columns) - set(found))]))


def fastest(table: pd.DataFrame) -> str:
    """The backend with the shortest median among those that are offered.

    Raises InputError where none is, as of a network whose probabilities are no numbers.
    """
    good = table[table["status"] == "offered"]
    if good.empty:
        reasons = "; ".join(filter(None, table["reason"])) or "nothing was measured"
        raise InputError(
            "latency",
            f"no backend is offered, not even eager fp32: {reasons}.",
            "Train the network again: its probabilities must be finite.",
        )
    return str(good.loc[good["median_ms"].idxmin(), "backend"])


def best_batch(
    ready: Ready,
    images: torch.Tensor,
    *,
    batches: Sequence[int] = (1, 8, 32),
    rounds: int = 5,
    seconds: float = 20.0,
) -> dict[str, float | int]:
    """``batch`` with the most images per second, ``images_per_s`` and ``batch_ms``
    per image there."""
    sizes = [size for size in batches if size <= len(images)] or [len(images)]
    runs = {str(size): lambda size=size: ready.run(images[:size]) for size in sizes}
    spent = timed_in_turn(runs, Timing(None, rounds, seconds), warm_up=1)
    each = {size: float(np.median(spent[str(size)])) / size for size in sizes}
    best = min(each, key=each.get)
    return {"batch": best, "images_per_s": 1e3 / each[best], "batch_ms": each[best]}
