"""The audit finds what was injected, lets clean sets pass, says what it not assessable, and stops
training when strict.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nbhelpers.audit import Audit, AuditError, Check, Provenance, injected, run_audit
from nbhelpers.audit import duplicates as copies
from nbhelpers.audit.__main__ import main
from nbhelpers.audit.groups import one_group_by_name
from nbhelpers.audit.placement import Placement
from nbhelpers.audit.question import Question
from nbhelpers.audit.shortcuts import shortcut_checks
from nbhelpers.audit.table import read_table
from nbhelpers.core import published_splits, splits
from nbhelpers.core.errors import InputError, TableError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split


@pytest.fixture(scope="module")
def pool() -> np.ndarray:
    """(300, 1, 64, 64) uint8: smooth noise, no two alike."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(0).normal(size=(300, 1, 64, 64)), (0, 0, 2, 2))
    return np.clip(128 + 300 * noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clean(pool) -> injected.Injected:
    return injected.clean_set(pool, 3)


def quick(made: injected.Injected, **options) -> Audit:
    return run_audit(made.images, made.split, record=made.record, shuffles=0, **options)


def verdicts(audit: Audit) -> dict[str, str]:
    return {check.name: check.verdict for check in audit.checks}


def small_set(groups, labels=None, ids=None, parts=None, **columns) -> tuple[ImageSet, Split]:
    n = len(groups)
    table = pd.DataFrame(
        {
            "id": ids or [f"i{at}" for at in range(n)],
            "label": labels or ["A", "B"] * (n // 2),
            "group": groups,
            **columns,
        }
    )
    pixels = np.random.default_rng(1).integers(0, 255, (n, 1, 32, 32), dtype=np.uint8)
    images = ImageSet(
        name="small", table=table, pixels=pixels, classes=("A", "B"), source="", synthetic=True
    )
    rows = pd.DataFrame(
        {
            "repeat": 0,
            "fold": 0,
            "part": parts or ["train", "test"] * (n // 2),
            "id": images.ids,
            "group": images.groups,
        }
    )
    return images, Split(rows, "made", 0, known_leak="perhaps")


# clean sets and injected defects


def test_a_clean_set_passes_every_check_that_can_be_made(clean):
    found = run_audit(clean.images, clean.split, shuffles=300)
    assert {one.verdict for one in found.checks} <= {
        "pass",
        "not assessable",
    } and found.verdict == "pass"


@pytest.mark.parametrize("transform", injected.TRANSFORMS)
def test_injected_copies_are_found_and_nothing_else(clean, transform):
    made = injected.with_copies(clean, transform, 5)
    found = quick(made)
    assert injected.found_in(made, found) == (injected.COPIES, injected.COPIES)
    named = found.check(made.check)
    assert named.verdict == "fail" and len(named.rows) == injected.COPIES
    assert named.numbers["test images touched"] == injected.COPIES


@settings(max_examples=15, deadline=None)
@given(
    angle=st.integers(-15, 15),
    mirrored=st.booleans(),
    quarter=st.integers(0, 3),
    one=st.integers(0, 299),
)
def test_a_copy_is_like_its_image_however_it_lies(pool, angle, mirrored, quarter, one):
    from scipy.ndimage import rotate

    image = pool[one]
    moved = np.rot90(image[..., ::-1] if mirrored else image, quarter, (-2, -1))
    moved = rotate(moved, angle, axes=(-1, -2), reshape=False, order=1, mode="constant")
    first, second, alike, _ = copies.near_pairs(np.stack([image, moved, pool[(one + 1) % 300]]))
    assert (first.tolist(), second.tolist()) == ([0], [1]) and alike[0] > 0.9


def test_16_bit_and_3d_images_are_compared_too(pool):
    deep = np.concatenate([pool[:20], pool[:1]]).astype(np.uint16) * 257
    one, other, alike, _ = copies.near_pairs(deep)
    assert (one.tolist(), other.tolist()) == ([0], [20]) and alike[0] > 0.99
    cubes = np.stack([pool[at : at + 8, 0] for at in range(0, 160, 8)] + [pool[:8, 0, :, ::-1]])[
        :, None
    ]
    one, other, _, _ = copies.near_pairs(cubes)
    assert (one.tolist(), other.tolist()) == ([0], [20])


def test_large_cubes_are_looked_at_few_at_a_time(monkeypatch):
    whole = copies.small
    some = []
    monkeypatch.setattr(copies, "small", lambda pixels: some.append(len(pixels)) or whole(pixels))
    cubes = np.random.default_rng(0).integers(0, 255, (5, 1, 8, 32, 32)).astype(np.uint8)
    monkeypatch.setattr(copies, "VALUES_AT_ONCE", 2 * cubes[0].size)
    few = copies.near_pairs(cubes[[0, 1, 2, 3, 4, 1]])
    assert some == [2, 2, 2] and few[0].tolist() == [1] and few[1].tolist() == [5]
    monkeypatch.setattr(copies, "VALUES_AT_ONCE", 1)
    assert copies.near_pairs(cubes[:2])[0].tolist() == [] and some[3:] == [1, 1]


def test_black_images_are_no_near_duplicates_but_have_the_same_pixels(clean):
    pixels = clean.images.pixels.copy()
    at = clean.images.positions([clean.split.ids(0, 0, part)[0] for part in ("train", "test")])
    pixels[at] = 0
    found = quick(replace(clean, images=replace(clean.images, pixels=pixels, content_hash="")))
    assert verdicts(found)["near-duplicates in two parts"] == "pass"
    assert verdicts(found)["same pixels in two parts"] == "fail"


@pytest.mark.parametrize("share", injected.LEAKS)
def test_a_group_in_two_parts_fails(clean, share):
    found = quick(injected.with_group_leak(clean, share, 2))
    assert found.verdict == "fail" and [one.name for one in found.failed()] == [
        "same group in two parts"
    ]
    assert found.failed()[0].numbers["test groups in training or validation"] >= 1


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_crops_that_overlap_across_parts_fail(clean, share):
    check = quick(injected.with_overlap(clean, share, 2)).check("overlapping crops")
    assert check.verdict == "fail" and np.isclose(check.rows["overlap"], share, atol=0.02).any()


def test_crops_of_different_slides_or_sections_do_not_overlap():
    where = {"x_px": [0] * 4, "y_px": [0] * 4}
    for column in ("slide", "section"):
        images, split = small_set(list("abcd"), **where, **{column: [1, 2, 3, 4]})
        assert verdicts(run_audit(images, split, shuffles=0))["overlapping crops"] == "pass"
    images, split = small_set(list("abcd"), **where)
    assert verdicts(run_audit(images, split, shuffles=0))["overlapping crops"] == "fail"


@pytest.mark.parametrize("name", injected.SHORTCUTS)
def test_injected_shortcuts_are_found(clean, name):
    made = injected.with_shortcut(clean, name, 0.8, 4)
    spoken = {
        one.name
        for one in shortcut_checks(Question(made.images, shuffles=300))
        if one.verdict in ("warn", "fail")
    }
    looks = {
        "shortcut: brightness",
        "shortcut: border and corners",
        "shortcut: grey levels",
    }  # a brighter image has a brighter border, and a mark a brightest level
    assert f"shortcut: {name}" in spoken and spoken - looks <= {f"shortcut: {name}"}


def test_a_shortcut_is_compared_with_the_image_model(clean):
    from nbhelpers.core.predictions import Predictions

    made = injected.with_shortcut(clean, "plate position", 1.0, 4)
    shares = np.eye(2)[made.images.labels] * 0.2 + 0.4
    model = Predictions.build(
        ids=made.images.ids,
        labels=made.images.table["label"],
        groups=made.images.groups,
        probabilities=shares,
        classes=made.images.classes,
    )
    check = next(
        one
        for one in shortcut_checks(Question(made.images, predictions=model, shuffles=300))
        if "position" in one.name
    )
    assert check.verdict == "fail" and "hardly more" in check.says
    assert check.numbers["auc"] > 0.99 and check.numbers["p"] < 0.01
    assert check.numbers["forest"]["accuracy"].value > 0.95


# false alarms


def test_shapes_that_look_alike_are_no_copies():
    """Spine masks are so alike that among the 45,000 pairs of a set a few are nearly one; their
    copies are found.
    """
    from nbhelpers.phantoms.spine import load_phantom_spines

    masks = np.asarray(load_phantom_spines(300, 7).pixels)[..., ::2, ::2]
    assert len(copies.near_pairs(masks)[0]) == 0
    for transform in ("turned by 8 degrees", "JPEG, quality 50"):
        copied = [injected.TRANSFORMS[transform](image) for image in masks[:20]]
        one, other, _, _ = copies.near_pairs(np.concatenate([masks, copied]))
        assert set(zip(one.tolist(), other.tolist(), strict=True)) == {
            (at, 300 + at) for at in range(20)
        }


@pytest.mark.parametrize("number", [2, 4, 20, 22])
def test_images_whose_every_pair_may_be_a_copy(pool, number):
    pixels = np.concatenate([pool[:number], pool[:1, ..., ::-1]])
    one, other, _, _ = copies.near_pairs(pixels)
    assert (one.tolist(), other.tolist()) == ([0], [number])


def test_few_shuffles_do_not_let_chance_through(clean):
    """With 100 shuffles the rarest p is .0099; of the many shortcuts one would often be that rare
    by chance.
    """
    rng = np.random.default_rng(0)
    noise = {f"noise {at}": rng.normal(size=len(clean.images)) for at in range(40)}
    made = replace(clean.images, table=clean.images.table.assign(**noise), content_hash="")
    known = Provenance(columns=list(noise), pixels_known=False)
    found = shortcut_checks(Question(made, known=known, shuffles=100))
    assert {one.verdict for one in found} == {"pass"}
    assert min(one.numbers["p"] for one in found) < 0.05  # that was worth some more shuffles
    assert max(one.numbers["shuffles"] for one in found) > min(
        one.numbers["shuffles"] for one in found
    )


def test_a_shortcut_that_few_groups_cannot_rule_out_is_no_pass():
    """Three dark and three light animals of each class: a perfect shortcut, which chance makes in
    one of ten.
    """
    images, _ = small_set([f"g{at // 4}" for at in range(24)], labels=["A"] * 12 + ["B"] * 12)
    pixels = (
        images.pixels // 4
        + np.where(images.labels == 1, 150, 0).astype(np.uint8)[:, None, None, None]
    )
    centre = np.where(images.labels == 1, "north", "south")
    made = replace(images, pixels=pixels, table=images.table.assign(centre=centre), content_hash="")
    found = {one.name: one for one in shortcut_checks(Question(made, shuffles=50))}
    assert found["shortcut: brightness"].verdict == "not assessable"
    assert (
        "chance" in found["shortcut: brightness"].says
        and "little" not in found["shortcut: brightness"].says
    )
    assert (
        found["shortcut: centre"].verdict == "warn"
    )  # no fail, which would stop training on what chance may explain


def test_a_class_of_one_group_has_no_verdict():
    images, _ = small_set(
        [f"g{at // 4}" for at in range(32)],
        labels=["A"] * 28 + ["B"] * 4,
        noise=np.random.default_rng(2).normal(size=32),
    )
    known = Provenance(columns=["noise"])
    for one in shortcut_checks(Question(images, known=known, shuffles=50)):
        assert one.verdict == "not assessable" and "nan" not in one.says


# the test part that is looked at


def test_validation_images_that_are_test_images_fail():
    images, split = small_set(list("abcd"), parts=["train", "train", "test", "test"])
    rows = split.table[split.table["part"] == "test"]
    twice = replace(split, table=pd.concat([split.table, rows.assign(part="validation")]))
    found = run_audit(images, twice, shuffles=0)
    assert [one.name for one in found.failed()] == ["test used for selection"]


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        ({"selected_on": "test"}, "fail"),
        ({"choices": [{"recipe": "a", "test_accuracy": 0.9}]}, "fail"),
        ({"choices": [{"recipe": "a", "validation_log_loss": 0.9}]}, "pass"),
        (None, "not assessable"),
    ],
)
def test_the_record_of_a_run_says_what_was_chosen_by_which_score(clean, record, verdict):
    assert verdicts(quick(replace(clean, record=record)))["test used for selection"] == verdict


# names


@pytest.mark.parametrize(
    ("groups", "verdict"),
    [
        (["012854_2of2", "012855_1of2"] * 2, "warn"),
        (["012854_1of2", "012854_2of2"] * 2, "warn"),
        (["Slide 7", "slide_07"] * 2, "warn"),
        (["012854_2of2", "012856_1of2"] * 2, "pass"),
        (["SAS_10", "SAS_100"] * 2, "pass"),
        (["1_11", "11_1"] * 2, "pass"),
    ],
)
def test_groups_whose_names_look_like_one(groups, verdict):
    images, split = small_set(groups, parts=["train", "test"] * 2)
    assert one_group_by_name(images, Placement.of(images, split), True).verdict == verdict


def test_of_large_groups_every_part_is_looked_at():
    parts = ["train"] * 150 + ["test"] * 50 + ["train"] * 200
    images, split = small_set(["Slide 7"] * 200 + ["slide_07"] * 200, parts=parts)
    assert one_group_by_name(images, Placement.of(images, split), True).verdict == "warn"


def test_of_many_equal_images_every_test_image_is_named():
    images, split = small_set(
        [f"g{at}" for at in range(300)], parts=["train"] * 150 + ["test"] * 150
    )
    same = copies.equal_pairs(["black"] * 300)
    check = Placement.of(images, split).pair_check("same", same, what="are alike", fix="")
    assert check.numbers["test images touched"] == 150 and check.numbers["pairs"] < 300 * 102


def test_file_names_may_show_the_groups_that_nobody_gave():
    ids = [f"cell{at // 4}_{at % 4}.png" for at in range(16)]
    images, split = small_set(ids, ids=ids, parts=["train", "test"] * 8)
    found = run_audit(images, split, provenance=Provenance(groups_known=False), shuffles=0)
    assert verdicts(found)["same group in two parts"] == "not assessable"
    assert "4 families" in found.check("names that look like one group").says
    assert found.check("names that look like one group").verdict == "warn"


# the result


def test_saved_and_strict(clean, tmp_path):
    made = injected.with_copies(clean, "same pixels", 1)
    found = quick(made)
    found.save(tmp_path)
    written = json.loads((tmp_path / "audit.json").read_text())
    assert written["verdict"] == "fail" and len(written["checks"]) == len(found.checks)
    entry = next(one for one in written["checks"] if one["name"] == "same pixels in two parts")
    assert len(pd.read_csv(tmp_path / entry["file"])) == entry["rows"] == injected.COPIES
    with pytest.raises(AuditError, match="same pixels") as caught:
        quick(made).stop_if_failed()
    assert caught.value.audit.verdict == "fail"
    assert quick(clean).stop_if_failed().verdict == "pass"


def test_an_audit_names_its_worst_finding(clean):
    made = injected.with_group_leak(clean, 0.2, 1)
    found = run_audit(made.images, made.split, shuffles=0)
    worst = found.findings()[0]
    assert worst.name == "same group in two parts" and worst.verdict == "fail"
    assert worst.says.endswith("training or validation.")
    assert quick(clean).findings() == []
    choices = pd.DataFrame({"recipe": ["a", "b"], "test_accuracy": [0.9, 0.8]})
    record = {"selected_on": "validation", "choices": choices.to_dict("records")}
    found = run_audit(clean.images, clean.split, record=record, shuffles=0)
    assert found.findings()[0].name == "test used for selection"


def test_unknown_verdicts_and_checks_are_refused():
    with pytest.raises(InputError, match="unknown"):
        Check("a", "perhaps", "")
    with pytest.raises(InputError, match="name of a check: .b. is unknown"):
        Audit({}, (Check("a", "pass", ""),)).check("b")


def test_wrong_number_of_files_is_refused(clean):
    with pytest.raises(InputError, match="1 files for 240"):
        run_audit(clean.images, clean.split, provenance=Provenance(files=["a.png"]))


# a user's table


@pytest.fixture
def own(tmp_path, pool):
    """Makes a CSV of 24 images in 12 groups, with its files."""

    def make(**changes):
        rows = []
        for at in range(24):
            Image.fromarray(pool[at, 0]).save(tmp_path / f"cell_{at}.png")
            rows.append(
                {
                    "path": f"cell_{at}.png",
                    "label": "AB"[at // 2 % 2],
                    "group": f"g{at // 2}",
                    "split": "test" if at >= 16 else "train",
                }
            )
        table = pd.DataFrame(rows).assign(**changes)
        table = table[[name for name in table if table[name].notna().all()]]
        table.to_csv(tmp_path / "mine.csv", index=False)
        return tmp_path / "mine.csv"

    return make


def test_a_table_is_audited_by_command(own, tmp_path, capsys):
    file = own()
    assert main([str(file), "--strict"]) == 0
    assert "not assessable" in (tmp_path / "mine_audit" / "audit.json").read_text()
    (tmp_path / "cell_20.png").write_bytes((tmp_path / "cell_3.png").read_bytes())
    assert main([str(file), "--strict", "--out", str(tmp_path / "out")]) == 1
    assert "FAIL" in capsys.readouterr().out
    found = {
        one["name"]: one
        for one in json.loads((tmp_path / "out" / "audit.json").read_text())["checks"]
    }
    assert (
        found["same file in two parts"]["verdict"] == "fail"
        and found["same file in two parts"]["rows"] == 1
    )
    assert main([str(tmp_path / "absent.csv")]) == 2 and main([str(file), "--columns", "x"]) == 2


def test_an_image_in_two_parts_of_a_table(own, tmp_path):
    file = own()
    table = pd.read_csv(file)
    pd.concat([table, table[:2].assign(split="test")]).to_csv(file, index=False)
    found = read_table(file, tmp_path / "cache").audit(shuffles=0)
    assert "2 of 10" in found.check("same image in two parts").says


def test_without_groups_it_says_what_it_cannot_tell(own, tmp_path):
    found = read_table(own(group=None), tmp_path / "cache").audit(shuffles=0)
    check = found.check("same group in two parts")
    assert check.verdict == "not assessable" and "neuron" in check.says and "group" in check.fix


def test_missing_files_are_listed_and_the_rest_is_audited(own, tmp_path):
    file = own()
    (tmp_path / "cell_5.png").unlink()
    (tmp_path / "cell_6.png").write_bytes(b"no image")
    table = read_table(file, tmp_path / "cache")
    assert len(table.images) == 22 and table.check.verdict == "warn" and len(table.check.rows) == 2
    for path in tmp_path.glob("*.png"):
        path.unlink()
    found = read_table(file, tmp_path / "cache").audit()
    assert (
        verdicts(found)["files"]
        == verdicts(found)["near-duplicates in two parts"]
        == "not assessable"
    )
    assert verdicts(found)["same group in two parts"] == "pass"


def test_one_class_cannot_be_told_apart(own, tmp_path):
    found = read_table(own(label="A"), tmp_path / "cache").audit()
    assert (
        found.check("shortcuts").verdict == "not assessable"
        and found.check("balance of the classes").verdict == "fail"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": None}, "columns .*split.* are missing"),
        ({"label": None}, "columns .*label.* are missing"),
        ({"path": None}, "neither a column path"),
        ({"split": ["train", "tset"] * 12}, "'tset' is unknown"),
        ({"path": "cell_0.png"}, "two different labels"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(own, tmp_path, changes, words):
    with pytest.raises(TableError, match=words):
        read_table(own(**changes), tmp_path / "cache")


@pytest.mark.parametrize("column", ["group", "label", "split"])
def test_an_empty_cell_is_named_by_its_row(own, tmp_path, column):
    file = own()
    table = pd.read_csv(file)
    table.loc[2, column] = None
    table.to_csv(file, index=False)
    with pytest.raises(TableError, match="row 4"):
        read_table(file, tmp_path / "cache")


@pytest.mark.parametrize("column", ["path", "group", "label", "split"])
def test_a_blank_cell_is_empty_and_spaces_around_a_word_do_not_count(own, tmp_path, column):
    file = own()
    table = pd.read_csv(file)
    table[column] = table[column] + " "
    table.to_csv(file, index=False)
    read = read_table(file, tmp_path / "cache")
    assert read.images.classes == ("A", "B") and read.check.verdict == "pass"
    table.loc[2, column] = " "
    table.to_csv(file, index=False)
    with pytest.raises(TableError, match="row 4"):
        read_table(file, tmp_path / "cache")


def test_names_of_columns_in_capitals_and_labels_that_are_numbers(own, tmp_path):
    file = own()
    table = pd.read_csv(file).assign(label=["01", "02"] * 12)
    table.columns = ["Image", "Class", "Patient", "Fold"]
    table.assign(Patient=range(24)).to_csv(file, index=False)
    assert read_table(file, tmp_path / "cache").images.classes == ("01", "02")
    table.assign(Fold=1).to_csv(file, index=False)
    with pytest.raises(TableError, match="'1' is unknown"):
        read_table(file, tmp_path / "cache")


def test_an_image_of_two_groups_is_refused(own, tmp_path):
    file = own()
    table = pd.read_csv(file)
    pd.concat([table, table[:1].assign(split="test", group="other")]).to_csv(file, index=False)
    with pytest.raises(TableError, match="two different groups"):
        read_table(file, tmp_path / "cache")


def test_own_columns_about_the_files_are_kept(own, tmp_path):
    read = read_table(own(width_px=range(24), file_format="tif"), tmp_path / "cache")
    assert read.images.table["width_px"].tolist() == list(range(24)) and set(
        read.images.table["bit_depth"]
    ) == {8}
    with pytest.raises(TableError, match="'label' and 'Label' have one name"):
        read_table(own(Label="another"), tmp_path / "cache")


def test_names_written_on_windows_are_found(own, tmp_path):
    file = own()
    (tmp_path / "plate 1").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "plate 1" / path.name)
    table = pd.read_csv(file)
    table.assign(path="plate 1\\" + table["path"]).to_csv(file, index=False)
    assert read_table(file, tmp_path / "cache").check.verdict == "pass"


@pytest.mark.parametrize("parts", [["test"], ["train"], ["train", "validation"]])
def test_without_a_training_and_a_test_part_no_leak_can_be_ruled_out(own, tmp_path, parts):
    file = own(
        split=[parts[at % 8 % len(parts)] for at in range(24)],
        group=[f"g{at % 8}" for at in range(24)],
    )
    found = read_table(file, tmp_path / "cache").audit(shuffles=0)
    looked = {
        name: verdict
        for name, verdict in verdicts(found).items()
        if "two parts" in name or "names" in name
    }
    assert (
        len(looked) == 6 and set(looked.values()) == {"not assessable"} and found.verdict == "fail"
    )


def test_the_command_says_how_many_checks_could_not_be_made(own, tmp_path, capsys):
    file = own()
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert main([str(file)]) == 0
    assert "checks not assessable" in capsys.readouterr().out


def test_files_that_cannot_be_read_are_not_said_to_be_no_copies(clean, tmp_path):
    found = quick(
        clean, provenance=Provenance(files=[tmp_path / name for name in clean.images.ids])
    )
    assert found.check("same file in two parts").verdict == "not assessable"


def test_crops_are_compared_in_the_pixels_of_their_files(own, tmp_path):
    """Files of 128 px are kept at 64 px: positions are of the files' own pixels."""

    def audited(step):
        file = own(x_px=[step * at for at in range(24)], y_px=0)
        for path in tmp_path.glob("*.png"):
            Image.open(path).resize((128, 128)).save(path)
        return verdicts(read_table(file, tmp_path / "cache").audit(shuffles=0))["overlapping crops"]

    assert audited(100) == "fail" and audited(128) == "pass"
    file = own(x_px=range(24), y_px=0)
    pd.read_csv(file).replace({"x_px": {3: np.nan}}).to_csv(file, index=False)
    assert (
        verdicts(read_table(file, tmp_path / "cache").audit(shuffles=0))["overlapping crops"]
        == "not assessable"
    )
    file = own(x_px=range(24), y_px=0)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert (
        verdicts(read_table(file, tmp_path / "cache").audit(shuffles=0))["overlapping crops"]
        == "not assessable"
    )


@pytest.mark.parametrize("name", ["file format", "image size", "bit depth", "colour"])
def test_how_the_files_of_a_class_were_written_is_found_out(own, tmp_path, name):
    file = own(group=None)
    table = pd.read_csv(file)
    for at in np.flatnonzero(table["label"] == "B"):
        image = Image.open(tmp_path / table.loc[at, "path"])
        if name == "file format":
            table.loc[at, "path"] = f"cell_{at}.tif"
        elif name == "image size":
            image = image.resize((70, 64))
        elif name == "bit depth":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        else:
            image = image.convert("RGB")
        image.save(tmp_path / table.loc[at, "path"])
    table.to_csv(file, index=False)
    found = read_table(file, tmp_path / "cache").audit(shuffles=100)
    assert found.check(f"shortcut: {name}").verdict == "fail"
    assert {one.name for one in found.failed()} == {f"shortcut: {name}"}


# the balance of the classes


def test_the_balance_is_looked_at_per_part_and_group():
    def verdict(labels, parts, groups):
        images, split = small_set(groups, labels=labels, parts=parts)
        return run_audit(images, split, shuffles=0).check("balance of the classes")

    n = 120
    many = [f"g{at // 2}" for at in range(120)]
    parts = ["train"] * 60 + ["test"] * 60
    assert verdict(["A", "B"] * 60, parts, many).verdict == "pass"
    uneven = verdict(["A", "B"] * 30 + ["A"] * 55 + ["B"] * 5, parts, many)
    assert uneven.verdict == "warn" and uneven.numbers["largest difference"] == pytest.approx(
        5 / 12
    )
    lacking = verdict(["A", "B"] * 30 + ["A"] * 60, parts, many)
    assert lacking.verdict == "warn" and "no image of B in test" in lacking.says
    for groups in (["one"] * 40 + many[100:], ["one"] * 60):  # most of the test part, or all of it
        check = verdict(["A", "B"] * 60, parts, many[: n // 2] + groups)
        assert check.verdict == "warn" and "One group" in check.says


def test_sets_of_one_image_over_and_over_are_copies(pool):
    one, _, _, _ = copies.near_pairs(np.repeat(pool[:1], 3, axis=0))
    assert len(one) == 3


# published protocols, our splits, and a small campaign


@pytest.mark.slow
def test_the_four_published_protocols_fail_and_our_splits_pass(tmp_path):
    from nbhelpers.imagesets.plates import leave_one_plate_out, split_by_plate
    from nbhelpers.studies.glomeruli import leave_one_centre_out

    for name, (images, split, record) in injected.published_protocols(tmp_path).items():
        assert run_audit(images, split, record=record, shuffles=100).verdict == "fail", name
        if name[0] in "AB":
            ours = splits.repeated_cross_validation(images, folds=3, repeats=1, seed=1)
            assert not run_audit(images, ours, shuffles=0).failed()
        if name[0] == "C":
            images = replace(
                images, table=images.table.assign(plate=images.groups), content_hash=""
            )
            for ours in (
                leave_one_plate_out(images, seed=1),
                split_by_plate(images, test=3, seed=1),
            ):
                assert not run_audit(images, ours, shuffles=0).failed()
        if name[0] == "D":
            assert not run_audit(images, leave_one_centre_out(images, seed=1), shuffles=0).failed()


@pytest.mark.slow
def test_the_campaign_counts(pool):
    defects, alarms = injected.campaign(
        {"noise": pool}, sets=1, clean=1, seed=1, shuffles=100, strengths=(1.0,)
    )
    assert (defects["found"] <= defects["injected"]).all() and defects["recall"].mean() > 0.9
    assert set(alarms["clean sets"]) == {1} and "any check" in set(alarms["check"])
    share = injected.share_found(defects)
    assert share.value == defects["found"].sum() / defects["injected"].sum()
    assert injected.false_alarms(alarms).n == 1


def test_where_nothing_was_injected_the_share_found_says_nothing():
    none = injected.share_found(pd.DataFrame())
    assert (none.low, none.high) == (0, 1)
    assert injected.false_alarms(pd.DataFrame()).value is None


# real images


@pytest.mark.realdata
def test_the_published_spine_split_and_the_file_number(real_data, tmp_path):
    from nbhelpers.imagesets.ghani import load_ghani_spines

    images = load_ghani_spines(tmp_path, data_dir=real_data("spines_ghani"))
    found = run_audit(images, published_splits.published_spine_split(images), shuffles=300)
    assert "75 of 92" in found.check("same image in two parts").says and found.verdict == "fail"
    number = found.check("shortcut: file number")
    assert number.verdict == "warn" and 0.64 < number.numbers["forest"]["accuracy"].value < 0.71
    ours = run_audit(
        images,
        splits.repeated_cross_validation(images, folds=5, repeats=1, seed=1),
        shuffles=0,
    )
    assert not ours.failed()


@pytest.mark.realdata
def test_spine_files_of_one_and_eight_bits_are_flagged(real_data, tmp_path):
    from nbhelpers.imagesets.downloads import unpack_zip
    from nbhelpers.imagesets.folder import find_images

    folder = real_data("spines_ghani")
    masks = {
        path.name: path
        for path in find_images(unpack_zip(folder / "Dataset_Annotations.zip", tmp_path / "masks"))
    }
    labels = pd.read_excel(folder / "Dataset_Labels.xlsx", usecols=[0, 1], dtype=str)
    labels.columns = ["name", "label"]
    labels["path"] = [str(masks[name].relative_to(tmp_path)) for name in labels["name"]]
    labels.assign(split=["test" if at % 5 == 0 else "train" for at in range(len(labels))]).to_csv(
        tmp_path / "spines.csv"
    )
    table = read_table(tmp_path / "spines.csv", tmp_path / "cache")
    assert set(table.images.table["bit_depth"]) == {1, 8}
    check = table.audit(shuffles=300).check("shortcut: bit depth")
    assert check.verdict == "warn" and check.numbers["auc"] > 0.55


@pytest.mark.realdata
def test_the_well_position_of_bbbc021_is_flagged(real_data, tmp_path):
    folder = real_data("bbbc021_subset")
    cells = pd.read_csv(folder / "cells.csv")
    table = pd.DataFrame(
        {
            "id": cells["FileName"],
            "label": np.where(cells["Metadata_Compound"] == "DMSO", "DMSO", "drug"),
            "group": cells["Metadata_Plate"],
            "Metadata_Well": cells["Metadata_Well"],
        }
    )
    pixels = np.random.default_rng(0).integers(
        0, 255, (len(table), 1, 8, 8), dtype=np.uint8
    )  # the table is what counts here
    images = ImageSet(
        name="bbbc021",
        table=table,
        pixels=pixels,
        classes=("DMSO", "drug"),
        source="",
        synthetic=False,
    )
    question = Question(images, known=Provenance(pixels_known=False), shuffles=300)
    found = {one.name: one for one in shortcut_checks(question)}
    check = found[
        "shortcut: plate position"
    ]  # four plates: that chance would do it cannot be ruled out, so no fail
    assert (
        check.verdict == "warn"
        and check.numbers["auc"] > 0.99
        and "chance cannot be ruled out" in check.says
    )


@pytest.mark.realdata
def test_glomeruli_by_image_fail_and_by_slide_do_not(real_data, tmp_path):
    from nbhelpers.imagesets.bueno import load_bueno_glomeruli

    images = load_bueno_glomeruli(tmp_path, data_dir=real_data("glomeruli_bueno"))
    by_image = run_audit(images, published_splits.split_by_image(images, seed=1), shuffles=0)
    assert [one.name for one in by_image.failed()] == ["same group in two parts"]
    by_slide = run_audit(
        images,
        splits.repeated_cross_validation(images, folds=4, repeats=1, seed=1),
        shuffles=0,
    )
    assert not by_slide.failed()
