"""Scenes of neuropil: which neurites, mitochondria, vesicles and synapses lie where. Nothing is
drawn here.

All arrays hold (z, y, x) in nanometres. Shapes are laid out in a smoothly warped space, in which
neurites are chains of balls and every point belongs to the neurite whose surface is nearest; the
warp bends the walls.
"""

from dataclasses import dataclass, field

import numpy as np

SEEDS_PER_NEURITE = 9
CLEFT_NM = 18.0
VESICLE_NM = 23.0  # radius of a round vesicle
_AREA_NM2 = 7.2e4  # mean cross-section of a neurite: sets how many fill the space


class Warp:
    """A smooth displacement of space: a few plane waves with vector amplitudes."""

    def __init__(self, rng: np.random.Generator, bend: float = 0.5, waves: int = 14):
        length = np.exp(rng.uniform(np.log(190), np.log(1100), waves))
        self.wave = (2 * np.pi / length)[:, None] * _directions(rng, waves)
        self.amplitude = (bend * np.sqrt(2 / waves) * length / (2 * np.pi))[:, None] * _directions(
            rng, waves
        )
        self.amplitude = self.amplitude * np.exp(1j * rng.uniform(0, 2 * np.pi, waves))[:, None]

    def at(self, points: np.ndarray) -> np.ndarray:
        """Displacement (n, 3) of points (n, 3)."""
        return (np.exp(1j * (points @ self.wave.T)) @ self.amplitude).imag

    def on_grid(self, z: np.ndarray, y: np.ndarray, x: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Displacement (3, z, y, x) float32 on a grid whose sections are shifted by ``shift`` (z,
        2: y and x).
        """
        first = np.exp(1j * (np.outer(z, self.wave[:, 0]) + shift @ self.wave[:, 1:].T))
        second, third = (
            np.exp(1j * np.outer(axis, self.wave[:, one])) for one, axis in ((1, y), (2, x))
        )
        left = np.einsum("mc,zm,ym->czym", self.amplitude, first, second, optimize=False).astype(
            np.complex64
        )
        return (left @ third.T.astype(np.complex64)).imag

    def undo(self, warped: np.ndarray) -> np.ndarray:
        """The points (n, 3) that the warp moves to ``warped``."""
        points = warped.copy()
        for _ in range(12):
            points = warped - self.at(points)
        return points


@dataclass
class Synapse:
    """One synapse: the cleft with its two neurites. Positions in warped space."""

    centre: np.ndarray
    normal: np.ndarray  # from the presynaptic to the postsynaptic side
    cleft_radius: float
    pre_radius: float
    post_radius: float
    psd: float  # thickness of the postsynaptic density
    flattened: float  # share of flattened vesicles
    vesicles_per_um3: float
    vesicle_scale: float
    darkness: float  # of the density, 0 to 1
    tall: bool = False  # the two neurites run along z and the cleft with them
    # which sections show ``psd``; the others show the thin density
    dense_sections: np.ndarray | None = None
    psd_thin: float = 0.0
    pre: int = -1  # numbers of the two neurites
    post: int = -1


@dataclass
class Scene:
    """Everything that a drawing needs. Seeds are sorted by neurite."""

    warp: Warp
    seeds: np.ndarray  # (n, 3)
    radius: np.ndarray  # (n,)
    neurite: np.ndarray  # (n,) number of the neurite
    shade: np.ndarray  # per neurite, grey values
    texture: np.ndarray  # per neurite, strength of the cytosol texture
    tubules: np.ndarray  # per neurite: spacing of its microtubules, 0 = none
    axis: np.ndarray  # per neurite (n, 3): along it
    # neurite, centre, axis, half length, radius, cristae
    mitochondria: list[tuple] = field(default_factory=list)
    synapses: list[Synapse] = field(default_factory=list)
    # (n, 13): centre in real space, inverse axes (9), darkness
    vesicles: np.ndarray | None = None
    vesicle_of: np.ndarray | None = None  # number of the synapse, -1 = other organelles

    def surface(self, points: np.ndarray, near: np.ndarray):
        """Distances (neurites, points) to the surface of each neurite near, and their numbers."""
        seeds = self.seeds[near]
        radius = self.radius[near]
        neurite = self.neurite[near]
        middle = points.mean(axis=0)
        starts = np.flatnonzero(np.diff(neurite, prepend=-2))
        return surfaces((points - middle).T, seeds - middle, radius, starts), neurite[starts]


def surfaces(
    points: np.ndarray,
    seeds: np.ndarray,
    radius: np.ndarray,
    starts: np.ndarray,
    room: np.ndarray | None = None,
) -> np.ndarray:
    """Distance (neurites, points) float32 of points (3, n) to the surface of each neurite, negative
    inside.

    ``starts``: the first seed of each neurite. Points and seeds lie around 0: float32 is used
    throughout. ``room``: flat float32 memory to work in, at least seeds x points, which saves
    asking for it again and again.
    """
    # |p - s|^2 as one matrix product.
    left = np.concatenate(
        [-2 * seeds, (seeds**2).sum(axis=1, keepdims=True), np.ones((len(seeds), 1))], axis=1
    )
    right = np.concatenate(
        [points, np.ones((1, points.shape[1])), (points**2).sum(axis=0, keepdims=True)]
    )
    if room is not None and room.size >= len(left) * right.shape[1]:
        room = room[: len(left) * right.shape[1]].reshape(len(left), -1)
    else:
        room = None
    away = np.matmul(left.astype(np.float32), right.astype(np.float32), out=room)
    np.maximum(away, 0, out=away)
    np.sqrt(away, out=away)
    away -= radius.astype(np.float32)[:, None]
    # Row by row: np.minimum.reduceat along this axis is several times slower.
    for first, end in zip(starts, [*starts[1:], len(seeds)], strict=True):
        for row in range(first + 1, end):
            np.minimum(away[first], away[row], out=away[first])
    return away[starts]


def build(
    rng: np.random.Generator,
    low: np.ndarray,
    high: np.ndarray,
    synapses: list[Synapse],
    warp: Warp,
    visible: tuple[np.ndarray, np.ndarray],
) -> Scene:
    """Fill the box from ``low`` to ``high`` with neurites around the synapses; organelles only
    where visible.
    """
    own_seeds = []
    own_radius = []
    own_number = []
    axes = []
    for number, one in enumerate(synapses):
        one.pre = 2 * number
        one.post = 2 * number + 1
        others = [
            other
            for other in synapses
            if other is not one and np.linalg.norm(other.centre - one.centre) < 2500
        ]
        for side, neurite in ((-1, one.pre), (1, one.post)):
            seeds, radius, axis = _partner(rng, one, side)
            keep = np.ones(len(seeds), bool)
            for other in others:  # an axon does not run through the cleft of another synapse
                keep &= (
                    np.linalg.norm(seeds - other.centre, axis=1) - radius > other.cleft_radius + 45
                )
            keep[0] = True
            own_seeds.append(seeds[keep])
            own_radius.append(radius[keep])
            own_number.append(np.full(keep.sum(), neurite))
            axes.append(axis)
    first = 2 * len(synapses)
    seeds, radius, number, axis = _background(rng, low, high)
    keep = np.ones(len(seeds), bool)
    for one in synapses:
        across = slice(1 if one.tall else 0, None)
        keep &= (
            np.linalg.norm((seeds - one.centre)[:, across], axis=1) - radius > one.cleft_radius + 55
        )
    kept = np.unique(number[keep], return_inverse=True)
    seeds = np.concatenate([*own_seeds, seeds[keep]])
    radius = np.concatenate([*own_radius, radius[keep]])
    neurite = np.concatenate([*own_number, first + kept[1]]).astype(int)
    axes = np.concatenate([np.asarray(axes).reshape(-1, 3), axis[kept[0]]])
    count = len(axes)
    broad = np.zeros(count)
    np.maximum.at(broad, neurite, radius)
    tubules = np.where((rng.random(count) < 0.6) & (broad > 130), rng.uniform(65, 120, count), 0)
    scene = Scene(
        warp,
        seeds,
        radius,
        neurite,
        shade=rng.normal(0, 9, count),
        texture=rng.uniform(0.5, 1.4, count),
        tubules=tubules,
        axis=axes,
        synapses=synapses,
    )
    _mitochondria(rng, scene, visible)
    _vesicles(rng, scene, visible)
    return scene


def _directions(rng: np.random.Generator, count: int) -> np.ndarray:
    return _unit(rng.normal(size=(count, 3)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """(..., 3) or (..., 4) of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _background(rng, low, high):
    """Chains of balls: thin and thick neurites that run and bend through the box and beyond it."""
    count = max(12, round(float(np.prod(high - low)) / (_AREA_NM2 * 1100)))
    thick = np.clip(np.exp(rng.normal(np.log(108), 0.62, count)), 38, 460)
    steps = _directions(rng, count)[:, None] + 0.28 * np.cumsum(
        rng.normal(size=(count, SEEDS_PER_NEURITE, 3)), axis=1
    )
    chain = np.cumsum(_unit(steps) * (0.55 * thick + 60)[:, None, None], axis=1)
    chain += (rng.uniform(low, high, (count, 3)) - chain[:, SEEDS_PER_NEURITE // 2])[:, None]
    radius = thick[:, None] * np.exp(rng.normal(0, 0.16, (count, SEEDS_PER_NEURITE)))
    number = np.repeat(np.arange(count), SEEDS_PER_NEURITE)
    axis = _unit(chain[:, -1] - chain[:, 0])
    seeds = chain.reshape(-1, 3)
    radius = radius.ravel()
    inside = ((seeds > low - 150) & (seeds < high + 150)).all(axis=1)
    return seeds[inside], radius[inside], number[inside], axis


def _partner(rng, one: Synapse, side: int):
    """Seeds, radii and axis of the bouton (side -1, with its thin axon) or of what it lies on (side
    1).
    """
    size = one.pre_radius if side < 0 else one.post_radius
    head = one.centre + side * size * one.normal
    if one.tall:
        along = np.array([1.0, 0, 0])
        seeds = head + np.linspace(-700, 700, 21)[:, None] * along
        return seeds, np.full(21, size), along
    across = np.cross(one.normal, _directions(rng, 1)[0])
    across /= np.linalg.norm(across)
    lean = rng.uniform(0.35, 1.2) if side < 0 else rng.uniform(0.0, 1.5)
    along = across + lean * side * one.normal
    along /= np.linalg.norm(along)
    thin = (rng.uniform(0.35, 0.55) if side < 0 else rng.uniform(0.4, 0.95)) * size
    steps = np.arange(1, 6) * 0.8 * thin + 0.75 * size
    seeds = np.concatenate([head[None], head + steps[:, None] * along])
    if side < 0 and rng.random() < 0.5:  # the axon goes on at the other side
        seeds = np.concatenate(
            [seeds, head - steps[:, None] * (across - lean * side * one.normal * 0.6)]
        )
    radius = np.full(len(seeds), thin)
    radius[0] = size
    return seeds, radius, along


def _mitochondria(rng, scene: Scene, visible) -> None:
    """In one of ten seeds of the thicker neurites: capsules along them."""
    chance = rng.random(len(scene.seeds))
    heads = {one.pre: one for one in scene.synapses}
    fits = (scene.radius > 105) & (chance < 0.085)
    for seed in np.flatnonzero(fits & _within(scene.seeds, visible, 500)):
        neurite = int(scene.neurite[seed])
        axis = scene.axis[neurite] + 0.35 * rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        radius = float(np.clip(scene.radius[seed] * rng.uniform(0.5, 0.8), 65, 190))
        centre = scene.seeds[seed]
        half = rng.uniform(60, 420)
        if neurite in heads:  # behind the vesicles
            radius = min(radius, 0.55 * heads[neurite].pre_radius)
            centre = centre - 0.45 * heads[neurite].pre_radius * heads[neurite].normal
        if any(
            other[0] == neurite
            and np.linalg.norm(other[1] - centre) < other[3] + half + other[4] + radius
            for other in scene.mitochondria
        ):
            continue
        cristae = _directions(rng, 1)[0] * 2 * np.pi / rng.uniform(34, 48)
        scene.mitochondria.append((neurite, centre, axis, half, radius, cristae))


def _within(points, box, margin):
    return ((points > box[0] - margin) & (points < box[1] + margin)).all(axis=1)


def in_mitochondrion(points: np.ndarray, mitochondrion: tuple) -> np.ndarray:
    """Distance (n,) of warped points (n, 3) to the wall of the capsule, negative inside."""
    _, centre, axis, half, radius, _ = mitochondrion
    offset = points - centre
    along = np.clip(offset @ axis, -half, half)
    return np.linalg.norm(offset - along[:, None] * axis, axis=1) - radius


def _vesicles(rng, scene: Scene, visible) -> None:
    """The vesicles of every synapse, and tubules and endosomes anywhere; centres in real space."""
    low, high = visible
    rows = []
    owners = []
    for number, one in enumerate(scene.synapses):
        # A jittered grid keeps vesicles apart without a search; it is turned at random.
        gap = (1e9 / one.vesicles_per_um3) ** (1 / 3)
        half = int(np.ceil(max(2 * one.pre_radius, 720 if one.tall else 0) / gap))
        grid = np.stack(
            np.meshgrid(*[np.arange(-half, half + 1)] * 3, indexing="ij"), axis=-1
        ).reshape(-1, 3)
        points = grid @ (np.linalg.qr(rng.normal(size=(3, 3)))[0] * gap) + one.centre
        depth = (one.centre - points) @ one.normal
        points = points[
            (depth > -20) & (depth < 1.9 * one.pre_radius) & _within(points, visible, 280).T
        ]
        points += rng.uniform(-0.27 * gap, 0.27 * gap, points.shape)
        kind = rng.random(len(points))
        darkness = rng.uniform(0.75, 1.0, len(points))
        chance = rng.random(len(points))
        shape = rng.normal(size=(len(points), 3))
        spin = rng.normal(size=(len(points), 4))
        offset = points - one.centre
        depth = -(offset @ one.normal)
        aside = offset + depth[:, None] * one.normal
        lateral = np.linalg.norm(aside[:, 1:] if one.tall else aside, axis=1)
        wide = 1.15 * one.cleft_radius + 0.35 * depth
        keep = (depth > 15) & (lateral < wide + 60)
        keep &= chance < 1.05 * np.exp(-((lateral / wide) ** 4)) * np.exp(
            -((depth / (1.5 * one.pre_radius)) ** 3)
        )
        index = np.flatnonzero(keep)
        real = scene.warp.undo(points[index])
        keep = _within(real, visible, 35)
        index = index[keep]
        real = real[keep]
        if not len(index):
            continue
        near = np.linalg.norm(scene.seeds - one.centre, axis=1) < 900 + (700 if one.tall else 0)
        surface, numbers = scene.surface(points[index], near)
        own = surface[np.flatnonzero(numbers == one.pre)[0]].copy()
        surface[numbers == one.pre] = np.inf
        inside = (surface.min(axis=0) - own) / 2 > VESICLE_NM + 5
        for mitochondrion in scene.mitochondria:
            if mitochondrion[0] == one.pre:
                inside &= in_mitochondrion(points[index], mitochondrion) > VESICLE_NM + 8
        index = index[inside]
        real = real[inside]
        flat = kind[index] < one.flattened
        size = VESICLE_NM * one.vesicle_scale * (1 + 0.07 * shape[index, :1])
        # Flattened ones keep about the area of the round ones, so that they are neither darker nor
        # brighter.
        stretch = np.where(flat[:, None], [1.42, 1.15, 0.56], 1.0)
        stretch = stretch * (1 + np.array([0.0, 0.05, 0.05]) * shape[index])
        rows.append(_organelles(real, size * stretch, spin[index], darkness[index]))
        owners.append(np.full(len(index), number))
    count = rng.poisson(14 * np.prod(high - low + 80) / 1e9)
    real = rng.uniform(low - 40, high + 40, (count, 3))
    size = np.exp(rng.normal(np.log(24), 0.28, (count, 1)))
    axes = size * np.where(rng.random((count, 1)) < 0.5, 1.0, [3.2, 0.8, 0.8])
    spin = rng.normal(size=(count, 4))
    darkness = rng.uniform(0.35, 0.85, count)
    rows.append(_organelles(real, axes, spin, darkness))
    owners.append(np.full(count, -1))
    scene.vesicles = np.concatenate(rows)
    scene.vesicle_of = np.concatenate(owners)


def _organelles(centres, axes, spin, darkness) -> np.ndarray:
    """Rows (n, 13): centre, inverse axes turned by the quaternion ``spin``, darkness."""
    w, x, y, z = _unit(spin).T
    turn = np.stack(
        [
            1 - 2 * (y * y + z * z),
            2 * (x * y - z * w),
            2 * (x * z + y * w),
            2 * (x * y + z * w),
            1 - 2 * (x * x + z * z),
            2 * (y * z - x * w),
            2 * (x * z - y * w),
            2 * (y * z + x * w),
            1 - 2 * (x * x + y * y),
        ],
        axis=1,
    ).reshape(-1, 3, 3)
    inverse = turn / axes[:, :, None]
    return np.concatenate([centres, inverse.reshape(-1, 9), darkness[:, None]], axis=1)
