"""Sanity checks of saliency maps, with numbers and a verdict in words, in 2D, in 3D and per stain.

A map that looks convincing may say nothing about the network: an edge detector draws the same
picture. So each map is asked: does it change when the weights are random; does what it marks matter
more than other places; does it stay under a little noise; does it point into a corner; and, where
the cause is known, does it lie on it? Maps are as :func:`nbhelpers.saliency.maps.saliency_maps`
gives them, (n, parts, y, x) or (n, parts, z, y, x).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbhelpers.core.errors import InputError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.means import mean_interval
from nbhelpers.core.seeds import derive_seed
from nbhelpers.saliency.maps import averaged, enlarged, saliency_maps, target_layers
from nbhelpers.saliency.perturbation import STEPS, Scorer, central_blobs, random_maps

# correlation with the maps of random weights, from which on a map is not about the network
MOST_ALIKE = 0.5
LEAST_STABLE = 0.8  # correlation with the maps of slightly noisy images
LEAST_ENERGY = 3.0  # energy inside the cause, in multiples of its share of the area
MOST_IN_A_CORNER = 3.0  # energy in one corner, in multiples of its share of the area
CORNER = 0.2  # of the sides
NOISE = 0.02  # of the range from black to white
OUTLINE_PX = 0.5  # how far the outline of a mask is moved instead
MASK = 0.9  # share of the places of a mask that are black or white
CASCADE_STEPS = 5
NOISE_DRAWS = 2


@dataclass(frozen=True)
class SanityChecks:
    """What the checks of one network's maps found.

    ``table`` has a row per check: ``check``, ``value``, ``low``, ``high`` (95 % interval), ``n``
    (images), ``must be``, ``passed`` (True, False, or None where it is informational), ``in
    words``. ``maps`` are those checked, ``classes`` (n,) what was asked, ``probabilities`` (n,
    classes). ``cascade`` has a row per step of the randomisation, ``curves`` one per kind of map,
    order and share of the image.
    """

    name: str
    method: str
    layers: tuple[str, ...]
    table: pd.DataFrame
    maps: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    cascade: pd.DataFrame
    curves: pd.DataFrame

    @property
    def failed(self) -> list[str]:
        """Names of the checks that were not passed."""
        failed = [passed is False for passed in self.table["passed"]]
        return self.table.loc[failed, "check"].tolist()

    @property
    def still_open(self) -> list[str]:
        """Names of the checks that judge, and whose intervals are too wide to do so."""
        judging = self.table[self.table["must be"] != "informational"]
        undecided = [passed is None for passed in judging["passed"]]
        return judging.loc[undecided, "check"].tolist()

    @property
    def verdict(self) -> str:
        """In words: passed, or failed and in what."""
        judged = int((self.table["must be"] != "informational").sum())
        if self.failed:
            return f"FAILED {len(self.failed)} of {judged} checks: {', '.join(self.failed)}"
        undecided = len(self.still_open)
        words = f", {undecided} open" if undecided else ""
        return f"passed {judged - undecided} of {judged} sanity checks{words}"


@dataclass(frozen=True)
class Injected:
    """Where something injected lies in the images: (n, ...) or (n, parts, ...), bool or 0 to 1, of
    their size; None where nothing is injected, or it is not known.

    ``cause`` is what decides the class; images without any are left out of its check. ``mark`` is a
    shortcut beside it.
    """

    cause: np.ndarray | None = None
    mark: np.ndarray | None = None


def judge(
    network: nn.Module,
    images: Tensor,
    *,
    name: str,
    classes: Sequence[int],
    method: str = "layercam",
    injected: Injected | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> SanityChecks:
    """Run all checks on the maps of prepared ``images``, (n, c, ...) float, for the given classes
    (n,), the true ones.

    ``groups`` are drawn together for the intervals, by default each image by itself. Raises
    InputError where ``injected`` or the classes do not go with the images, and the errors of
    :func:`nbhelpers.saliency.maps.saliency_maps`.
    """
    classes = np.asarray(classes, np.int64)
    if len(classes) != len(images) or len(images) < 2:
        raise InputError(
            "images",
            f"there are {len(images)}, and {len(classes)} classes.",
            "Give two or more images with a class each.",
        )
    injected = injected or Injected()
    layers = [] if method == "occlusion" else target_layers(network, images, method)

    def explain(of: nn.Module, seen: Tensor, asked: np.ndarray = classes) -> np.ndarray:
        return saliency_maps(of, seen, method=method, target_class=asked, layers=layers or None)

    maps = explain(network, images)
    scored = Scorer(network, images, classes, seed)
    cascade, last = weight_cascade(network, images, maps, explain, seed=seed)
    checks = _Checks(np.arange(len(images)) if groups is None else np.asarray(groups), seed)
    checks.add(
        "random weights",
        similarity(maps, last),
        f"below {MOST_ALIKE}",
        lambda found: found.highest < MOST_ALIKE,
        "how alike the maps of random weights are (correlation)",
    )
    checks.inform(
        "random weights, by rank",
        similarity(_ranks(maps), _ranks(last)),
        "the same of the ranks of all places, those next to 0 as well",
    )
    curves = _check_order(checks, maps, scored, seed)
    checks.add(
        "small noise",
        stability(network, images, maps, explain, seed),
        f"at least {LEAST_STABLE}",
        _at_least(LEAST_STABLE),
        f"how alike the maps stay when {_nudge(images)}",
    )
    corner, where = corner_energy(maps)
    checks.add(
        "corners",
        corner,
        f"below {MOST_IN_A_CORNER:g}",
        _below(MOST_IN_A_CORNER),
        f"energy in the {where} corner, times its share of the area: high when a mark is there",
    )
    if injected.mark is not None:
        checks.add(
            "injected mark",
            energy_ratio(maps, fit_cause(injected.mark, maps)),
            f"below {MOST_IN_A_CORNER:g}",
            _below(MOST_IN_A_CORNER),
            "energy inside the injected shortcut, times its share of the area",
        )
    if injected.cause is not None:
        inside = fit_cause(injected.cause, maps)
        known = _with_cause(inside)
        asked = _runner_up(scored.probabilities, classes)[known]
        others = explain(network, images[known], asked)
        _check_cause(checks, maps, others, inside, known)
    shown = tuple(one if isinstance(one, str) else " + ".join(one) for one in layers)
    return SanityChecks(
        name,
        method,
        shown,
        pd.DataFrame(checks.rows),
        maps,
        classes,
        scored.probabilities,
        cascade,
        curves,
    )


@dataclass
class _Checks:
    """The rows of the table of checks; each value is the mean over images, with its interval by
    group.
    """

    groups: np.ndarray
    seed: int
    rows: list[dict] = field(default_factory=list)

    def add(
        self,
        check: str,
        values: np.ndarray,
        rule: str,
        passes: Callable[[Estimate], bool | None],
        words: str,
        rows: np.ndarray | slice = slice(None),
    ) -> None:
        """A check of (n,) values; ``rows`` are the images that they are of, if not all."""
        found = mean_interval(values, self.groups[rows])
        self.rows.append(
            {
                "check": check,
                **found.columns(),
                "n": found.n,
                "must be": rule,
                "passed": passes(found),
                "in words": words,
            }
        )

    def inform(
        self, check: str, values: np.ndarray, words: str, rows: np.ndarray | slice = slice(None)
    ) -> None:
        """A figure that is told and not judged."""
        self.add(check, values, "informational", lambda found: None, words, rows)


def _check_order(checks: _Checks, maps: np.ndarray, scored: Scorer, seed: int) -> pd.DataFrame:
    """Whether what the maps mark matters more than other places; returns the curves of insertion
    and deletion.
    """
    rivals = {"random map": random_maps(maps, seed), "blob in the middle": central_blobs(maps)}
    curves = []
    gains = {}
    roads = {}
    for kind, some in {"map": maps, **rivals}.items():
        found = {"insertion": scored.insertion(some), "deletion": scored.deletion(some)}
        gains[kind] = (found["insertion"] - found["deletion"]).mean(1)
        roads[kind] = scored.road(some)
        for order, probabilities in found.items():
            for at in range(STEPS + 1):
                mean = float(probabilities[:, at].mean())
                share = at / STEPS
                curves.append({"map": kind, "order": order, "share": share, "probability": mean})
    for kind, rule, fair in (
        ("random map", "above 0", lambda found: found.lowest > 0),
        ("blob in the middle", "above 0, or open", _at_least(0.0)),
    ):
        checks.add(
            f"insertion - deletion, over {kind}",
            gains["map"] - gains[kind],
            rule,
            fair,
            f"how much more what the map marks matters than what a {kind} marks (probability)",
        )
        checks.add(
            f"ROAD, over {kind}",
            roads["map"] - roads[kind],
            rule,
            fair,
            "the same with the places filled in from around them (probability)",
        )
    return pd.DataFrame(curves)


def _at_least(limit: float) -> Callable[[Estimate], bool | None]:
    """True where the whole interval is above the limit, False where none of it is, else None: an
    interval that holds the limit speaks neither for the map nor against it.

    What is pictured often stands in the middle (the centre is a strong rival in the pointing game
    of Zhang et al. 2018, too). There a right map can be no better than a blob in the middle, and a
    tie with it does not count as passed. That a map is better than chance, the random map tells:
    it is passed only where the whole interval lies above 0.
    """

    def passes(found: Estimate) -> bool | None:
        return None if found.lowest <= limit <= found.highest else found.lowest > limit

    return passes


def _below(limit: float) -> Callable[[Estimate], bool | None]:
    """The same the other way round."""

    def passes(found: Estimate) -> bool | None:
        return None if found.lowest <= limit <= found.highest else found.highest < limit

    return passes


def _with_cause(inside: np.ndarray) -> np.ndarray | slice:
    """The rows of the images that hold any of the cause. Raises InputError for fewer than 2."""
    known = np.flatnonzero(inside.reshape(len(inside), -1).sum(1) > 0)
    if len(known) < 2:
        raise InputError(
            "cause",
            f"only {len(known)} of the images hold any of it.",
            "Leave it out, or give other images.",
        )
    # all of them as a view: sums over a copy in another order end in other digits
    return known if len(known) < len(inside) else slice(None)


def _check_cause(
    checks: _Checks,
    maps: np.ndarray,
    others: np.ndarray,
    inside: np.ndarray,
    known: np.ndarray | slice,
) -> None:
    """Whether the maps lie on the cause; ``others`` are those for another class, of the images
    ``known``.
    """
    maps = maps[known]
    inside = inside[known]
    area = float(inside.mean())
    least = least_energy(area)
    words = f"energy inside the injected cause, times its share of the area ({100 * area:.0f} %)"
    if least < LEAST_ENERGY:
        words += f"; at most {1 / area:.1f} times is possible"
    checks.add(
        "injected cause",
        energy_ratio(maps, inside),
        f"at least {least:.2g}",
        _at_least(least),
        words,
        known,
    )
    checks.inform(
        "injected cause, other class",
        energy_ratio(others, inside),
        "the same for what speaks for the class that it is not",
        known,
    )
    checks.inform(
        "pointing game",
        pointing(maps, inside).astype(float),
        "share of the maps whose highest point lies in the injected cause",
        known,
    )


def least_energy(area: float) -> float:
    """How many times its share of the area the energy in a cause must be: LEAST_ENERGY, or half way
    from chance (1) to the most that is possible (1 / area) where a cause covers so much of the
    image, over a fifth, that this is less."""
    return min(LEAST_ENERGY, (1 + 1 / area) / 2)


def _runner_up(probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(n,) int64: the likeliest class other than the one given."""
    others = probabilities.copy()
    others[np.arange(len(classes)), classes] = -1
    return others.argmax(1)


