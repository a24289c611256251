"""Profiles: which notebooks to run, with which parameters. A profile runs exactly the notebooks it
names.

Besides ``notebooks:`` a profile may have ``after:``, a notebook and under it those that must be
done first when they run in the same command, because it reads what they write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import ParameterError
from nbhelpers.reports.notebooks import Notebook, find_notebook
from nbhelpers.reports.parameters import Parameter, check_values, nearest, parse_text
from nbhelpers.reports.paths import Paths, check_paths


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


def profile_names(places: Paths) -> list[str]:
    return sorted(path.stem for path in places.profiles.glob("*.yaml"))


def read_profile(
    places: Paths, name: str, notebooks: dict[str, Notebook]
) -> dict[str, dict[str, object]]:
    """The profile's notebooks with the parameters it sets; see :func:`read_whole_profile`."""
    return read_whole_profile(places, name, notebooks)[0]


def read_whole_profile(
    places: Paths,
    name: str,
    notebooks: dict[str, Notebook],
) -> tuple[dict[str, dict[str, object]], dict[str, tuple[str, ...]]]:
    """The profile's notebooks with the parameters it sets, and which notebooks wait for which.

    Raises ParameterError for an unknown profile, notebook or parameter, and for a value that does
    not fit.
    """
    import yaml

    if name not in profile_names(places):
        raise ParameterError(
            f"profile {name}", "there is no such profile.", nearest(name, profile_names(places))
        )
    where = f"profiles/{name}.yaml"
    try:
        content = yaml.safe_load((places.profiles / f"{name}.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ParameterError(
            where, f"is not valid YAML ({' '.join(str(error).split())})."
        ) from error
    if (
        not isinstance(content, dict)
        or "notebooks" not in content
        or not set(content) <= {"notebooks", "after"}
        or not isinstance(content["notebooks"], dict)
        or not isinstance(content.get("after", {}), dict)
    ):
        raise ParameterError(
            where,
            "must hold `notebooks:`, with a name per notebook under it, and perhaps `after:`.",
        )
    for key, given in content["notebooks"].items():
        if key not in notebooks:
            raise ParameterError(
                where, f"there is no notebook {key}.", nearest(str(key), notebooks)
            )
        if not isinstance(given, dict | None):
            raise ParameterError(
                f"{where}, {key}", "must hold `parameter: value` lines, or {} for the defaults."
            )
        check_values(notebooks[key].parameters, given or {}, f"{where}, {key}")
    after = {
        key: tuple([first] if isinstance(first, str) else first)
        for key, first in content.get("after", {}).items()
    }
    for key in [*after, *(one for first in after.values() for one in first)]:
        if key not in content["notebooks"]:
            raise ParameterError(
                f"{where}, after",
                f"{key} is no notebook of this profile.",
                nearest(str(key), content["notebooks"]),
            )
    return {key: given or {} for key, given in content["notebooks"].items()}, after


def make_requests(
    places: Paths,
    notebooks: dict[str, Notebook],
    profile: str,
    asked: Iterable[str],
    overrides: Sequence[tuple[str, str]],
) -> list[RunRequest]:
    """What to run: the asked notebooks, else all of the profile, with the profile's values and the
    overrides.

    An asked notebook that the profile does not name runs with its defaults. Raises ParameterError
    before anything runs when a name or value is wrong.
    """
    from_profile, after = read_whole_profile(places, profile, notebooks)
    asked = list(asked)
    names = list(dict.fromkeys(find_notebook(name, notebooks).name for name in asked)) or list(
        from_profile
    )
    if not names:
        raise ParameterError(
            f"profiles/{profile}.yaml", "names no notebook, so there is nothing to run."
        )
    values = {name: dict(from_profile.get(name, {})) for name in names}
    for parameter, text in overrides:
        having = [name for name in names if parameter in notebooks[name].parameters]
        lacking = [name for name in names if name not in having]
        if not having or (asked and lacking):
            raise ParameterError(
                f"-p {parameter}",
                f"notebook {lacking[0]} has no parameter {parameter}.",
                nearest(
                    parameter, [known for name in lacking for known in notebooks[name].parameters]
                ),
            )
        for name in having:
            values[name] = overridden(places, notebooks[name], values[name], [(parameter, text)])
    orders = []
    for name in names:
        parameters = notebooks[name].parameters
        checked = check_values(parameters, values[name], name)
        for key, parameter in parameters.items():
            check_paths(places, parameter.paths(checked[key]), f"{name}, parameter {key}")
        orders.append(RunRequest(notebooks[name], profile, checked, after.get(name, ())))
    return orders


def overridden(
    places: Paths,
    notebook: Notebook,
    values: Mapping[str, object],
    overrides: Sequence[tuple[str, str]],
) -> dict[str, object]:
    """The values with those put in that were typed as ``-p NAME VALUE``. Raises ParameterError."""
    values = dict(values)
    for name, text in overrides:
        if name not in notebook.parameters:
            raise ParameterError(
                f"-p {name}",
                f"notebook {notebook.name} has no parameter {name}.",
                nearest(name, notebook.parameters),
            )
        parameter = notebook.parameters[name]
        values[name] = _user_path(
            places, parameter, parse_text(parameter, text, f"-p {name} {text}")
        )
    return values


def _user_path(places: Paths, parameter: Parameter, value: object) -> object:
    """A path typed on the command line is meant from where the user stands; notebooks run in the
    checkout.
    """
    named = parameter.paths(value)
    if isinstance(value, list):
        return [_from_here(places, item) if item in named else item for item in value]
    return _from_here(places, value) if value in named else value


def _from_here(places: Paths, value: str) -> str:
    if not value or Path(value).is_absolute():
        return value
    here = Path(value).absolute()
    if not here.exists() and (places.root / value).exists():
        return value
    return str(here.relative_to(places.root)) if here.is_relative_to(places.root) else str(here)
