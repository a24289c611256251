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
import difflib
import io
import json
import math
import os
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import ParameterError

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
    """One parameter of a notebook. ``type`` is int, float, bool or str; with ``many`` it is a list
    of these.
    """

    name: str
    default: object
    type: type
    reason: str
    choices: tuple = ()
    low: float | None = None
    high: float | None = None
    many: bool = False

    @property
    def is_path(self) -> bool:
        """Whether it may name a file or folder of the user: a text whose name ends in _dir,
        _folder, _file ..., or that has FILE among its choices."""
        return self.type is str and (
            FILE in self.choices or self.name.rsplit("_", 1)[-1] in PATH_NAMES
        )

    def paths(self, value: object) -> list[str]:
        """The files and folders of the user that this value names."""
        if not self.is_path:
            return []
        return [
            item
            for item in (value if isinstance(value, list) else [value])
            if item and item not in self.choices
        ]

    @property
    def constraint(self) -> str:
        """The constraint in the words of the parameters cell, or ''."""
        if self.choices:
            return " | ".join(map(str, self.choices))
        if self.low is None and self.high is None:
            return ""
        return "..".join(
            "" if end is None else str(int(end)) if float(end).is_integer() else f"{end:g}"
            for end in (self.low, self.high)
        )


def nearest(name: str, names: Iterable[str]) -> str:
    """A sentence with the nearest right name, else with all of them."""
    names = sorted(set(names))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]}?"
    return f"Known: {', '.join(names)}." if names else "There are none."


