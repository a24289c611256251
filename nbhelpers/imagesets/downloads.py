"""Public downloads: pinned address, sha256, one cache, and what to do by hand without a network."""

from __future__ import annotations

import csv
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm import tqdm

from nbhelpers.core.errors import DownloadError
from nbhelpers.core.files import sha256_of_file


@contextmanager
def whole_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder beside ``folder``; on success it becomes ``folder`` in one step, unless
    another process was quicker, with the same content. After an exception nothing is left.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    complete = holder / "complete"  # others may read it, unlike the folder that mkdtemp makes
    try:
        complete.mkdir()
        yield complete
        try:
            complete.replace(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@dataclass(frozen=True)
class RemoteFile:
    """A public file: where it lies, what its bytes must hash to, how large it is."""

    name: str
    url: str
    sha256: str
    size_bytes: int


NAMED_BY_HAND = 12  # files that an error names one by one
GHANI_COMMIT = "45034f23c06d462ee0d9edca1c726d2da355391f"
_GHANI = (
    f"https://raw.githubusercontent.com/mughanibu/Dendritic-Spine-Analysis-Dataset/{GHANI_COMMIT}/"
)

BUENO_COMMIT = "6db7d776ead18a4b15758634708be56db06b4d1a"
_BUENO = f"https://raw.githubusercontent.com/patologiivest/GlobalGlomerulosclerosisClustering/{BUENO_COMMIT}/"

VNC_COMMIT = "4a5f051466d24d8dc1e855ab55658bb1b1dcd6bf"
_VNC = f"https://raw.githubusercontent.com/unidesigner/groundtruth-drosophila-vnc/{VNC_COMMIT}/"


@dataclass(frozen=True)
class RemoteTable:
    """Many public files of one place: a CSV of this package with their name, sha256
    and size_bytes."""

    csv: str
    place: str  # what comes before a name in the address


# registry: data set -> its files
REGISTRY: dict[str, RemoteTable] = {
    "glomeruli_bueno": RemoteTable("glomeruli_bueno.csv", _BUENO),
    "spines_ghani": RemoteTable("spines_ghani.csv", _GHANI),
    **{
        f"vnc_sstem_{part}": RemoteTable(f"vnc_sstem_{part}.csv", _VNC)
        for part in ("raw", "synapses", "mitochondria")
    },
}


def files_of(dataset: str) -> tuple[RemoteFile, ...]:
    """The files of a data set of the registry."""
    entry = REGISTRY[dataset]
    with open(Path(__file__).with_name(entry.csv), encoding="utf-8", newline="") as file:
        return tuple(
            RemoteFile(
                row["name"], entry.place + row["name"], row["sha256"], int(row["size_bytes"])
            )
            for row in csv.DictReader(file)
        )


def fetch(
    dataset: str,
    cache_folder: str | Path,
    *,
    given_folder: str | Path | None = None,
    partial: bool = False,
) -> dict[str, Path]:
    """Paths of the files of a data set: from ``given_folder``, from the cache, or downloaded now.

    Every file is checked against its sha256, wherever it comes from; a download becomes visible
    under its name only when it is complete and right, and one that was cut goes on where it was.
    With ``partial`` a ``given_folder`` may lack files, but not all of them: those are left out of
    the result. Raises DownloadError (offline, cut, wrong hash) with what to fetch by hand and where
    to put it.
    """
    folder = Path(given_folder) if given_folder else Path(cache_folder) / dataset
    files = files_of(dataset)
    absent = [file for file in files if not (folder / file.name).is_file()]
    by_hand = _by_hand(dataset, absent or files, folder)
    if given_folder and absent and not (partial and len(absent) < len(files)):
        raise DownloadError(_short(folder / absent[0].name), "the file is not there.", by_hand)
    show = bool(absent) and not given_folder
    many = len(files) > NAMED_BY_HAND  # one bar for all of them
    if show:
        size = sum(file.size_bytes for file in absent) / 1e6
        print(
            f"{dataset}: {len(absent)} files, {size:.1f} MB, are downloaded once into "
            f"{_short(folder)}",
            flush=True,
        )
    found = {}
    for file in progress_bar(files, desc=dataset, unit="file", disable=not (show and many)):
        path = folder / file.name
        if given_folder and file in absent:
            continue
        if path.is_file():
            if sha256_of_file(path) != file.sha256:
                raise DownloadError(
                    _short(path),
                    "the file is not the published one (its sha256 differs).",
                    f"Delete it and run again, or: {by_hand}",
                )
        else:
            size = {"total": file.size_bytes, "unit": "B", "unit_scale": True}
            with progress_bar(desc=file.name, disable=many, **size) as bar:
                download(file.url, path, file.sha256, bar, by_hand)
        found[file.name] = path
    return found


def _by_hand(dataset: str, files: Sequence[RemoteFile], folder: Path) -> str:
    named = ", ".join(f"{file.url} (sha256 {file.sha256})" for file in files[:NAMED_BY_HAND])
    if len(files) > NAMED_BY_HAND:
        more = f"{len(files) - NAMED_BY_HAND} more (see {REGISTRY[dataset].csv}"
        named += f" and {more} in nbhelpers/imagesets)"
    return (
        f"Fetch by hand and put into {_short(folder)}: {named}; or name the folder that holds "
        "them as data_dir."
    )


def download(url: str, path: str | Path, sha256: str, bar: tqdm, by_hand: str) -> None:
    """Fetch ``url`` to ``path``, which appears only when it is complete and right.

    What came is kept beside it, as ``.<sha256>.part``; the next try asks for the rest only, and for
    all of it where the server sends no parts or the whole turns out wrong. ``sha256`` may be the
    first digits only. A second download of the same file waits for the first. ``by_hand`` ends the
    errors: how to do without a network. Raises DownloadError (offline, cut, wrong hash).
    """
    import fcntl

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{sha256}.part")
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, however this process ends
            if path.is_file():  # the one that was waited for has brought it
                return
            if not os.fstat(file.fileno()).st_nlink:  # it has given up and removed the part
                return download(url, path, sha256, bar, by_hand)
            # each once: the rest, then all of it
            for start in dict.fromkeys((file.seek(0, os.SEEK_END), 0)):
                _receive(url, file, start, bar)
                file.flush()
                if sha256_of_file(part).startswith(sha256):
                    os.fsync(file.fileno())
                    part.replace(path)
                    return
            part.unlink()
    except OSError as error:  # no network, refused, time-out, disk full
        raise DownloadError(
            url,
            f"the download failed ({type(error).__name__}).",
            "Is there a network? The next try goes on from here. Without a network: " + by_hand,
        ) from None
    raise DownloadError(
        url,
        "the download was cut or changed (its sha256 differs).",
        f"Try again; if it stays so: {by_hand}",
    )


def _receive(url: str, file: BinaryIO, start: int, bar: tqdm) -> None:
    """Append to ``file`` what lies at ``url`` from byte ``start`` on; emptied first where the
    server sends all of it.
    """
    import requests

    # bytes are counted in the file as it is, not as it is packed for the way
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
        # the part is as long as the file, or longer
        if answer.status_code == requests.codes.range_not_satisfiable:
            return
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            file.truncate(0)
            start = 0
        bar.reset(start + int(answer.headers.get("Content-Length", 0)))
        bar.update(start)
        for piece in answer.iter_content(1 << 16):
            file.write(piece)
            bar.update(len(piece))


def progress_bar(items: Iterable | None = None, **settings: object) -> tqdm:
    """A bar that a log file can hold: where there is no terminal it is drawn every five seconds,
    not ten times in one.

    ``settings`` go to tqdm.
    """

    return tqdm(
        items,
        mininterval=0.1 if sys.stderr.isatty() else 5,
        dynamic_ncols=sys.stderr.isatty(),
        **settings,
    )


def _short(path: Path) -> str:
    """The path from the working folder where that is possible: easier to read, and names no
    machine.
    """
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def unpack_zip(archive: str | Path, folder: str | Path) -> Path:
    """Unpack a zip into ``folder``, which appears only when it is complete; several may do so at
    once.

    Raises DownloadError when a member would leave the folder (``../``, an absolute path, a link) or
    when the archive is damaged; nothing is written then.
    """
    archive = Path(archive)
    folder = Path(folder)
    if folder.is_dir():
        return folder
    try:
        with whole_folder(folder) as complete, zipfile.ZipFile(archive) as content:
            for member in content.infolist():
                parts = PurePosixPath(member.filename.replace("\\", "/"))
                is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
                if (
                    parts.is_absolute()
                    or ".." in parts.parts
                    or is_link
                    or ":" in (parts.parts or ("",))[0]
                ):
                    raise DownloadError(
                        archive.name,
                        f"its member {member.filename!r} points outside the folder.",
                        "The archive is not to be trusted; get it from its publisher.",
                    )
            content.extractall(complete)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DownloadError(
            archive.name, f"the zip is damaged ({error}).", "Delete it and run again."
        ) from None
    return folder
