"""The parameters of a notebook: one tagged cell of literals, each with its constraint and its
reason.

A line of that cell reads::

    epochs = 40        # 1..1000: passes over the training images

What stands before the colon is the constraint, ``lo..hi`` (either end may be left out) or ``a | b |
c``, where the word FILE stands for the path of any file; what stands behind it is the reason.
Without a constraint the whole comment is the reason.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import ParameterError, nearest

TAG = "parameters"
NUMBER = r"[+-]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"(?P<low>{NUMBER})?\s*\.\.\s*(?P<high>{NUMBER})?$")
PATH_NAMES = ("dir", "folder", "file", "csv", "path")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
FILE = "FILE"
TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook. ``type`` is int, float, bool or str."""

    name: str
    default: object
    type: type
    reason: str
    choices: tuple = ()
    low: float | None = None
    high: float | None = None

    @property
    def is_path(self) -> bool:
        """Whether it may name a file or folder of the user: a text whose name ends in _dir,
        _folder, _file ..., or that has FILE among its choices."""
        return self.type is str and (
            FILE in self.choices or self.name.rsplit("_", 1)[-1] in PATH_NAMES
        )

    def names_path(self, value: object) -> bool:
        """Whether this value names a file or folder of the user."""
        return self.is_path and value != "" and value not in self.choices

    def with_path(self, value: object, change: Callable[[str], str]) -> object:
        """The value, with ``change`` applied where it names a file or folder of the user."""
        return change(value) if self.names_path(value) else value

    @property
    def constraint(self) -> str:
        """The constraint in the words of the parameters cell, or ''."""
        if self.choices:
            return " | ".join(map(str, self.choices))
        if self.low is None and self.high is None:
            return ""
        return f"{_end_text(self.low)}..{_end_text(self.high)}"


def _end_text(end: float | None) -> str:
    if end is None:
        return ""
    return str(int(end)) if end.is_integer() else f"{end:g}"


