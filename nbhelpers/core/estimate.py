"""Estimate: a value with its 95 % interval. There is no other kind of score in this package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A score, a difference or a share, with what has to be known to read it.

    ``value`` is None where the score is not defined, ``low`` and ``high`` where no interval can be
    given; ``reason`` then says why. ``n`` counts what was scored, ``method`` says how the interval
    was found, and ``note`` what must be said beside it. ``n_effective`` is the number of
    independent images that would tell as much, where that is fewer.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    method: str | None = None
    reason: str | None = None
    note: str | None = None
    n_effective: float | None = None

    @classmethod
    def undefined(cls, reason: str, n: int = 0) -> Estimate:
        """A score that has no value, and why."""
        return cls(None, n=n, reason=reason)

    @classmethod
    def from_dict(cls, entry: Mapping[str, object]) -> Estimate:
        """Read what :meth:`as_dict` wrote; keys that an Estimate does not know are left out."""
        return cls(**{key: entry[key] for key in cls.__dataclass_fields__ if key in entry})

    @property
    def has_interval(self) -> bool:
        return _known(self.value) and _known(self.low) and _known(self.high)

    @property
    def lowest(self) -> float | None:
        """The lower end of the interval, or the value itself where there is none."""
        return self.value if self.low is None else self.low

    @property
    def highest(self) -> float | None:
        """The upper end of the interval, or the value itself where there is none."""
        return self.value if self.high is None else self.high

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above 0; False where there is none."""
        return self.low is not None and self.low > 0

    def as_dict(self) -> dict[str, object]:
        """As it stands in metrics.json; ``reason``, ``note`` and ``n_effective`` only where they
        say something.
        """
        found = dict(vars(self))
        return {
            key: entry
            for key, entry in found.items()
            if entry is not None or key not in ("reason", "note", "n_effective")
        }

    def columns(self, value: str = "value", low: str = "low", high: str = "high") -> dict:
        """Value and interval under the names of three columns of a table."""
        return {value: self.value, low: self.low, high: self.high}

    def text(self, decimals: int = 3, sign: str = "") -> str:
        """ "0.910 [0.870, 0.940]", without brackets where there is no interval, "n/a" without
        a value; ``sign="+"`` shows the sign of numbers above 0, too.
        """
        if not _known(self.value):
            return "n/a"
        shown = _rounded(self.value, decimals, sign)
        if not self.has_interval:
            return shown
        low = _rounded(self.low, decimals, sign)
        return f"{shown} [{low}, {_rounded(self.high, decimals, sign)}]"

    def __str__(self) -> str:
        return self.text()


def _known(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def _rounded(number: float, decimals: int, sign: str) -> str:
    return f"{round(float(number), decimals) + 0.0:{sign}.{decimals}f}"  # no -0.000
