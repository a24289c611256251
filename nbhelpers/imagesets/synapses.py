"""Synapse patches: phantoms, the MICrONS data set of notebook 01, real EM of a nerve cord, or the
user's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from nbhelpers.core.errors import InputError, UnreadableImageError, check_choice, check_range
from nbhelpers.core.files import sha256_of
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.kept import kept
from nbhelpers.imagesets.folder import FileList, read_labelled, read_unlabelled
from nbhelpers.imagesets.from_files import (
    FileImages,
    GreyLine,
    read_files,
    spread,
    write_examples,
)
from nbhelpers.imagesets.marks import with_marks
from nbhelpers.imagesets.polarity import membrane_contrast, unlike_the_others, with_doubts
from nbhelpers.imagesets.sources import NONE, load_source, loader

CLASSES = ("excitatory", "inhibitory")
SOURCES = {
    "phantom": "nbhelpers.phantoms.synapse:load_phantom_synapses",
    "microns": "nbhelpers.imagesets.microns_sets:load_microns_patches",
    "vnc_synapse": "nbhelpers.imagesets.vnc:load_vnc",
    "vnc_mitochondrion": "nbhelpers.imagesets.vnc:load_vnc",
    "folder": "nbhelpers.imagesets.synapses:load_own_synapses",
}
# sources that bring their own split
SPLITS = {"microns": "nbhelpers.imagesets.microns_sets:load_stored_split"}
PIXEL_NM = 8.0  # of phantoms and of MICrONS at mip 0 of the cutouts
PIECE = 512  # patches that are worked on at one time


@dataclass(frozen=True)
class PatchReference:
    """What training patches look like, small enough for a checkpoint's card: new patches are
    compared with it.

    ``membrane_contrast``: median, its sign is the polarity. ``dark``, ``bright``: the 1st and the
    99th percentile of the grey values, 0 to 255. ``pixel_nm`` is None where unknown.
    """

    size_px: int
    membrane_contrast: float
    dark: float
    bright: float
    pixel_nm: float | None = PIXEL_NM

    @classmethod
    def of(cls, images: ImageSet, most: int = 200) -> PatchReference:
        """From up to ``most`` images, spread evenly over the set. Raises InputError when the set is
        empty.
        """
        if not len(images):
            raise InputError(
                images.name, "it holds no image to describe.", "Give the training images."
            )
        rows = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).astype(int))
        pixels = np.asarray(images.pixels[rows])
        scale = 255 / np.iinfo(pixels.dtype).max
        dark, bright = np.percentile(pixels, [1, 99]) * scale
        size = images.pixel_size_nm
        return cls(
            int(pixels.shape[-1]),
            float(np.median(membrane_contrast(pixels))),
            float(dark),
            float(bright),
            float(size[-1]) if size else None,
        )

    def as_dict(self) -> dict:
        """For the card of a checkpoint; ``PatchReference(**card)`` makes it again."""
        return asdict(self)


@dataclass(frozen=True)
class OwnPatches:
    """How the user's own patches are read.

    ``crop``: use the centre of patches that are larger than wanted; else they are left out and
    listed. ``pixel_nm``: size of a pixel of the files; given, they are resampled, 0: as they are.
    ``polarity``: "check" refuses a class whose grey is inverted beyond doubt (bright membranes),
    leaves such single patches out, and tells of doubt; "as given" takes all as they are. Raises
    ParameterError.
    """

    crop: bool = False
    pixel_nm: float = 0.0
    polarity: str = "check"

    def __post_init__(self):
        check_choice("parameter polarity", self.polarity, ("check", "as given"))
        if self.pixel_nm:
            hint = "It is in nanometres; 0 takes patches as they are."
            check_range("parameter pixel_nm", self.pixel_nm, 0.5, 200, hint)


AS_THEY_ARE = OwnPatches()


def load_synapses(
    data: str,
    *,
    data_folder: str | Path,
    data_dir: str = "",
    size_px: int = 128,
    seed: int = 0,
    phantom: Mapping[str, object] = NONE,
    own: OwnPatches = AS_THEY_ARE,
) -> ImageSet:
    """Patches by the name of their source, (n, 1, size_px, size_px); group is the presynaptic
    neuron.

    Parameters
    ----------
    data : "phantom"; "microns" (the folder that notebook 01 wrote: ``data_dir``, or ``microns`` in
        the data folder); "vnc_synapse" or "vnc_mitochondrion" (real EM, an object against none,
        group is a spatial block); "folder" (class folders, or a CSV of path, label and perhaps
        group: ``data_dir``).
    phantom : of "phantom" only: ``count``, and perhaps ``neurons`` and ``difficulty``, see
        :func:`nbhelpers.phantoms.synapse.make_synapse_patches`.
    own : of "folder" only, see :func:`load_own_synapses`.

    Raises ParameterError, and the InputErrors of the source.
    """
    return load_source(
        SOURCES,
        data,
        data_folder=data_folder,
        data_dir=data_dir,
        size_px=size_px,
        seed=seed,
        own=own,
        phantom={"size_px": size_px, "seed": seed, **phantom},
        hint="Give the folder that holds one folder per class, or a CSV with path and label.",
    )


def prepare_patch(
    pixels: np.ndarray,
    path: object,
    *,
    size_px: int,
    crop: bool = False,
    pixel_nm: float = 0.0,
    wanted_nm: float = PIXEL_NM,
) -> np.ndarray:
    """(channel, y, x) as read to (1, size_px, size_px), same type: grey, of the wanted pixel size,
    not padded.

    With ``pixel_nm`` the image is resampled to ``wanted_nm`` a pixel (smoothed before it is made
    smaller). A larger image is cropped at its centre where ``crop`` says so. Raises
    UnreadableImageError, with the fix, for colour, constant, larger (without ``crop``) and smaller
    images.
    """
    if len(pixels) == 3 and np.ptp(pixels.astype(np.int32), axis=0).max() <= 2:
        pixels = pixels[:1]  # grey stored as RGB
    if len(pixels) > 1:
        raise UnreadableImageError(
            path,
            f"the image has {len(pixels)} colour channels, and electron micrographs are grey.",
            "Save the EM channel by itself as 8- or 16-bit grey.",
        )
    image = pixels[0]
    if image.min() == image.max():
        raise UnreadableImageError(
            path,
            f"the image is constant (every pixel is {image.max()}).",
            "Cut the patch out again, or leave the file out.",
        )
    height, width = image.shape
    stated = f"{width} x {height} px"
    if pixel_nm and abs(pixel_nm / wanted_nm - 1) > 1e-6:
        from skimage.transform import rescale

        image = rescale(
            image,
            pixel_nm / wanted_nm,
            order=1,
            anti_aliasing=pixel_nm < wanted_nm,
            preserve_range=True,
        )
        image = np.clip(np.rint(image), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
        height, width = image.shape
        stated += f" of {pixel_nm:g} nm, which is {width} x {height} px of {wanted_nm:g} nm"
    if min(image.shape) < size_px:
        needed = int(np.ceil(size_px * wanted_nm / pixel_nm)) if pixel_nm else size_px
        raise UnreadableImageError(
            path,
            f"the patch is {stated}: too small, {size_px} x {size_px} px are needed.",
            f"Cut a patch of {needed} x {needed} px around the synapse from the original section; "
            "do not enlarge this one.",
        )
    if max(image.shape) > size_px and not crop:
        raise UnreadableImageError(
            path,
            f"the patch is {stated}, and {size_px} x {size_px} px are wanted.",
            "Give its pixel size (pixel_nm) if it is another, or set crop to use its centre.",
        )
    return np.ascontiguousarray(_centre(image, size_px)[None])


def _centre(image: np.ndarray, size_px: int) -> np.ndarray:
    top = (image.shape[0] - size_px) // 2
    left = (image.shape[1] - size_px) // 2
    return image[top : top + size_px, left : left + size_px]


def load_own_synapses(
    path: str | Path, data_folder: str | Path, *, size_px: int = 128, own: OwnPatches = AS_THEY_ARE
) -> ImageSet:
    """The user's patches: a folder with one folder per class, or a CSV with path, label and perhaps
    group.

    Folders below the class folders (``excitatory/neuron 7/a.png``) are the neurons. Without a
    neuron each image is its own group (equal pixels share one), and the
    source says so. 8- and 16-bit grey is read; 16-bit values are scaled to 8 bit once for the whole
    set, its 0.1th to 99.9th percentile to 0 to 255. Raises TableError, InputError. Nothing is
    inverted or enlarged in silence.
    """
    listed = read_labelled(path, across_classes=False)  # a neuron is excitatory or inhibitory
    classes = tuple(sorted(listed.table["label"].unique()))
    return _from_files(
        listed, data_folder, size_px, own, None, name="your synapses", classes=classes
    )


def load_unlabelled_synapses(
    path: str | Path,
    data_folder: str | Path,
    classes: tuple[str, ...],
    size_px: int = 128,
    reference: PatchReference | None = None,
    *,
    own: OwnPatches = AS_THEY_ARE,
) -> ImageSet:
    """Every image below a folder, or of a CSV with the column path, for prediction; labels are not
    used.

    ``reference`` is what the training patches look like: polarity and, for 16-bit images, the grey
    range are compared with it, and with ``own.pixel_nm`` its pixel size is the one wanted. Images
    that cannot be used are listed in ``failures``; when none can, the set is empty and lists them
    all. Raises TableError for a folder without images or a CSV without the column.
    """
    listed = read_unlabelled(path)
    return _from_files(
        listed, data_folder, size_px, own, reference, name="images to predict", classes=classes
    )


def _from_files(
    listed: FileList,
    data_folder: str | Path,
    size_px: int,
    own: OwnPatches,
    reference: PatchReference | None,
    **about: object,
) -> ImageSet:
    wanted_nm = (reference.pixel_nm if reference else None) or PIXEL_NM
    settings = {
        "size_px": size_px,
        "crop": own.crop,
        "pixel_nm": own.pixel_nm,
        "wanted_nm": wanted_nm,
    }
    found = read_files(
        listed,
        data_folder,
        partial(prepare_patch, **settings),
        name=f"synapse patch, 2, {sha256_of(settings)}",
        shape=(1, size_px, size_px),
    )
    cache = Path(data_folder) / "packed"
    notes = ["your own images"]
    if own.crop:
        notes.append(f"patches larger than {size_px} px are cropped at their centre")
    if own.pixel_nm and own.pixel_nm != wanted_nm:
        notes.append(f"resampled from {own.pixel_nm:g} to {wanted_nm:g} nm a pixel")
    as_read = found.pixels
    if found.pixels.dtype == np.uint16:
        line = _grey_line(found.pixels, reference)
        made = _kept_in_pieces(cache, [found.key, asdict(line)], line.in_8_bit, found.pixels)
        found = replace(found, pixels=made)
        notes.append(f"{line}{', as in the training images' if reference else ''}")
    if own.polarity == "check" and len(as_read):
        key = [found.key, "membrane contrast", 1]
        contrast = _kept_in_pieces(cache, key, membrane_contrast, as_read)
        found = _judged(found, contrast, reference)
        found.check_classes(listed)
    found = with_marks(found.without_copies(found.pixels, group="group"))
    found.check_classes(listed)
    if "group" not in found.table:
        own_groups = "patch-" + found.table["print"]
        found = replace(found, table=found.table.assign(group=own_groups))
        if found.labelled:
            notes.append(
                "no group is named, so each patch is its own: synapses of one neuron or animal may "
                "stand in training and test, and the score may be too high for new ones"
            )
    return found.image_set(
        source="; ".join(notes),
        channels=("EM",),
        pixel_size_nm=(wanted_nm, wanted_nm) if own.pixel_nm else None,
        **about,
    )


def _kept_in_pieces(cache: Path, key: object, function, pixels: np.ndarray) -> np.ndarray:
    starts = range(0, len(pixels), PIECE)
    return kept(cache, key, lambda: (function(pixels[at : at + PIECE]) for at in starts))


def _grey_line(pixels: np.ndarray, reference: PatchReference | None) -> GreyLine:
    """From 16 bit to 8: percentiles of the whole set to those of the reference, or to the ends."""
    if reference is None:
        return GreyLine.through(spread(pixels))
    low, high = np.percentile(spread(pixels), (1, 99))
    return GreyLine(low, high, reference.dark, reference.bright)


def _judged(
    found: FileImages, contrast: np.ndarray, reference: PatchReference | None
) -> FileImages:
    """Without patches that are inverted beyond doubt, which are never turned round. Raises
    InputError when a class of a labelled set is.
    """
    usual = reference.membrane_contrast if reference else 1.0
    bright, dark = ("bright", "dark") if usual >= 0 else ("dark", "bright")
    others = "the training images" if reference else "transmission EM"
    why = f"the grey values are inverted: membranes are {bright}, and in {others} they are {dark}."
    fix = (
        "Invert it (in Fiji: Edit > Invert, then save), or set polarity to 'as given' if that "
        "is meant."
    )
    wrong = unlike_the_others(contrast, reference.membrane_contrast if reference else None)
    found, verdicts = with_doubts(found, contrast, usual)
    for label, verdict in verdicts.items():
        if verdict == "inverted":
            if label:
                raise InputError(f"the patches of class {label}", why, fix)
            wrong[:] = True
    return found.without(wrong, why, fix)


def write_example_patches(
    path: str | Path, data_folder: str | Path, count: int, seed: int, size_px: int = 128
) -> Path:
    """Write ``count`` fresh phantom patches as PNG, and three files that cannot be used, to try a
    prediction on: too small, cut short, and inverted grey.
    """
    load_phantoms = loader(SOURCES, "phantom")
    neurons = max(2, min(12, count))
    images = load_phantoms(count, data_folder, neurons=neurons, size_px=size_px, seed=seed)
    first = np.array(images.pixels[0, 0])
    small = _centre(first, size_px // 2)
    clearest = images.pixels[int(membrane_contrast(images.pixels).argmax()), 0]
    unusable = {"inverted": 255 - np.asarray(clearest), "too_small": small}
    return write_examples(path, "synapse", images.pixels[:, 0], unusable)