# do maps change with the weights?


def weight_cascade(
    network: nn.Module,
    images: Tensor,
    maps: np.ndarray,
    explain: Callable,
    *,
    seed: int = 0,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Weights made random from the head towards the image (Adebayo et al. 2018), and how alike the
    maps stay.

    Returns a table, a row per step: ``layers`` made random so far, ``from`` (the one nearest to the
    image), ``similarity`` with ``low`` and ``high``; and the maps when all are random. The network
    itself is not touched.
    """
    changed = copy.deepcopy(network)
    parts = [
        (name, part)
        for name, part in changed.named_modules()
        if list(part.parameters(recurse=False))
    ][::-1]
    rows = []
    found = maps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "random weights"))
        for some in np.array_split(np.arange(len(parts)), min(CASCADE_STEPS, len(parts))):
            for at in some:
                _make_random(parts[at][1])
            found = explain(changed, images)
            alike = mean_interval(similarity(maps, found))
            rows.append(
                {
                    "layers": int(some[-1]) + 1,
                    "from": parts[some[-1]][0],
                    **alike.columns("similarity"),
                    "n": alike.n,
                }
            )
    return pd.DataFrame(rows), found


def _make_random(part: nn.Module) -> None:
    if hasattr(part, "reset_parameters"):
        part.reset_parameters()
        return
    with torch.no_grad():
        for one in part.parameters(recurse=False):  # the same numbers in another order
            one.copy_(one.flatten()[torch.randperm(one.numel(), device=one.device)].view_as(one))


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) correlation of two maps of each image; 0 where one of them is the same everywhere.

    Of the values. Adebayo et al. (2018) take ranks. But most of a sparse map is next to 0, and
    ranks weigh the order there, which nobody sees, as much as that of the bright places; and they
    call any two maps alike that leave out the same empty background. So the ranks are told beside
    it, and not judged.
    """
    pair = [np.asarray(maps, np.float64).reshape(len(maps), -1) for maps in (first, second)]
    pair = [maps - maps.mean(1, keepdims=True) for maps in pair]
    product = (pair[0] * pair[1]).sum(1)
    length = np.sqrt((pair[0] ** 2).sum(1) * (pair[1] ** 2).sum(1))
    return np.divide(product, length, out=np.zeros_like(product), where=length > 1e-20)


def _ranks(maps: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(maps.reshape(len(maps), -1), axis=1)


def stability(
    network: nn.Module,
    images: Tensor,
    maps: np.ndarray,
    explain: Callable,
    seed: int = 0,
) -> np.ndarray:
    """(n,) mean similarity of the maps of the images changed a little: with some noise, or, where
    they are masks, with their outline moved, because grey noise in a mask cannot occur.
    """
    draw = torch.Generator().manual_seed(derive_seed(seed, "noise"))
    found = []
    for _ in range(NOISE_DRAWS):
        if _are_masks(images):
            changed = _outline_moved(images, draw)
        else:
            changed = images + NOISE * torch.randn(images.shape, generator=draw)
        found.append(similarity(maps, explain(network, changed)))
    return np.mean(found, 0)


def _are_masks(images: Tensor) -> bool:
    """Whether nearly every place is black or white, of what the images hold: only edges are not."""
    low = images.min()
    share = (images - low) / (images.max() - low).clamp(min=1e-12)
    return bool(((share < 0.01) | (share > 0.99)).float().mean() > MASK)


def _nudge(images: Tensor) -> str:
    """What :func:`stability` does to the images, in words."""
    if _are_masks(images):
        return f"the outline of the masks moves by {OUTLINE_PX:g} pixels or so"
    return f"noise of {NOISE:g} is added"


def _outline_moved(images: Tensor, draw: torch.Generator) -> Tensor:
    """Every place taken from ``OUTLINE_PX`` or so beside it, in directions that change smoothly
    over the image.
    """
    size = images.shape[2:]
    identity = torch.eye(len(size), len(size) + 1).expand(len(images), -1, -1)
    grid = F.affine_grid(identity, [len(images), 1, *size], align_corners=False)
    coarse = [max(2, side // 8) for side in size]
    moved = torch.randn(len(images), len(size), *coarse, generator=draw)
    moved = enlarged(moved, size).movedim(1, -1)
    pixel = torch.tensor([2 / side for side in reversed(size)])  # x first
    grid = grid + OUTLINE_PX * pixel * moved
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


# where do maps lie?


def fit_cause(cause: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The cause as (n, parts, ...) float, 0 to 1, of the shape of the maps: averaged where it is
    larger.

    Raises InputError for another number of images, parts or axes.
    """
    cause = np.asarray(cause, np.float32)
    cause = cause[:, None] if cause.ndim == maps.ndim - 1 else cause
    if (
        cause.ndim != maps.ndim
        or len(cause) != len(maps)
        or cause.shape[1] not in (1, maps.shape[1])
    ):
        raise InputError(
            "cause",
            f"its shape {cause.shape} does not go with maps of {maps.shape}.",
            "Give one mask per image, or one per image and stain.",
        )
    if cause.shape[2:] != maps.shape[2:]:
        cause = averaged(torch.from_numpy(cause), maps.shape[2:]).numpy()
    return np.broadcast_to(cause, maps.shape)


def energy_ratio(maps: np.ndarray, cause: np.ndarray) -> np.ndarray:
    """(n,) share of a map's energy inside the cause over the cause's share of the area; an empty
    map has 0.
    """
    axes = tuple(range(1, maps.ndim))
    energy = maps.sum(axes, dtype=np.float64)
    inside = (maps * cause).sum(axes, dtype=np.float64)
    return np.where(energy > 0, inside / np.maximum(energy, 1e-30), 0) / cause.mean(axes)


def pointing(maps: np.ndarray, cause: np.ndarray) -> np.ndarray:
    """(n,) bool: whether the highest point of a map lies in the cause; that of an empty map lies
    nowhere.
    """
    flat = maps.reshape(len(maps), -1)
    inside = np.asarray(cause).reshape(len(maps), -1)
    rows = np.arange(len(maps))
    return (inside[rows, flat.argmax(1)] >= 0.5) & (flat.max(1) > 0)


def corner_energy(maps: np.ndarray) -> tuple[np.ndarray, str]:
    """(n,) energy in the corner that holds most of all maps, times its share of the area; and which
    corner it is.

    Labels, scale bars and marks stand in corners, what an image shows seldom does.
    """
    down, across = (max(1, round(CORNER * side)) for side in maps.shape[-2:])
    found = {}
    for row, rows in (("upper", slice(None, down)), ("lower", slice(-down, None))):
        for side, columns in (("left", slice(None, across)), ("right", slice(-across, None))):
            corner = np.zeros(maps.shape[-2:], np.float32)
            corner[rows, columns] = 1
            found[f"{row} {side}"] = energy_ratio(maps, np.broadcast_to(corner, maps.shape))
    name = max(found, key=lambda one: found[one].mean())
    return found[name], name


def typical(maps: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) how like a map, (n, y, x), is to the mean map of the other images of its class:
    correlation, 0 where a class has one image. Only of images that are aligned, such as spines."""
    found = np.zeros(len(maps))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            others = (maps[rows].sum(0, dtype=np.float64) - maps[rows]) / (len(rows) - 1)
            found[rows] = similarity(maps[rows], others)
    return found


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """The table of SanityChecks with ``passed`` as pass, FAIL, or open (a tie); empty where a
    figure is informational.
    """
    words = [{True: "pass", False: "FAIL", None: "open"}[passed] for passed in table["passed"]]
    return table.assign(passed=np.where(table["must be"] == "informational", "", words))


def verdict_table(found: Sequence[SanityChecks]) -> pd.DataFrame:
    """A row per network: its verdict, and every check that judges with its value and pass, FAIL or
    open (a tie).
    """
    rows = []
    for one in found:
        row = {"network": one.name, "n": len(one.maps), "verdict": one.verdict}
        for check in in_words(one.table).query("passed != ''").itertuples():
            row[check.check] = f"{check.value:.2f} {check.passed}"
        rows.append(row)
    return pd.DataFrame(rows).set_index("network")
