"""Arrays that are computed once and kept: found again by the hash of all that they depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from nbhelpers.core.files import sha256_of, whole_file

_HEADER_BYTES = 128  # of a .npy file of up to about ten axes


def kept(
    folder: str | Path,
    key_parts: object,
    make: Callable[[], np.ndarray | Iterable[np.ndarray]],
    *,
    name: str = "",
) -> np.ndarray:
    """The array that ``make()`` gives, memory-mapped and read-only, from ``folder`` where it was
    made before.

    Parameters
    ----------
    key_parts : all that decides the values (JSON-able); other parts are another file.
    make : called only where the file is absent or damaged. Returns the array, or yields it in
        pieces along the first axis, so that it need never be in memory as a whole.
    name : begins the name of the file, for whoever looks into the folder.

    Raises ValueError when ``make`` yields nothing or pieces of different shapes or types.
    """
    path = Path(folder) / f"{name}{sha256_of(key_parts)[:32]}.npy"
    found = _mapped(path)
    if found is not None:
        return found
    made = make()
    pieces = [made] if isinstance(made, np.ndarray) else made
    with whole_file(path) as temporary:
        write_pieces(temporary, pieces)
    return np.load(path, mmap_mode="r")


def _mapped(path: Path) -> np.ndarray | None:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # absent, or cut by a full disk: it is made again
        return None


def write_pieces(path: Path, pieces: Iterable[np.ndarray]) -> None:
    """One .npy file of all pieces along the first axis, written one after the other.

    Raises ValueError for no piece, or pieces of different shapes or types.
    """
    first = None
    rows = 0
    with open(path, "wb") as file:
        file.write(bytes(_HEADER_BYTES))  # the number of rows is known only at the end
        for piece in pieces:
            piece = np.ascontiguousarray(piece)
            if first is None:
                first = piece[:0]
            if (piece.shape[1:], piece.dtype) != (first.shape[1:], first.dtype):
                raise ValueError(
                    f"a piece is {piece.dtype} {piece.shape[1:]}, the first one {first.dtype} "
                    f"{first.shape[1:]}"
                )
            file.write(piece.data)
            rows += len(piece)
        if first is None:
            raise ValueError("there is no piece to keep")
        file.seek(0)
        header = {
            "descr": np.lib.format.dtype_to_descr(first.dtype),
            "fortran_order": False,
            "shape": (rows, *first.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(file, header)
        if file.tell() != _HEADER_BYTES:
            raise ValueError(f"the header takes {file.tell()} bytes instead of {_HEADER_BYTES}")
