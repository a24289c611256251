"""Patches of real EM: blocks that share no pixel, patches without an object, masks whatever their
foreground value.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nbhelpers.core import splits
from nbhelpers.core.errors import DownloadError, InputError, ParameterError
from nbhelpers.core.predictions import Predictions
from nbhelpers.imagesets import downloads, vnc
from nbhelpers.studies.synapses2d import by_unit

SIZE = 32


def injected(count, seed, side=256, depth=6):
    """Noise with dark balls, and the mask of the balls; dark stripes that are in no mask look
    alike.
    """
    draw = np.random.default_rng(seed)
    z, y, x = np.ogrid[:depth, :side, :side]
    mask = np.zeros((depth, side, side), bool)
    for _ in range(count):
        centre = draw.uniform((0, 0, 0), (depth, side, side))
        radius = draw.uniform(6, 11)
        mask |= (4 * (z - centre[0])) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2
    pixels = draw.integers(60, 250, mask.shape)
    pixels[:, :, ::24] = pixels[:, ::24] = 40
    for width in range(1, 8):
        pixels[:, :, width::48] //= 3
    return np.where(mask, pixels // 3, pixels).astype(np.uint8), mask


def load(monkeypatch, volume, **changes):
    monkeypatch.setattr(vnc, "read_vnc", lambda kind, **where: volume)
    return vnc.load_vnc("vnc_synapse", data_folder="nowhere", **({"size_px": SIZE} | changes))


@given(st.integers(0, 10_000), st.integers(6, 30))
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_blocks_share_no_pixel_in_any_section(monkeypatch, seed, count):
    volume = injected(count, seed)
    images = load(monkeypatch, volume, seed=seed)
    table = images.table
    covered = {}
    for block, rows in table.groupby("block"):
        covered[block] = np.zeros(volume[1].shape[1:], bool)
        for y, x in rows[["y_px", "x_px"]].itertuples(index=False):
            covered[block][y - SIZE // 2 : y + SIZE // 2, x - SIZE // 2 : x + SIZE // 2] = True
    assert sum(part.astype(int) for part in covered.values()).max() == 1
    assert table.groupby("object")["block"].nunique().max() == 1
    # nor is any pixel of an object of one block seen in another block
    from scipy import ndimage

    labelled, _ = ndimage.label(volume[1], np.ones((3, 3, 3)))
    for block, rows in table[table["drawn"] == "object"].groupby("block"):
        numbers = rows["object"].str[-3:].astype(int).unique()
        seen_elsewhere = np.any([part for name, part in covered.items() if name != block], axis=0)
        assert not (np.isin(labelled, numbers).any(0) & seen_elsewhere).any()


@pytest.fixture
def images(monkeypatch):
    return load(monkeypatch, injected(20, 1))


def test_classes_are_matched_in_every_block_and_others_hold_nothing(images):
    assert images.classes == ("other", "synapse") and not images.synthetic
    counts = images.table.groupby(["block", "label"]).size().unstack()
    assert (counts["other"] == counts["synapse"]).all()
    cause = vnc.cause_masks(images, data_folder="nowhere")
    _, mask = injected(20, 1)
    assert cause.shape == (len(images), SIZE, SIZE)
    assert (cause.sum((1, 2)) == images.table["object_px"]).all()
    for row in images.table.itertuples():
        window = np.s_[
            max(0, row.section - 1) : row.section + 2,
            row.y_px - 16 : row.y_px + 16,
            row.x_px - 16 : row.x_px + 16,
        ]
        assert mask[window].any() == (row.label == "synapse")
    drawn = images.table.groupby("block")["drawn"].value_counts().unstack()
    assert (abs(drawn["anywhere"] - drawn["look-alike"]) <= 1).all()


def test_patches_are_what_the_table_says(images):
    pixels, _ = injected(20, 1)
    _, mask = injected(20, 1)
    for at, row in enumerate(images.table.itertuples()):
        assert (
            row.drawn != "object"
            or mask[row.section, row.y_px - 4 : row.y_px + 5, row.x_px - 4 : row.x_px + 5].any()
        )
        assert (
            images.pixels[at, 0]
            == pixels[row.section, row.y_px - 16 : row.y_px + 16, row.x_px - 16 : row.x_px + 16]
        ).all()
        assert (row.x_nm, row.y_nm, row.z_nm) == pytest.approx(
            ((row.x_px + 0.5) * 4.6, (row.y_px + 0.5) * 4.6, (row.section + 0.5) * 47.5)
        )


def test_the_same_seed_gives_the_same_patches(monkeypatch):
    first, again, other = (load(monkeypatch, injected(12, 2), seed=seed) for seed in (1, 1, 2))
    assert first.content_hash == again.content_hash != other.content_hash
    objects = [
        one.table.loc[one.table["drawn"] == "object", "id"].tolist() for one in (first, other)
    ]
    assert objects[0] == objects[1]


def test_what_is_left_out_is_listed(monkeypatch):
    pixels, mask = injected(0, 0)
    mask[2, 60:70, 119:125] = mask[2, 60:70, 131:137] = True  # on both sides of the border at 128
    mask[3, 200, 20:25] = True  # five pixels
    mask[4, 100:110, 0:9] = True  # at the edge
    mask[2, 40:50, 40:50] = mask[2, 40:50, 200:210] = mask[2, 200:210, 40:50] = mask[
        2, 200:210, 200:210
    ] = True
    images = load(monkeypatch, (pixels, mask))
    why = dict(zip(images.failures["file"], images.failures["why"], strict=True))
    assert sum("share pixels" in text for text in why.values()) == 1
    assert sum("no section shows" in text for text in why.values()) == 1
    assert sum("edge of the image" in text for text in why.values()) == 1
    assert images.counts() == {"other": 5, "synapse": 5}


def test_a_stack_without_room_for_others_is_refused(monkeypatch):
    pixels, mask = injected(0, 0)
    mask[:, 4::8, 4::8] = True
    mask[:, 60:70, 60:70] = mask[:, 200:210, 200:210] = True
    with pytest.raises(InputError, match="patches without an object were found"):
        load(monkeypatch, (pixels, mask))


@pytest.mark.parametrize("wrong", [{"size_px": 8}, {"size_px": 100}])
def test_wrong_parameters_are_named(monkeypatch, wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        load(monkeypatch, injected(8, 0), **wrong)


def test_an_unknown_object_is_named(tmp_path):
    with pytest.raises(ParameterError, match="kind.*'vesicle'.*synapse, mitochondrion"):
        vnc.load_vnc("vnc_vesicle", data_folder=tmp_path)


def test_intervals_can_be_drawn_by_object(images):
    predictions = Predictions.build(
        ids=images.ids,
        labels=images.table["label"],
        groups=images.groups,
        probabilities=np.tile([0.5, 0.5], (len(images), 1)),
        classes=images.classes,
    )
    regrouped = by_unit(predictions, images)
    assert regrouped.table["group"].tolist() == images.table["object"].tolist()
    assert predictions.table["group"].nunique() == 4 < regrouped.table["group"].nunique()


def test_a_folder_without_the_files_says_what_to_fetch(tmp_path):
    with pytest.raises(DownloadError, match=r"stack1/raw/00\.tif.*4a5f0514.*data_dir"):
        vnc.load_vnc("vnc_synapse", data_folder=tmp_path, data_dir=tmp_path)


@pytest.mark.parametrize("foreground", [1, 17, 255])
def test_a_mask_is_whatever_is_not_zero(tmp_path, monkeypatch, foreground):
    known = {}
    for part, suffix in (("raw", "tif"), ("synapses", "png")):
        (tmp_path / "stack1" / part).mkdir(parents=True)
        files = []
        for number in range(20):
            values = np.zeros((1024, 1024), np.uint8)
            values[number : number + 30, 100:130] = foreground
            path = tmp_path / "stack1" / part / f"{number:02d}.{suffix}"
            Image.fromarray(values).save(path)
            files.append(
                downloads.RemoteFile(
                    f"stack1/{part}/{path.name}",
                    "http://nowhere",
                    downloads.sha256_of_file(path),
                    path.stat().st_size,
                )
            )
        known[f"vnc_sstem_{part}"] = tuple(files)
    monkeypatch.setattr(downloads, "files_of", known.get)
    pixels, mask = vnc.read_vnc("synapse", data_folder=tmp_path / "data", data_dir=tmp_path)
    assert mask.dtype == bool and (mask.sum((1, 2)) == 900).all() and mask[5, 5:35, 100:130].all()
    assert (pixels[mask] == foreground).all()


@pytest.mark.realdata
@pytest.mark.parametrize(("kind", "fewest"), [("synapse", 35), ("mitochondrion", 28)])
def test_the_public_stack(real_data, tmp_path, kind, fewest):
    images = vnc.load_vnc(f"vnc_{kind}", data_folder=tmp_path, data_dir=real_data("vnc_sstem"))
    counts = images.counts()
    assert counts["other"] == counts[kind] > 100 and images.pixels.shape[1:] == (1, 128, 128)
    assert images.table.loc[images.labels == 1, "object"].nunique() >= fewest
    cause = vnc.cause_masks(images, data_folder=tmp_path, data_dir=real_data("vnc_sstem"))
    assert cause[images.labels == 1].any((1, 2)).all() and not cause[images.labels == 0].any()
    split = splits.repeated_cross_validation(images, folds=4, repeats=1, seed=0)
    tested = split.table[split.table["part"] == "test"].groupby("fold")["group"].unique()
    assert sorted(len(groups) for groups in tested) == [1, 1, 1, 1]  # each block is tested once
