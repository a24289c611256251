"""Draws scenes of neuropil as an electron microscope would show them: grey values on a grid of
sections.
"""

import itertools

import numpy as np

from nbhelpers.phantoms.synapse_scene import CLEFT_NM, Scene, in_mitochondrion, surfaces

# grey values of empty cytosol and of the densest stain
CYTOSOL = 172.0
DARK = 38.0
_SECTION_NM = 26.0  # a section is about this thick: organelles are seen through it


def draw(
    scene: Scene,
    z: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    *,
    shift: np.ndarray,
    texture: np.ndarray,
    block: tuple[int, int, int] = (8, 32, 32),
) -> tuple[np.ndarray, np.ndarray]:
    """Grey values (z, y, x) float32 and the injected cause as int16 (0 = none, else number of the
    synapse + 1).

    ``z``, ``y``, ``x`` are the centres of the voxels in nm; ``shift`` (z, 2) moves the content of
    each section; ``texture`` (z, y, x) is the noise of the cytosol, of unit variance.
    """
    shape = (len(z), len(y), len(x))
    dark, base, cause, tissue = (
        np.empty(shape, kind) for kind in (np.float32, np.float32, np.int16, np.float32)
    )
    warp = scene.warp.on_grid
    step = np.array([z[1] - z[0] if len(z) > 1 else 40.0, y[1] - y[0], x[1] - x[0]])
    room = np.empty(160 * int(np.prod(block)), np.float32)
    places = [
        np.array([one.centre for one in scene.synapses]).reshape(-1, 3),
        np.array([one[1] for one in scene.mitochondria]).reshape(-1, 3),
    ]
    starts = (range(0, length, side) for length, side in zip(shape, block, strict=True))
    for corner in itertools.product(*starts):
        at = tuple(slice(start, start + side) for start, side in zip(corner, block, strict=True))
        zs, ys, xs = (axis[part] for axis, part in zip((z, y, x), at, strict=True))
        move = shift[at[0]]
        points = warp(zs, ys, xs, move).astype(np.float32)
        points[0] += zs[:, None, None]
        points[1] += ys[:, None] + move[:, 0, None, None]
        points[2] += xs + move[:, 1, None, None]
        size = points.shape[1:]
        number = np.broadcast_to(np.arange(len(z))[at[0], None, None], size)
        coarse = _coarse(size, step)
        values = _block(scene, points.reshape(3, -1), number.ravel(), coarse, room, *places)
        for picture, value in zip((dark, base, cause, tissue), values, strict=True):
            picture[at] = value.reshape(size)
    organelles, theirs = _organelles(scene, (z, y, x), shift, step)
    organelles *= tissue > 0.1
    np.maximum(dark, organelles, out=dark)
    cause = np.where((cause == 0) & (organelles > 0.12), theirs, cause)
    grey = CYTOSOL + base + 11 * tissue * texture
    return grey + dark * (DARK - grey), cause


def _block(
    scene: Scene,
    points: np.ndarray,
    section: np.ndarray,
    coarse,
    room,
    synapse_places,
    mitochondrion_places,
):
    """Darkness, shade, cause and texture strength of points (3, n) in warped space."""
    middle = points.mean(axis=1)
    near, starts = _near(scene, points, coarse, middle)
    neurite = scene.neurite[near]
    local = points - middle[:, None]
    reach = np.sqrt((local**2).sum(axis=0).max())
    surface = surfaces(local, scene.seeds[near] - middle, scene.radius[near], starts, room)
    numbers = neurite[starts]
    nearest = surface[0].copy()
    second = np.full_like(surface[0], 1e4)
    owner = np.full(len(nearest), numbers[0], np.int32)
    spare = np.empty_like(nearest)
    for row, one in zip(surface[1:], numbers[1:], strict=True):
        np.copyto(owner, np.int32(one), where=row < nearest)
        np.minimum(second, np.maximum(nearest, row, out=spare), out=second)
        np.minimum(nearest, row, out=nearest)
    depth = (second - nearest) / 2  # into the neurite, from the middle of the wall
    dark = 0.93 * np.exp(-((depth / 8.5) ** 2))
    base = scene.shade[owner].astype(np.float32)
    tissue = scene.texture[owner].astype(np.float32)
    cause = np.zeros(len(nearest), np.int16)

    for one in numbers[scene.tubules[numbers] > 0]:
        index = np.flatnonzero((owner == one) & (depth > 30))
        if len(index):
            dark[index] = np.maximum(
                dark[index], _tubules(points[:, index].T, scene.axis[one], scene.tubules[one])
            )
    for which in np.flatnonzero(np.abs(mitochondrion_places - middle).max(axis=1) < reach + 650):
        mitochondrion = scene.mitochondria[which]
        index = np.flatnonzero((owner == mitochondrion[0]) & (depth > 14))
        if not len(index):
            continue
        place = points[:, index].T
        wall = np.maximum(in_mitochondrion(place, mitochondrion), 24 - depth[index])
        stripe = np.sin(place @ mitochondrion[5] + 1.6 * np.sin(place @ mitochondrion[5][::-1] / 4))
        inner = 0.42 + 0.26 * np.clip(2.2 * stripe - 0.6, 0, 1) - 0.08
        inside = wall < 0
        value = np.where(inside, inner, 0) * np.clip(-wall / 6, 0, 1)
        value = np.maximum(value, 0.78 * np.exp(-((wall / 6.5) ** 2)))
        dark[index] = np.maximum(dark[index], value)
        tissue[index[inside]] *= 0.05  # no organelle inside another one
    for number in np.flatnonzero(
        np.abs(synapse_places[:, 1:] - middle[1:]).max(axis=1) < reach + 320
    ):
        synapse = scene.synapses[number]
        across = slice(1 if synapse.tall else 0, None)  # a tall cleft goes on in z
        if np.linalg.norm((synapse.centre - middle)[across]) > reach + synapse.cleft_radius + 90:
            continue
        index = np.flatnonzero(
            ((points[across] - synapse.centre[across, None]) ** 2).sum(axis=0)
            < (synapse.cleft_radius + 80) ** 2
        )
        pre = np.flatnonzero(numbers == synapse.pre)
        post = np.flatnonzero(numbers == synapse.post)
        if len(index) and len(pre) and len(post):
            value, injected = _density(
                synapse, points[:, index], surface[:, index], pre[0], post[0], section[index]
            )
            dark[index] = np.maximum(dark[index] * (1 - 0.3 * injected), value)
            cause[index[injected > 0.5]] = number + 1
    return dark, base, cause, tissue


