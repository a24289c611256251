"""Profiles: which notebooks to run, with which parameters. A profile runs exactly the notebooks it
names.

Besides ``notebooks:`` a profile may have ``after:``, a notebook and under it those that must be
done first when they run in the same command, because it reads what they write.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import ParameterError, nearest
from nbhelpers.reports.notebooks import Notebook, find_notebook
from nbhelpers.reports.parameters import WORDS, Parameter, check_value, check_values, from_text
from nbhelpers.reports.paths import check_path
from nbhelpers.runner.places import RunnerPaths

Overrides = Sequence[tuple[str, str]]  # name and value as typed with -p


def check_known(where: str, name: object, known: Iterable[str], what: str) -> None:
    """Raises ParameterError, which says ``what`` is wrong and what may have been meant, for a name
    that is not known.
    """
    if name not in known:
        raise ParameterError(where, what, nearest(name, known))


@dataclass(frozen=True)
class RunRequest:
    """One notebook with all its parameter values, checked."""

    notebook: Notebook
    profile: str
    values: dict[str, object]
    after: tuple[str, ...] = ()  # notebooks that must be done first, when they run too
    label: str = ""  # within a sweep: which of its runs, and so the name of its folder

    @property
    def name(self) -> str:
        return self.label or self.notebook.name


@dataclass(frozen=True)
class Profile:
    """The notebooks of a profile with the parameters it sets, and which of them wait for which."""

    notebooks: dict[str, dict[str, object]]
    after: dict[str, tuple[str, ...]]


def profile_names(paths: RunnerPaths) -> list[str]:
    return sorted(path.stem for path in paths.profiles.glob("*.yaml"))


def read_profile(paths: RunnerPaths, name: str, notebooks: Mapping[str, Notebook]) -> Profile:
    """Read ``profiles/<name>.yaml``.

    Raises ParameterError for an unknown profile, notebook or parameter, and for a value that does
    not fit.
    """
    import yaml

    known = profile_names(paths)
    check_known(f"profile {name}", name, known, "there is no such profile.")
    where = f"profiles/{name}.yaml"
    try:
        content = yaml.safe_load((paths.profiles / f"{name}.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ParameterError(where, f"is not valid YAML ({problem}).") from error
    if (
        not isinstance(content, dict)
        or not {"notebooks"} <= set(content) <= {"notebooks", "after"}
        or not all(isinstance(part, dict) for part in content.values())
    ):
        raise ParameterError(
            where,
            "must hold `notebooks:`, with a name per notebook under it, and perhaps `after:`.",
        )
    values = {}
    for key, given in content["notebooks"].items():
        check_known(where, key, notebooks, f"there is no notebook {key}.")
        if not isinstance(given, dict | None):
            raise ParameterError(
                f"{where}, {key}", "must hold `parameter: value` lines, or {} for the defaults."
            )
        values[key] = given or {}
        check_values(notebooks[key].parameters, values[key], f"{where}, {key}")
    after = {}
    for key, first in content.get("after", {}).items():
        after[key] = (first,) if isinstance(first, str) else tuple(first)
        for one in (key, *after[key]):
            check_known(f"{where}, after", one, values, f"{one} is no notebook of this profile.")
    return Profile(values, after)


def make_requests(
    paths: RunnerPaths,
    notebooks: Mapping[str, Notebook],
    profile_name: str,
    asked: Sequence[str],
    overrides: Overrides,
) -> list[RunRequest]:
    """What to run: the asked notebooks, else all of the profile, with the profile's values and the
    overrides.

    An asked notebook that the profile does not name runs with its defaults. Raises ParameterError
    before anything runs when a name or value is wrong.
    """
    profile = read_profile(paths, profile_name, notebooks)
    names = [find_notebook(name, notebooks).name for name in asked] or list(profile.notebooks)
    if not names:
        raise ParameterError(
            f"profiles/{profile_name}.yaml", "names no notebook, so there is nothing to run."
        )
    names = list(dict.fromkeys(names))
    known = set().union(*(notebooks[name].parameters for name in names))
    for parameter, _ in overrides:
        check_known(f"-p {parameter}", parameter, known, "there is no such parameter.")
    requests = []
    for name in names:
        notebook = notebooks[name]
        # Of a whole profile, those notebooks take an override that know it; one that is named must.
        own = [one for one in overrides if asked or one[0] in notebook.parameters]
        given = overridden(paths, notebook, profile.notebooks.get(name, {}), own)
        values = checked_values(paths, notebook, given, name)
        requests.append(RunRequest(notebook, profile_name, values, profile.after.get(name, ())))
    return requests


def checked_values(
    paths: RunnerPaths, notebook: Notebook, given: Mapping[str, object], where: str
) -> dict[str, object]:
    """All parameters of a notebook, checked, with files and folders that are there. Raises
    ParameterError."""
    values = check_values(notebook.parameters, given, where)
    for name, parameter in notebook.parameters.items():
        if parameter.names_path(values[name]):
            check_path(paths, values[name], f"{where}, parameter {name}")
    return values


def overridden(
    paths: RunnerPaths, notebook: Notebook, values: Mapping[str, object], overrides: Overrides
) -> dict[str, object]:
    """The values with those put in that were typed as ``-p NAME VALUE``. Raises ParameterError."""
    values = dict(values)
    for name, text in overrides:
        parameter = parameter_of(notebook, name, f"-p {name}")
        value = parse_text(parameter, text, f"-p {name} {text}")
        values[name] = parameter.with_path(value, lambda path: _from_here(paths, path))
    return values


def parameter_of(notebook: Notebook, name: str, where: str) -> Parameter:
    what = f"notebook {notebook.name} has no parameter {name}."
    check_known(where, name, notebook.parameters, what)
    return notebook.parameters[name]


def _from_here(paths: RunnerPaths, value: str) -> str:
    """A path typed on the command line is meant from where the user stands; notebooks run in the
    checkout.
    """
    here = Path(os.path.expanduser(value)).absolute()
    if Path(value).is_absolute() or (not here.exists() and paths.of_user(value).exists()):
        return value
    if here.is_relative_to(paths.root):
        inside = str(here.relative_to(paths.root))
        if paths.of_user(inside) == here:  # and no other beside the notebooks
            return inside
    return str(here)


def parse_text(parameter: Parameter, text: str, where: str) -> object:
    """A value as typed on the command line."""
    try:
        value = from_text(parameter.type, text)
    except ValueError:
        raise ParameterError(
            where,
            f"{text!r} is not {WORDS[parameter.type]}.",
            f"The default is {parameter.default!r}.",
        ) from None
    return check_value(parameter, value, where)