def read_parameters(notebook: str | os.PathLike) -> dict[str, Parameter]:
    """The parameters of a notebook file, in their order.

    Raises ParameterError when there is not exactly one cell tagged ``parameters``, or when a line
    of it is no literal, has no reason, or contradicts its own constraint.
    """
    path = Path(notebook)
    return parameters_of_source(parameters_cell(read_notebook(path), path.name), path.name)


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
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
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
    try:
        tree = ast.parse(source)
        comments = {
            token.start[0]: token.string.lstrip("#").strip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
    except (SyntaxError, tokenize.TokenError) as error:
        raise ParameterError(
            f"{where}, parameters cell", f"is not valid Python ({error})."
        ) from error
    found: dict[str, Parameter] = {}
    lines_seen: set[int] = set()
    for statement in tree.body:
        line = f"{where}, parameters cell, line {statement.lineno}"
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
        if statement.lineno != statement.end_lineno or statement.lineno in lines_seen:
            raise ParameterError(line, "each parameter stands on one line of its own.")
        lines_seen.add(statement.lineno)
        if name in found:
            raise ParameterError(line, "stands there twice.")
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            raise ParameterError(
                line, "the value is no literal.", "Derive values in the next cell."
            ) from None
        comment = comments.get(statement.lineno, "")
        if not comment:
            raise ParameterError(
                line, "has no reason.", "Add a comment, e.g. `# 1..100: what it does`."
            )
        found[name] = _parameter(name, default, comment, line)
    return found


def _parameter(name: str, default: object, comment: str, line: str) -> Parameter:
    many = isinstance(default, list)
    types = {type(item) for item in default} if many else {type(default)}
    if types == {int, float}:
        types = {float}
    if len(types) != 1 or not types <= set(WORDS):
        raise ParameterError(
            line,
            f"the value {default!r} has no type that a parameter can have.",
            "Use a whole number, a number, a text, True or False, or a list of one of these "
            "with at least one item.",
        )
    kind = types.pop()
    constraint, colon, reason = comment.partition(":")
    constraint = constraint.strip()
    reason = reason.strip()
    choices: tuple = ()
    low = high = None
    span = RANGE.match(constraint) if colon else None
    if span and (span["low"] or span["high"]):
        if kind not in (int, float):
            raise ParameterError(
                line, f"the range {constraint} does not fit a parameter that is {WORDS[kind]}."
            )
        low, high = (None if end is None else float(end) for end in (span["low"], span["high"]))
    elif colon and re.fullmatch(r"[^|\s]+(\s*\|\s*[^|\s]+)+", constraint):
        try:
            choices = tuple(_from_text(kind, part.strip()) for part in constraint.split("|"))
        except ValueError:
            raise ParameterError(line, f"a choice of {constraint} is not {WORDS[kind]}.") from None
    else:
        reason = comment
    if not reason:
        raise ParameterError(line, "has no reason behind the colon.")
    parameter = Parameter(name, default, kind, reason, choices, low, high, many)
    try:
        check_value(parameter, default)
    except ParameterError as error:
        raise ParameterError(
            line, f"the default {default!r} contradicts the constraint. {error.what}"
        ) from None
    return parameter


def _from_text(kind: type, text: str) -> object:
    if kind is bool:
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise ValueError(text)
    return kind(text)


def check_value(parameter: Parameter, raw: object, where: str | None = None) -> object:
    """``raw`` as the parameter's type.

    A whole number is accepted for a float, and so is the text '1e-3', which is how YAML reads it.
    Everything else must have the type of the default; True is no number. Raises ParameterError,
    also when a value is out of range, not finite, or not among the choices.
    """
    where = where or f"parameter {parameter.name}"
    if parameter.many:
        if not isinstance(raw, list | tuple) or not raw:
            raise ParameterError(
                where,
                f"{raw!r} is not a list with at least one item.",
                f"The default is {parameter.default!r}.",
            )
        return [_check_one(parameter, item, where) for item in raw]
    return _check_one(parameter, raw, where)


def _check_one(parameter: Parameter, raw: object, where: str) -> object:
    kind = parameter.type
    fix = f"It is {WORDS[kind]}; the default is {parameter.default!r}."
    value = raw
    if hasattr(raw, "item") and getattr(raw, "shape", None) == ():
        value = raw.item()  # a NumPy scalar, from a notebook
    if kind is float and isinstance(value, str) and re.fullmatch(NUMBER, value.strip()):
        value = float(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ParameterError(where, f"{raw!r} is not {WORDS[kind]}.", fix)
    if kind is float and not math.isfinite(value):
        raise ParameterError(where, f"{raw!r} is not a finite number.", fix)
    a_file = FILE in parameter.choices and value != FILE and looks_like_path(value)
    if parameter.choices and (value == FILE or value not in parameter.choices) and not a_file:
        if kind is str:
            fix = nearest(value, parameter.choices) + f" Choices: {parameter.constraint}."
        else:
            fix = f"Choices: {parameter.constraint}."
        raise ParameterError(where, f"{value!r} is none of its choices.", fix)
    too_low = parameter.low is not None and value < parameter.low
    too_high = parameter.high is not None and value > parameter.high
    if too_low or too_high:
        raise ParameterError(
            where,
            f"{value!r} is outside its range {parameter.constraint}.",
            f"The default is {parameter.default!r}.",
        )
    return value


def looks_like_path(value: str) -> bool:
    """Whether a text is meant as a file rather than as a mistyped choice: it has a folder or a
    suffix.
    """
    return "/" in value or os.sep in value or bool(Path(value).suffix)


def parse_text(parameter: Parameter, text: str, where: str | None = None) -> object:
    """A value as typed on the command line; a list is written with commas."""
    where = where or f"parameter {parameter.name}"
    parts = [part.strip() for part in text.split(",")] if parameter.many else [text]
    try:
        values = [_from_text(parameter.type, part) for part in parts]
    except ValueError:
        raise ParameterError(
            where,
            f"{text!r} is not {WORDS[parameter.type]}"
            + (" per comma-separated item." if parameter.many else "."),
            f"The default is {parameter.default!r}.",
        ) from None
    return check_value(parameter, values if parameter.many else values[0], where)


def check_values(
    parameters: Mapping[str, Parameter], given: Mapping[str, object], where: str
) -> dict[str, object]:
    """All parameters of a notebook: the given values, checked, and the defaults of the rest."""
    for name in given:
        if name not in parameters:
            raise ParameterError(where, f"there is no parameter {name}.", nearest(name, parameters))
    return {
        name: check_value(
            parameter, given.get(name, parameter.default), f"{where}, parameter {name}"
        )
        for name, parameter in parameters.items()
    }


def shown(parameters: Mapping[str, Parameter], values: Mapping[str, object]) -> dict[str, object]:
    """The values as reports show them: of the user's own files and folders only the last part of
    the path.
    """
    result = {}
    for name, value in values.items():
        if name in parameters and parameters[name].paths(value):
            value = (
                [_last_part(item) for item in value]
                if isinstance(value, list)
                else _last_part(value)
            )
        result[name] = value
    return result


def _last_part(path: object) -> str:
    path = Path(str(path))
    return f"…/{path.name}" if path.is_absolute() else str(path)
