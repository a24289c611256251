"""Where images come from: a value of the parameter ``data``, and the function that loads it.

Each kind of image has a table of its sources, value to ``"module:function"``, in the module of its
name. A source is imported only when it is asked for, so that whoever draws phantoms need not carry
the code that reads a slide.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType

from nbhelpers.core.errors import ParameterError, check_choice
from nbhelpers.core.imageset import ImageSet

NONE: Mapping[str, object] = MappingProxyType({})


def loader(sources: Mapping[str, str], data: str) -> Callable:
    """The function that ``sources`` names for this value. Raises ParameterError where there is
    none.
    """
    check_choice("parameter data", data, sources)
    module, _, name = sources[data].partition(":")
    return getattr(import_module(module), name)


def load_source(
    sources: Mapping[str, str],
    data: str,
    *,
    data_dir: str,
    phantom: Mapping[str, object],
    hint: str,
    **offered: object,
) -> ImageSet:
    """What the source ``data`` loads, called with those of the ``offered`` values whose names it
    has among its parameters; "phantom" with all of ``phantom`` too.

    A source with a parameter ``path`` needs ``data_dir``: where that is empty, ParameterError is
    raised, and ``hint`` says what to give.
    """
    function = loader(sources, data)
    names = inspect.signature(function).parameters
    if "path" in names and not data_dir:
        raise ParameterError("parameter data_dir", f"it is empty, but data is {data!r}.", hint)
    offered |= {"data": data, "data_dir": data_dir, "path": data_dir}
    taken = {name: value for name, value in offered.items() if name in names}
    if data == "phantom":
        taken |= phantom
    return function(**taken)
