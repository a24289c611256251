"""The legend of a figure with several axes."""

from __future__ import annotations


def legend_below(axis, columns: int, ending: str = "") -> None:
    """The legend of one of several axes below them all."""
    handles, labels = axis.get_legend_handles_labels()
    if axis.get_legend() is not None:
        axis.get_legend().remove()
    labels = [f"{label}{ending}" for label in labels]
    axis.figure.legend(handles, labels, loc="outside lower center", ncols=columns)