def _coarse(shape, step):
    """Numbers of a few points of a block, and how far any other is from one of them."""
    stride = np.maximum(1, np.ceil(110 / step)).astype(int)
    axes = [
        np.unique(np.append(np.arange(0, length, one), length - 1))
        for length, one in zip(shape, stride, strict=True)
    ]
    return np.ravel_multi_index(
        np.meshgrid(*axes, indexing="ij"), shape
    ).ravel(), 0.6 * np.linalg.norm(stride * step)


def _near(scene: Scene, points, coarse, middle):
    """Seeds that can matter within a block, and the first of each neurite among them."""
    away = np.sqrt(((scene.seeds - middle) ** 2).sum(axis=1)) - scene.radius
    index, gap = coarse
    few = points[:, index] - middle[:, None]
    near = np.flatnonzero(
        away < away.min() + 2 * np.sqrt((few**2).sum(axis=0).max()) + 2 * gap + 200
    )
    away = surfaces(few, scene.seeds[near] - middle, scene.radius[near], np.arange(len(near)))
    starts = np.flatnonzero(np.diff(scene.neurite[near], prepend=-2))
    # Only the nearest two neurites count, and the second only where it is less than 100 nm beyond
    # the wall.
    least = np.minimum.reduceat(away, starts, axis=0)
    limit = least.min(axis=0) + 200
    if len(least) > 1:
        limit = np.minimum(limit, np.partition(least, 1, axis=0)[1])
    near = near[(away - limit).min(axis=1) < 2 * gap]
    return near, np.flatnonzero(np.diff(scene.neurite[near], prepend=-2))


def _step(value, width):
    return 0.5 + 0.5 * np.tanh(value / width)


def _density(synapse, points, surface, pre, post, section):
    """Darkness of cleft and densities, and where they are (0 to 1)."""
    before = surface[pre]
    after = surface[post]
    others = np.delete(surface, (pre, post), axis=0)
    third = others.min(axis=0) if len(others) else np.full_like(before, 1e4)
    along = (before - after) / 2  # 0 in the middle of the cleft, positive on the postsynaptic side
    offset = points - synapse.centre[:, None]
    aside = offset - synapse.normal[:, None] * (synapse.normal @ offset)
    lateral = np.hypot(aside[1], aside[2]) if synapse.tall else np.sqrt((aside**2).sum(axis=0))
    inside = _step(synapse.cleft_radius - lateral, 14) * _step(
        (third - np.maximum(before, after)) / 2 - 12, 8
    )
    thick = synapse.psd
    if synapse.dense_sections is not None:
        thick = np.where(synapse.dense_sections[section], synapse.psd, synapse.psd_thin)
    half = CLEFT_NM / 2
    membrane = np.exp(-(((np.abs(along) - half) / 5.5) ** 2))
    fuzz = (
        _step(along - half + 3, 3)
        * _step(half + thick - along, 4)
        * (1 - 0.25 * np.clip((along - half) / 50, 0, 1))
    )
    before_fuzz = 0.55 * _step(-along - half + 3, 3) * _step(half + 9 + along, 4)
    cleft = 0.5 * np.exp(-((along / half) ** 4))
    value = inside * np.maximum.reduce(
        [0.95 * membrane, synapse.darkness * fuzz, before_fuzz, cleft]
    )
    return value, inside * ((along > -half - 9) & (along < half + thick))


