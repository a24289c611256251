"""Errors that a user can fix: each names the file, row or parameter, and says how to fix it."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used.

    Parameters
    ----------
    where : what it is about, e.g. a file name, ``"labels.csv, row 7"`` or ``"parameter epochs"``.
    what : what is wrong with it, in words.
    fix : what the user can do about it.

    The three stay available as attributes, so that lists of failures can be written as tables.
    """

    def __init__(self, where: object, what: str, fix: str = ""):
        self.where = str(where)
        self.what = what
        self.fix = fix
        super().__init__(f"{self.where}: {what}" + (f" {fix}" if fix else ""))


class UnreadableImageError(InputError):
    """An image file that cannot be decoded, or whose content cannot be used."""


class TableError(InputError):
    """A label table (CSV) that contradicts itself or the files it names."""


class ParameterError(InputError):
    """A notebook, profile or parameter that is unknown, of the wrong type or out of range."""


def check_choice(where: str, value: object, known: Iterable) -> None:
    """Raises ParameterError for a value that is not one of the known ones; ``where`` is e.g.
    "parameter backbone".
    """
    known = list(known)
    if value not in known:
        raise ParameterError(
            where, f"{value!r} is unknown.", f"Give one of {', '.join(map(str, known))}."
        )


def check_range(where: str, value: object, low: float, high: float, hint: str = "") -> None:
    """Raises ParameterError for what is no number from ``low`` to ``high``, both included; ``hint``
    says what else may help.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        fix = f"Give a number from {low} to {high}. {hint}".rstrip()
        raise ParameterError(where, f"{value!r} is out of range.", fix)


def check_columns(
    where: object, table: Iterable[str], needed: Iterable[str], error: type[InputError] = TableError
) -> None:
    """Raises ``error`` for a table without all of the ``needed`` columns."""
    needed = list(dict.fromkeys(needed))
    there = list(table)
    absent = [name for name in needed if name not in there]
    if absent:
        raise error(
            where, f"the columns {absent} are missing; there are {there}.", f"Expected {needed}."
        )


class SplitError(InputError):
    """A split that is impossible, or in which the same group stands in two parts."""


def nearest(name: object, known: Iterable[str]) -> str:
    """What may have been meant by a name, and all that there is."""
    import difflib

    known = sorted(map(str, set(known)))
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}There is: {', '.join(known) or 'none'}."


class DownloadError(InputError):
    """A download that is offline, cut, or has the wrong hash."""


class CheckpointError(InputError):
    """Weights that belong to another architecture, or a file type that is not loaded for safety."""


class PredictionsError(InputError):
    """A predictions table that is incomplete or that does not fit another one."""
