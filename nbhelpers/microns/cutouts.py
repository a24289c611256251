"""Cutouts from a precomputed volume: planned by chunk, read once, and never filled in silence."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import sha256_of
from nbhelpers.microns.points import Points, checked

# groups of reads under way at one time: the next one is asked for while this one is waited for
AHEAD = 2
COMPRESSED = (".gz", ".br", ".zst")
DAMAGED = ("DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT")  # as tensorstore says it
GROUP_BYTES = 16 * 2**20  # of cutouts that are read as one batch
# of decoded chunks; the order of work is made for it, and so never depends on the machine
CACHE_BYTES = 1024 * 2**20
SPARE_LAYERS = 1  # of chunks in the cache, beside those of the layer under way
ANSWER_S = 60.0  # the longest wait for the first word of a server


class VolumeError(InputError):
    """A volume that cannot be opened or read: address, resolution level, server or local files."""


@dataclass(frozen=True)
class Scale:
    """One resolution level of a volume. Arrays in the order z, y, x; voxel i covers i to i + 1
    voxel sizes in nm.
    """

    mip: int
    key: str
    voxel_nm: tuple[float, float, float]
    first: tuple[int, int, int]
    shape: tuple[int, int, int]
    chunk: tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """Which box of voxels belongs to each point, and the order of work.

    ``starts`` (n, 3) int64: the first voxel (z, y, x) of each box, counted as the volume counts;
    ``shape_px`` (z, y, x); ``why`` (n,) text: the reason where the box does not lie wholly in the
    volume, else empty; ``order`` (kept,) int64: the rows that do, sorted so that neighbours in the
    volume follow one another.
    """

    shape_px: tuple[int, int, int]
    starts: np.ndarray
    why: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class Cut:
    """What was read: ``rows`` (kept,) int64, ``pixels`` one array (kept, z, y, x) per plan, and
    what was left out.
    """

    rows: np.ndarray
    pixels: list[np.ndarray]
    left_out: list[tuple[int, str, str]]  # row, why, fix


@dataclass(frozen=True)
class Volume:
    """One resolution level of a Neuroglancer precomputed volume, read with tensorstore.

    ``address`` is as given, ``scales`` all levels in its ``info``, ``scale`` the opened one,
    ``dtype`` uint8 or uint16, ``identity`` the hash of the ``info``, ``served`` the miniature that
    it says it is of, else empty.
    """

    address: str
    scale: Scale
    scales: tuple[Scale, ...]
    dtype: np.dtype
    identity: str
    timeout_s: float
    settings: dict[str, Any] = field(repr=False)
    _store: Any = field(repr=False)
    served: str = ""

    @classmethod
    def open(
        cls,
        url: str,
        *,
        mip: int = 0,
        cache_bytes: int = CACHE_BYTES,
        concurrency: int = 32,
        retries: int = 6,
        timeout_s: float = 300.0,
    ) -> Volume:
        """Open ``precomputed://`` plus http(s)://, gs://, s3:// (public buckets, without an
        account) or file://.

        Parameters
        ----------
        mip : resolution level, as the volume's ``info`` counts them.
        cache_bytes : memory for decoded chunks. The order of a plan is made for the default: with
            less, chunks are read more than once.
        concurrency : requests under way at one time.
        retries : further tries of a request that met 429, 5xx, a cut or a stalled answer, at
            growing distances (0.25 s doubling to 16 s).
        timeout_s : the longest wait for one group of cutouts. A request without a byte for 30 s
            counts as stalled, and a server that says nothing at all for 60 s is given up here.

        Raises VolumeError: no such address or server; not a precomputed image of one uint8 or
        uint16 channel; a mip that does not exist (the levels are listed); local chunks that were
        written compressed.
        """
        # stalled answers count as failed; libcurl has no such limit by itself (0 s), and reads it
        # from here
        os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "30")
        os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
        import tensorstore as ts

        store_url = _store_url(url)
        waits = {"max_retries": retries, "initial_delay": "250ms", "max_delay": "16s"}
        context = ts.Context(
            {
                "cache_pool": {"total_bytes_limit": cache_bytes},
                "http_request_retries": waits,
                "http_request_concurrency": {"limit": concurrency},
                "file_io_concurrency": {"limit": min(concurrency, 8)},
            }
        )
        info = _read_info(url, store_url, context, timeout_s)
        scales = _scales(url, info)
        if not 0 <= mip < len(scales):
            levels = "; ".join(f"{scale.mip}: {_nm(scale.voxel_nm)}" for scale in scales)
            raise VolumeError(
                "parameter mip", f"the volume has no mip {mip}.", f"It has {levels} (x, y, z)."
            )
        scale = scales[mip]
        if store_url.startswith("file://"):
            _refuse_compressed_files(_local_folder(store_url) / scale.key)
        try:
            store = ts.open(
                {
                    "driver": "neuroglancer_precomputed",
                    "kvstore": store_url,
                    "scale_index": mip,
                    # without this, a chunk that is not there reads as zeros
                    "fill_missing_data_reads": False,
                    "recheck_cached_metadata": "open",
                    "recheck_cached_data": False,
                },
                open=True,
                read=True,
                context=context,
            ).result(timeout=min(timeout_s, ANSWER_S))
        except (ValueError, OSError, TimeoutError) as error:
            raise VolumeError(
                url, f"the volume cannot be opened ({_plainly(error)}).", "Check the address."
            ) from None
        if store.domain[3].size != 1 or store.dtype.name not in ("uint8", "uint16"):
            raise VolumeError(
                url,
                f"it holds {store.domain[3].size} channels of {store.dtype.name}.",
                "Give the electron microscopy images: one channel of uint8 or uint16.",
            )
        store = store[ts.d["channel"][0]][ts.d["z", "y", "x"].transpose[:3]]
        settings = {
            "url": url,
            "mip": mip,
            "cache_bytes": cache_bytes,
            "concurrency": concurrency,
            "retries": retries,
            "timeout_s": timeout_s,
        }
        return cls(
            url,
            scale,
            scales,
            np.dtype(store.dtype.name),
            sha256_of(info),
            timeout_s,
            settings,
            store,
            str(info.get("served", "")),
        )

    @property
    def voxel_nm(self) -> tuple[float, float, float]:
        """nm per voxel along z, y, x."""
        return self.scale.voxel_nm

    def plan(
        self, points: Points, shape_px: Sequence[int], *, tile_bytes: int = CACHE_BYTES
    ) -> Plan:
        """The box of ``shape_px`` (y, x) or (z, y, x) around each point: its voxel has the index
        size // 2 in it.

        The work goes tile by tile: a tile is a square of chunks in y and x, and is gone through
        along z, so that what lies across it fits into ``tile_bytes`` and every chunk of it is read
        once. Only those at the sides of tiles are read again for the next tile.

        Raises UnitError for positions without a unit, and VolumeError for a box that no place in
        the volume can hold.
        """
        shape = tuple(int(side) for side in shape_px)
        shape = (1, *shape) if len(shape) == 2 else shape
        if len(shape) != 3 or min(shape) < 1:
            raise VolumeError(
                "parameter shape_px",
                f"it is {tuple(shape_px)}.",
                "Give (y, x) or (z, y, x), at least 1.",
            )
        first = np.array(self.scale.first)
        size = np.array(self.scale.shape)
        if (size < shape).any():
            raise VolumeError(
                "parameter shape_px",
                f"cutouts of {_px(shape)} are larger than the volume of "
                f"{_px(self.scale.shape)} at mip {self.scale.mip}.",
                "Choose a smaller size or another mip.",
            )
        centres = checked(points).voxel_index(self.voxel_nm[::-1])[:, ::-1]
        starts = centres - np.array(shape) // 2
        below = np.maximum(first - starts, 0)
        above = np.maximum(starts + shape - first - size, 0)
        outside = np.maximum(below, above)
        why = np.array(
            [
                _outside(one, centre, first, size) if one.any() else ""
                for one, centre in zip(outside, centres, strict=True)
            ],
            dtype=object,
        )
        inside = np.flatnonzero(~outside.any(axis=1))
        chunks = (starts[inside] - first) // self.scale.chunk
        tiles = chunks[:, 1:] // self._tile_side(shape, tile_bytes)
        # ties: by the place itself, so that the order does not depend on the order of the points
        order = inside[np.lexsort((*starts[inside].T[::-1], *chunks.T[::-1], *tiles.T[::-1]))]
        return Plan(shape, starts.astype(np.int64), why, order)

    def _tile_side(self, shape_px: Sequence[int], tile_bytes: int) -> int:
        """Chunks along each side of a tile. A cutout that begins in one of its chunks may end in
        another one further on, ``reach`` away, so that a layer of the tile is ``side + reach``
        wide. The last-used layers stay in the cache while the next one comes."""
        deep, high, wide = (
            math.ceil((size - 1) / chunk)
            for size, chunk in zip(shape_px, self.scale.chunk, strict=True)
        )
        held = (
            tile_bytes
            / (math.prod(self.scale.chunk) * self.dtype.itemsize)
            / (deep + 1 + SPARE_LAYERS)
        )
        side = 1
        while (side + 1 + high) * (side + 1 + wide) <= held:
            side += 1
        return side

    def cut(self, plans: Sequence[Plan], rows: np.ndarray) -> Cut:
        """Read the boxes of these rows, in this order, of all plans in one pass.

        Rows are read in groups of about 16 MB, each as one batch, so that every chunk of
        a group is asked for once; between groups the cache keeps them. A row that touches a chunk
        which the volume does not have is left out and listed. Raises VolumeError when the server or
        the disk fails for longer than the retries last.
        """
        import tensorstore as ts

        rows = np.asarray(rows, dtype=np.int64)
        pixels = [np.empty((len(rows), *plan.shape_px), self.dtype) for plan in plans]
        row_bytes = sum(math.prod(plan.shape_px) for plan in plans) * self.dtype.itemsize
        step = max(1, GROUP_BYTES // row_bytes)
        left_out = []
        kept = np.ones(len(rows), bool)
        under_way = deque()

        def collect() -> None:
            start, futures = under_way.popleft()
            for at, future in enumerate(futures):
                position = start + at // len(plans)
                plan = at % len(plans)
                try:
                    pixels[plan][position] = future.result(timeout=self.timeout_s)
                except TimeoutError:
                    raise VolumeError(
                        self.address,
                        f"no answer within {self.timeout_s:g} s.",
                        "Run again later: what is finished is kept.",
                    ) from None
                except (ValueError, OSError) as error:
                    missing = self._missing_chunk(error)
                    if kept[position]:
                        left_out.append(
                            (
                                int(rows[position]),
                                f"the volume has no chunk {missing} there.",
                                "Choose a version or mip of the volume that is complete, or do "
                                "without it.",
                            )
                        )
                    kept[position] = False

        for start in range(0, len(rows), step):
            reads = []
            with ts.Batch() as batch:
                for row in rows[start : start + step]:
                    reads += [self._box(plan, row).read(batch=batch) for plan in plans]
            under_way.append((start, reads))
            if len(under_way) >= AHEAD:
                collect()
        while under_way:
            collect()
        if not kept.all():
            pixels = [one[kept] for one in pixels]
        return Cut(rows[kept], pixels, left_out)

    def _box(self, plan: Plan, row: int) -> Any:
        z, y, x = plan.starts[row].tolist()
        depth, height, width = plan.shape_px
        return self._store[z : z + depth, y : y + height, x : x + width]

    def _missing_chunk(self, error: Exception) -> str:
        """Name of the missing chunk, when that is what the error says; every other
        error is raised."""
        text = _plainly(error)
        if "NOT_FOUND" not in text or not text.rstrip(". ").endswith("is missing"):
            fix = "Run again later: what is finished is kept."
            if "PERMISSION_DENIED" in text:
                fix = "The volume is not public, or the address is wrong."
            elif any(word in text for word in DAMAGED):
                fix = "The data are damaged."
            raise VolumeError(self.address, f"reading failed ({text}).", fix) from None
        name = text.rsplit(" is missing", 1)[0].rstrip('"').rsplit("/", 1)[-1]
        if _store_url(self.address).startswith("file://"):
            folder = _local_folder(_store_url(self.address)) / self.scale.key
            for suffix in COMPRESSED:
                if (folder / (name + suffix)).exists():
                    raise _compressed(folder / (name + suffix))
        return name


def _store_url(url: str) -> str:
    """Address for tensorstore. Public buckets go through plain HTTPS, where no account can get
    mixed in.
    """
    plain = str(url).removeprefix("precomputed://").rstrip("/") + "/"
    parts = urlsplit(plain)
    if parts.scheme == "gs" and parts.netloc:
        return f"https://storage.googleapis.com/{parts.netloc}{parts.path}"
    if parts.scheme == "s3" and parts.netloc:
        return f"https://{parts.netloc}.s3.amazonaws.com{parts.path}"
    if (parts.scheme in ("http", "https") and parts.netloc) or (
        parts.scheme == "file" and parts.path.startswith("/")
    ):
        return plain
    raise VolumeError(
        url,
        "this is no address of a volume.",
        "Give precomputed:// followed by https://, gs://, s3:// "
        "or file:// and the place of the folder that holds the file info.",
    )


def _local_folder(store_url: str) -> Path:
    return Path(unquote(urlsplit(store_url).path))


def _read_info(url: str, store_url: str, context: Any, timeout_s: float) -> dict[str, Any]:
    import tensorstore as ts

    try:
        wait_s = min(timeout_s, ANSWER_S)
        found = (
            ts.KvStore.open(store_url, context=context)
            .result(timeout=wait_s)
            .read("info")
            .result(timeout=wait_s)
        )
    except (ValueError, OSError) as error:
        why = _plainly(error)
        if isinstance(error, TimeoutError):
            why = f"no answer within {wait_s:g} s"
        raise VolumeError(
            url, f"the volume cannot be reached ({why}).", "Check the address and the network."
        ) from None
    try:
        if found.state != "value":
            raise ValueError("there is no file info")
        info = json.loads(found.value)
        if not info["scales"]:
            raise ValueError("it lists no resolution level")
        return info
    except (ValueError, KeyError, TypeError) as error:
        raise VolumeError(
            url,
            f"this is no precomputed volume ({error}).",
            "Give the folder that holds the file info.",
        ) from None


def _scales(url: str, info: dict[str, Any]) -> tuple[Scale, ...]:
    try:
        return tuple(
            Scale(
                mip,
                str(scale["key"]),
                tuple(map(float, scale["resolution"][::-1])),
                tuple(map(int, scale.get("voxel_offset", (0, 0, 0))[::-1])),
                tuple(map(int, scale["size"][::-1])),
                tuple(map(int, scale["chunk_sizes"][0][::-1])),
            )
            for mip, scale in enumerate(info["scales"])
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise VolumeError(
            url, f"its info is damaged ({type(error).__name__}: {error}).", "Fetch it again."
        ) from None


def _refuse_compressed_files(folder: Path) -> None:
    """Some writers add .gz to the names of local chunks, which then are not found under their own
    names.
    """
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(COMPRESSED):
                    raise _compressed(Path(entry.path))


def _compressed(file: Path) -> VolumeError:
    return VolumeError(
        f"{file.parent.name}/{file.name}",
        "this chunk was written compressed, and would count as missing.",
        "Decompress the folder (gunzip -r for .gz), or write it again without (cloud-volume: "
        "compress=False).",
    )


def _outside(outside: np.ndarray, centre: np.ndarray, first: np.ndarray, size: np.ndarray) -> str:
    if ((centre < first) | (centre >= first + size)).any():
        return "it lies outside the volume."
    reach = ", ".join(
        f"{count} px along {axis}"
        for count, axis in zip(outside[::-1], "xyz", strict=True)
        if count
    )
    return f"it lies at the edge: the cutout would reach beyond the volume by {reach}."


def _plainly(error: Exception) -> str:
    """The first sentence of a tensorstore error, without its trail of source files."""
    return (
        str(error).split(" [source locations=", 1)[0].split("\n", 1)[0].strip()
        or type(error).__name__
    )


def _nm(voxel_nm: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in voxel_nm[::-1]) + " nm"


def _px(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) + " px (z, y, x)"
