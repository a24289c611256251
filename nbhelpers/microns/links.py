"""A Neuroglancer link for each synapse, so that anyone can look at what a patch was cut from."""

import json
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

from nbhelpers.core.errors import ParameterError
from nbhelpers.microns.points import Points, checked

PUBLIC_VIEWER = "https://neuroglancer-demo.appspot.com/"


def neuroglancer_state(
    point: Points, *, name: str, image_source: str, resolution_nm: Sequence[float] = (8, 8, 40)
) -> dict:
    """The JSON state that opens the viewer at one point, with a mark there.

    Positions are in voxels of ``resolution_nm`` (x, y, z), which the state names as its own
    dimensions.
    """
    if len(checked(point)) != 1:
        raise ParameterError(
            "parameter point",
            f"{len(point)} points were given for one link.",
            "Give one: points[row].",
        )
    if not image_source.startswith(("precomputed://", "zarr://", "n5://")):
        raise ParameterError(
            "parameter image_source",
            f"{image_source!r} does not say its format.",
            "Neuroglancer wants precomputed://https://... or precomputed://gs://...",
        )
    position = [round(float(step), 3) for step in point.voxels(resolution_nm)[0]]
    mark = {
        "type": "annotation",
        "name": "synapse",
        "source": {
            "url": "local://annotations",
            "transform": {"outputDimensions": _dimensions(resolution_nm)},
        },
        "annotations": [{"type": "point", "id": name, "point": position}],
    }
    return {
        "dimensions": _dimensions(resolution_nm),
        "position": position,
        "crossSectionScale": 1.0,
        "layers": [{"type": "image", "source": image_source, "name": "EM"}, mark],
        "selectedLayer": {"layer": "synapse", "visible": False},
        "layout": "xy",
    }


def _dimensions(resolution_nm: Sequence[float]) -> dict[str, list]:
    return {
        axis: [float(f"{step}e-9"), "m"]
        for axis, step in zip("xyz", map(float, resolution_nm), strict=True)
    }


def synapse_links(
    points: Points,
    ids: Sequence[str],
    *,
    image_source: str,
    resolution_nm: Sequence[float] = (8, 8, 40),
) -> list[str]:
    """One address per synapse that opens it in Neuroglancer; ``points`` and ``ids`` in the same
    order.
    """
    if len(checked(points)) != len(ids):
        raise ParameterError(
            "parameter ids", f"{len(ids)} ids were given for {len(points)} points."
        )
    about = {"image_source": image_source, "resolution_nm": resolution_nm}
    links = []
    for row, name in enumerate(ids):
        state = neuroglancer_state(points[row], name=str(name), **about)
        links.append(f"{PUBLIC_VIEWER}#!{quote(json.dumps(state, separators=(',', ':')), safe='')}")
    return links


def is_local(image_source: str) -> bool:
    """Whether the images are on this machine only, as those of the miniature and of ``file://``
    are.
    """
    if image_source.count("://") > 1:
        image_source = image_source.split("://", 1)[1]
    address = urlsplit(image_source)
    return address.scheme == "file" or (address.hostname or "") in ("127.0.0.1", "localhost", "::1")


def note_on_links(image_source: str) -> str:
    """The sentence that goes above the links in a report."""
    if is_local(image_source):
        return (
            "The links are well formed, but lead to images that only this machine serves, and only "
            "while the miniature runs: a public viewer cannot open them."
        )
    return "Each link opens the synapse in Neuroglancer, in the public viewer."