def read_notebook(path: Path) -> dict:
    """The notebook as plain JSON (nbformat 4); reading it this way needs no Jupyter import."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = content["cells"]
        for cell in cells:
            if isinstance(cell["source"], list):
                cell["source"] = "".join(cell["source"])
    except FileNotFoundError:
        raise ParameterError(path.name, "there is no such notebook.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ParameterError(
            path.name,
            f"is no notebook of format 4 ({error}).",
            "Open it in JupyterLab and save it again.",
        ) from error
    return content


def parameters_cell(content: Mapping, where: str) -> str:
    """Source of the one code cell tagged ``parameters``."""
    found = [
        cell["source"]
        for cell in content["cells"]
        if cell["cell_type"] == "code" and TAG in cell.get("metadata", {}).get("tags", [])
    ]
    if len(found) != 1:
        raise ParameterError(
            where, f"{len(found)} cells are tagged `{TAG}`.", "Exactly one is needed."
        )
    return found[0]


def parameters_of_source(source: str, where: str = "the parameters cell") -> dict[str, Parameter]:
    """The parameters in the text of a parameters cell."""
    where = f"{where}, parameters cell"
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ParameterError(where, f"is not valid Python ({error}).") from error
    lines = source.encode("utf-8").split(b"\n")  # the syntax tree counts in bytes
    found: dict[str, Parameter] = {}
    for statement in tree.body:
        line = f"{where}, line {statement.lineno}"
        if not (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        ):
            raise ParameterError(
                line,
                "only lines of the form `name = literal   # reason` belong here.",
                "Derive values in the next cell: here they would not follow a changed parameter.",
            )
        name = statement.targets[0].id
        line = f"{line} ({name})"
        rest = lines[statement.lineno - 1][statement.end_col_offset :].decode("utf-8").strip()
        if statement.lineno != statement.end_lineno or rest[:1] not in ("", "#"):
            raise ParameterError(line, "each parameter stands on one line of its own.")
        if name in found:
            raise ParameterError(line, "stands there twice.")
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            raise ParameterError(
                line, "the value is no literal.", "Derive values in the next cell."
            ) from None
        comment = rest.lstrip("#").strip()
        if not comment:
            raise ParameterError(
                line, "has no reason.", "Add a comment, e.g. `# 1..100: what it does`."
            )
        found[name] = _parameter(name, default, comment, line)
    return found


def _parameter(name: str, default: object, comment: str, line: str) -> Parameter:
    kind = type(default)
    if kind not in WORDS:
        raise ParameterError(
            line,
            f"the value {default!r} has no type that a parameter can have.",
            "Use a whole number, a number, a text, True or False.",
        )
    constraint, colon, reason = comment.partition(":")
    constraint = constraint.strip()
    reason = reason.strip()
    choices: tuple = ()
    low = None
    high = None
    span = RANGE.match(constraint) if colon else None
    if span and (span["low"] or span["high"]):
        if kind not in (int, float):
            raise ParameterError(
                line, f"the range {constraint} does not fit a parameter that is {WORDS[kind]}."
            )
        low = float(span["low"]) if span["low"] else None
        high = float(span["high"]) if span["high"] else None
    elif colon and re.fullmatch(r"[^|\s]+(\s*\|\s*[^|\s]+)+", constraint):
        try:
            choices = tuple(from_text(kind, part.strip()) for part in constraint.split("|"))
        except ValueError:
            raise ParameterError(line, f"a choice of {constraint} is not {WORDS[kind]}.") from None
    else:
        reason = comment
    if not reason:
        raise ParameterError(line, "has no reason behind the colon.")
    parameter = Parameter(name, default, kind, reason, choices, low, high)
    try:
        check_value(parameter, default, line)
    except ParameterError as error:
        raise ParameterError(
            line, f"the default {default!r} contradicts the constraint. {error.what}"
        ) from None
    return parameter


def from_text(kind: type, text: str) -> object:
    """A value of this kind as typed. Raises ValueError for text that is none."""
    if kind is bool:
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise ValueError(text)
    return kind(text)


def check_value(parameter: Parameter, raw: object, where: str) -> object:
    """``raw`` as the parameter's type.

    A whole number is accepted for a float, and so is the text '1e-3', which is how YAML reads it.
    Everything else must have the type of the default; True is no number. Raises ParameterError,
    also when a value is out of range, not finite, or not among the choices.
    """
    kind = parameter.type
    fix = f"It is {WORDS[kind]}; the default is {parameter.default!r}."
    value = raw
    if hasattr(raw, "item") and getattr(raw, "shape", None) == ():
        value = raw.item()  # a NumPy scalar, from a notebook
    number_text = isinstance(value, str) and re.fullmatch(NUMBER, value.strip())
    if kind is float and (number_text or type(value) is int):
        value = float(value)
    if type(value) is not kind:
        raise ParameterError(where, f"{raw!r} is not {WORDS[kind]}.", fix)
    if kind is float and not math.isfinite(value):
        raise ParameterError(where, f"{raw!r} is not a finite number.", fix)
    # With a folder or a suffix a text is meant as a file, else it is a mistyped choice.
    like_path = kind is str and ("/" in value or os.sep in value or Path(value).suffix)
    a_file = FILE in parameter.choices and value != FILE and like_path
    if parameter.choices and (value == FILE or value not in parameter.choices) and not a_file:
        fix = nearest(value, parameter.choices)
        raise ParameterError(where, f"{value!r} is none of its choices.", fix)
    if (parameter.low is not None and value < parameter.low) or (
        parameter.high is not None and value > parameter.high
    ):
        raise ParameterError(
            where,
            f"{value!r} is outside its range {parameter.constraint}.",
            f"The default is {parameter.default!r}.",
        )
    return value


def check_values(
    parameters: Mapping[str, Parameter], given: Mapping[str, object], where: str
) -> dict[str, object]:
    """All parameters of a notebook: the given values, checked, and the defaults of the rest."""
    for name in given:
        if name not in parameters:
            raise ParameterError(where, f"there is no parameter {name}.", nearest(name, parameters))
    values = {}
    for name, parameter in parameters.items():
        value = given.get(name, parameter.default)
        values[name] = check_value(parameter, value, f"{where}, parameter {name}")
    return values


def shown(parameters: Mapping[str, Parameter], values: Mapping[str, object]) -> dict[str, object]:
    """The values as reports show them: of the user's own files and folders only the last part of
    the path.
    """
    return {
        name: parameters[name].with_path(value, _last_part) if name in parameters else value
        for name, value in values.items()
    }


def _last_part(path: str) -> str:
    return f"…/{Path(path).name}" if Path(path).is_absolute() else str(Path(path))
