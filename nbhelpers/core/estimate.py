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
    was found, and ``note`` what must be said beside it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    method: str | None = None
    reason: str | None = None
    note: str | None = None

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
        return all(
            number is not None and math.isfinite(number)
            for number in (self.value, self.low, self.high)
        )

    def as_dict(self) -> dict[str, object]:
        """As it stands in metrics.json; ``reason`` and ``note`` only where there is something
        to say.
        """
        found = {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "method": self.method,
        }
        if self.reason is not None:
            found["reason"] = self.reason
        if self.note is not None:
            found["note"] = self.note
        return found

    def text(self, decimals: int = 3) -> str:
        """ "0.910 [0.870, 0.940]", without brackets where there is no interval, "n/a" without
        a value.
        """
        if self.value is None or not math.isfinite(self.value):
            return "n/a"
        shown = _rounded(self.value, decimals)
        if not self.has_interval:
            return shown
        return f"{shown} [{_rounded(self.low, decimals)}, {_rounded(self.high, decimals)}]"

    def __str__(self) -> str:
        return self.text()


def _rounded(number: float, decimals: int) -> str:
    return f"{round(float(number), decimals) + 0.0:.{decimals}f}"  # no -0.000