def _tubules(points, axis, spacing):
    """Darkness of microtubules: parallel rods on a jittered grid across the axis of the neurite."""
    side = np.cross(axis, (0.36, 0.48, 0.8))
    side /= np.linalg.norm(side)
    other = np.cross(axis, side)
    place = np.stack([points @ side, points @ other], axis=1) / spacing
    cell = np.floor(place)
    mix = np.sin(cell @ np.array([[12.9898, 39.3461], [78.233, 11.135]])) * 43758.5453
    node = 0.5 + 0.56 * (mix - np.floor(mix) - 0.5)
    away = ((place - cell - node) ** 2).sum(axis=1) * spacing**2
    present = (mix[:, 0] - mix[:, 1]) % 1 < 0.7
    return 0.5 * present * np.exp(-away / 11.0**2)


def _organelles(scene: Scene, grid, shift, step):
    """Darkness of vesicles and tubules, seen through the thickness of a section, and whose they
    are.
    """
    z = grid[0]
    picture = np.zeros([len(axis) for axis in grid], np.float32)
    whose = np.zeros(picture.shape, np.int16)
    seen = (scene.vesicles[:, 0] > z[0] - 200) & (scene.vesicles[:, 0] < z[-1] + 200)
    vesicles = scene.vesicles[seen]
    owners = scene.vesicle_of[seen] + 1
    reach = np.sqrt((np.linalg.inv(vesicles[:, 3:12].reshape(-1, 3, 3)) ** 2).sum(axis=2)) + 8
    for big in (False, True):
        chosen = np.flatnonzero((reach.max(axis=1) > 45) == big)
        for part in np.array_split(chosen, max(1, len(chosen) // 1500)):
            if len(part):
                wide = reach[part].max(axis=0)
                _splat(picture, whose, vesicles[part], owners[part], wide, grid, shift, step)
    return picture, whose


def _up_to(count: float) -> np.ndarray:
    """Whole numbers from -count to count, rounded up."""
    most = int(np.ceil(count))
    return np.arange(-most, most + 1)


def _splat(picture, whose, rows, owners, reach, grid, shift, step):
    """Add some vesicles to ``picture``; ``reach`` is how far the largest of them goes, in nm."""
    z, y, x = grid
    deep = reach[0] + _SECTION_NM / 2
    beside = [_up_to(far / one) for far, one in zip((deep, *reach[1:]), step, strict=True)]
    centre = rows[:, :3]
    zi = np.rint((centre[:, 0] - z[0]) / step[0]).astype(int)[:, None] + beside[0]
    who, which = np.nonzero((zi >= 0) & (zi < len(z)))
    section = zi[who, which]
    dz = z[section] - centre[who, 0]
    seen = np.abs(dz) < deep
    who = who[seen]
    section = section[seen]
    dz = dz[seen]
    if not len(who):
        return
    pixels = []
    away = []
    for axis, line in ((1, y), (2, x)):
        middle = centre[who, axis, None]
        moved = shift[section, axis - 1, None]
        found = np.rint((middle - moved - line[0]) / step[axis]).astype(int) + beside[axis]
        pixels.append(found)
        away.append((line[0] + found * step[axis] + moved - middle).astype(np.float32))
    yi, xi = pixels
    dy, dx = away
    inverse = rows[who, 3:12].reshape(-1, 3, 3).astype(np.float32)
    scale = 1 / np.cbrt(np.abs(np.linalg.det(inverse)))
    total = 0
    for slab in (-_SECTION_NM / 3, 0.0, _SECTION_NM / 3):
        squared = 0
        for axis in range(3):
            part = (
                (inverse[:, axis, 0] * (dz + slab).astype(np.float32))[:, None, None]
                + (inverse[:, axis, 1, None] * dy)[:, :, None]
                + (inverse[:, axis, 2, None] * dx)[:, None, :]
            )
            squared = squared + part**2
        q = np.sqrt(squared)
        ring = np.exp(-(((q - 0.86) * scale[:, None, None] / 6.0) ** 2))
        total = total + np.maximum(ring, 0.22 * (q < 0.86))
    value = (total / 3 * rows[who, 12, None, None]).astype(np.float32)
    inside = ((yi >= 0) & (yi < len(y)))[:, :, None] & ((xi >= 0) & (xi < len(x)))[:, None, :]
    flat = ((section[:, None] * len(y) + yi)[:, :, None] * len(x) + xi[:, None, :])[inside]
    value = value[inside]
    np.maximum.at(picture.reshape(-1), flat, value)
    mine = np.broadcast_to(owners[who, None, None], inside.shape)[inside]
    clear = (value > 0.12) & (mine > 0)
    whose.reshape(-1)[flat[clear]] = mine[clear]
