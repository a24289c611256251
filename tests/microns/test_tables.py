"""The real caveclient against the miniature, and against a proxy that spoils its replies."""

from __future__ import annotations

import json
import logging
import pickle
import socket
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nbhelpers.core.errors import ParameterError
from nbhelpers.microns.cave import CaveError, Connection
from nbhelpers.microns.miniature import GLIA
from nbhelpers.microns.points import Points
from nbhelpers.microns.tables import (
    CELL_TYPE_TABLES,
    CLASSES,
    SynapseQuery,
    connectivity_features,
    is_frozen,
    query_synapses,
)

TABLES = list(CELL_TYPE_TABLES)
QUICK = {"attempts": 2, "backoff_s": 0.01, "timeout_s": 20.0}


def silent(_: str) -> None:
    pass


def a_query(**changes: object) -> SynapseQuery:
    return SynapseQuery(
        **{
            "datastack": "miniature",
            "version": 1412,
            "neurons_per_class": 4,
            "synapses_per_neuron": 10,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def connection(miniature):
    return Connection(
        "miniature", version=1412, server_address=miniature.address, token=miniature.token, **QUICK
    )


@pytest.fixture
def through(miniature, faulty):
    """A connection through a proxy, which spoils replies only once it is made."""

    def make(**fault: object):
        proxy = faulty(kind="none", path="nothing")
        limits = {**QUICK, "timeout_s": 1.0} if fault["kind"] == "hang" else QUICK
        made = Connection(
            "miniature", version=1412, server_address=proxy.address, token=miniature.token, **limits
        )
        proxy.faults[:] = [faulty(**fault).faults[0]]
        return made, proxy

    return make


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """No test sees, or writes, the secrets of whoever runs it."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


# ------------------------------------------------------------------------------------------------
# what comes back


@pytest.mark.parametrize("table", TABLES)
def test_cells_are_counted_as_injected(connection, miniature, tmp_path, table):
    result = query_synapses(
        connection, a_query(cell_type_table=table), freeze_to=tmp_path, report=silent
    )
    neurons = miniature.truth.neurons
    kinds = neurons["cell_type"].where(~neurons["state"].isin(["unlabelled", "conflicting"]))
    if table == "aibs_metamodel_celltypes_v661":
        kinds = kinds.mask(neurons["state"] == "mislabelled", "excitatory")
    injected = {**kinds.value_counts(), **neurons["state"].value_counts()[["unlabelled"]]}
    injected["conflicting"] = int((neurons["state"] == "conflicting").sum())
    injected["other"] = GLIA if "other" in CELL_TYPE_TABLES[table].words.values() else 0
    assert {name: result.counts[name] for name in injected} == injected
    assert (
        result.noise.endswith(CELL_TYPE_TABLES[table].noise)
        and "miniature" in result.noise
        and result.synthetic
    )
    truth = miniature.truth.neurons.set_index("root_id")
    left_out = {"unlabelled", "conflicting"}
    assert not left_out & set(truth.loc[result.neurons["root_id"], "state"])
    wrong = (
        truth.loc[result.neurons["root_id"], "cell_type"].to_numpy()
        != result.neurons["label"].to_numpy()
    )
    mislabelled = truth.loc[result.neurons["root_id"], "state"].to_numpy() == "mislabelled"
    assert (wrong == (mislabelled & (table == "aibs_metamodel_celltypes_v661"))).all()


def test_every_synapse_is_the_injected_one(connection, miniature, tmp_path):
    everything = a_query(neurons_per_class=99, synapses_per_neuron=0, min_synapses=1)
    result = query_synapses(connection, everything, freeze_to=tmp_path, report=silent)
    neurons = miniature.truth.neurons
    usable = set(neurons.loc[neurons["state"].isin(["labelled", "mislabelled"]), "root_id"])
    injected = miniature.truth.synapses
    injected = injected[
        injected["pre_root_id"].isin(usable) & (injected["pre_root_id"] != injected["post_root_id"])
    ]
    injected = injected.assign(id=injected["id"].astype(str)).sort_values("id", ignore_index=True)
    assert result.synapses["id"].tolist() == injected["id"].tolist()
    for name in ("pre_root_id", "post_root_id", "size"):
        np.testing.assert_array_equal(result.synapses[name], injected[name])
    for prefix in ("", "pre_", "post_"):
        for axis, voxel in zip(
            "xyz", (4, 4, 40), strict=True
        ):  # tables hold the voxel that a place lies in
            into_it = injected[f"{prefix}{axis}_nm"] - result.synapses[f"{prefix}{axis}_nm"]
            assert into_it.between(-1e-3, voxel, inclusive="left").all()
    for voxel in (
        (4, 4, 40),
        (8, 8, 40),
    ):  # so that what is cut out is the section with the cleft, and no other
        found, true = (
            Points.from_table(table).voxel_index(voxel) for table in (result.synapses, injected)
        )
        np.testing.assert_array_equal(found, true)
    truth = neurons.set_index("root_id")
    assert (
        result.synapses["label"].tolist()
        == truth.loc[injected["pre_root_id"], "cell_type"].tolist()
    )
    assert (
        result.synapses["group"].tolist()
        == truth.loc[injected["pre_root_id"], "nucleus_id"].astype(str).tolist()
    )
    np.testing.assert_allclose(
        result.neurons["x_nm"], truth.loc[result.neurons["root_id"], "x_nm"], atol=4
    )
    assert Points.from_table(result.synapses).nm.shape == (len(injected), 3)


def test_draws_follow_the_seed_and_keep_the_limits(connection, tmp_path):
    first = query_synapses(connection, a_query(), freeze_to=tmp_path / "a", report=silent)
    again = query_synapses(connection, a_query(), freeze_to=tmp_path / "b", report=silent)
    other = query_synapses(connection, a_query(seed=1), freeze_to=tmp_path / "a", report=silent)
    pd.testing.assert_frame_equal(first.synapses, again.synapses)
    assert set(first.synapses["id"]) != set(other.synapses["id"])
    assert first.neurons["label"].value_counts().to_dict() == dict.fromkeys(CLASSES, 4)
    assert first.synapses.groupby("group").size().max() <= 10
    np.testing.assert_array_equal(
        first.neurons["used"],
        first.neurons["root_id"].map(first.synapses["pre_root_id"].value_counts()),
    )


def test_a_box_keeps_what_lies_inside(connection, miniature, tmp_path):
    x, y, z = miniature.truth.origin_nm
    box = ((x, y, z), (x + 1000, y + 1500, z + 1300))
    result = query_synapses(
        connection, a_query(box_nm=box, min_synapses=1), freeze_to=tmp_path, report=silent
    )
    at = Points.from_table(result.synapses).nm
    assert len(at) and (at >= box[0]).all() and (at < box[1]).all()


@pytest.mark.parametrize("cap", [7, 40, 400])
def test_results_at_the_row_cap_are_paged(connection, make_miniature, tmp_path, cap):
    whole = query_synapses(
        connection, a_query(sides="pre and post"), freeze_to=tmp_path / "whole", report=silent
    )
    with make_miniature(row_cap=cap) as server:
        small = Connection(
            "miniature", version=1412, server_address=server.address, token=server.token, **QUICK
        )
        paged = query_synapses(
            small, a_query(sides="pre and post"), freeze_to=tmp_path / "paged", report=silent
        )
    pd.testing.assert_frame_equal(paged.synapses, whole.synapses)
    pd.testing.assert_frame_equal(paged.neurons, whole.neurons)
    pd.testing.assert_frame_equal(paged.features, whole.features)
    assert paged.counts == whole.counts


def test_a_cap_too_small_to_page_is_refused(make_miniature, tmp_path):
    with make_miniature(row_cap=1) as server:
        small = Connection(
            "miniature", version=1412, server_address=server.address, token=server.token, **QUICK
        )
        with pytest.raises(CaveError, match="cuts results at 1 rows"):
            query_synapses(small, a_query(), freeze_to=tmp_path, report=silent)
    assert not list(tmp_path.rglob("*.parquet"))


def test_features_hold_no_image_and_no_class_and_are_right(connection, miniature, tmp_path):
    query = a_query(sides="pre and post", neurons_per_class=99, min_synapses=1)
    result = query_synapses(connection, query, freeze_to=tmp_path, report=silent)
    features = result.features.set_index("id")
    assert features.index.tolist() == result.synapses["id"].tolist()
    assert np.isfinite(features.drop(columns=["group", "label"]).to_numpy(dtype=float)).all()
    injected = miniature.truth.synapses
    for row in result.synapses.sample(20, random_state=0).itertuples():
        sent = injected[
            (injected["pre_root_id"] == row.pre_root_id)
            & (injected["post_root_id"] != row.pre_root_id)
        ]
        got = injected[
            (injected["post_root_id"] == row.pre_root_id)
            & (injected["pre_root_id"] != row.pre_root_id)
        ]
        of = features.loc[row.id]
        assert (of["pre_synapses_sent"], of["pre_partners_sent"]) == (
            len(sent),
            sent["post_root_id"].nunique(),
        )
        assert (of["pre_synapses_received"], of["pre_partners_received"]) == (
            len(got),
            got["pre_root_id"].nunique(),
        )
        assert of["pair_synapses"] == (sent["post_root_id"] == row.post_root_id).sum()
        assert of["pre_fraction_answered"] == pytest.approx(
            np.mean([root in set(got["pre_root_id"]) for root in sent["post_root_id"].unique()])
        )


def test_another_table_needs_its_words(connection, tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match=r"my_table.*There is: "):
        query_synapses(
            connection, a_query(cell_type_table="my_table"), freeze_to=tmp_path, report=silent
        )
    known = CELL_TYPE_TABLES[TABLES[2]]
    monkeypatch.setitem(CELL_TYPE_TABLES, TABLES[2], replace(known, words={"E": "excitatory"}))
    with pytest.raises(CaveError, match="no usable cell that is excitatory"):
        query_synapses(
            connection, a_query(cell_type_table=TABLES[2]), freeze_to=tmp_path, report=silent
        )
    with pytest.raises(CaveError, match=r"class inhibitory: none|class excitatory: none"):
        query_synapses(connection, a_query(min_synapses=10_000), freeze_to=tmp_path, report=silent)


def test_progress_is_told(connection, tmp_path):
    said = []
    query_synapses(connection, a_query(), freeze_to=tmp_path, report=said.append)
    assert any("4 of 4 chosen" in line for line in said) and "frozen" in said[-1]


# ------------------------------------------------------------------------------------------------
# frozen files


def test_a_frozen_query_needs_no_network(connection, asked, tmp_path):
    query = a_query(sides="pre and post")
    first = query_synapses(connection, query, freeze_to=tmp_path, report=silent)
    before = len(asked)

    def never():
        raise AssertionError("the network was touched")

    for source in (never, None, connection):
        again = query_synapses(source, query, freeze_to=tmp_path, report=silent)
        assert again.from_frozen and not first.from_frozen
        pd.testing.assert_frame_equal(again.synapses, first.synapses)
        pd.testing.assert_frame_equal(again.neurons, first.neurons)
        pd.testing.assert_frame_equal(again.features, first.features)
        assert (again.counts, again.timestamp, again.about) == (
            first.counts,
            first.timestamp,
            first.about,
        )
    assert len(asked) == before > 0
    with pytest.raises(CaveError, match="not frozen"):
        query_synapses(None, a_query(seed=5), freeze_to=tmp_path)
    about = json.loads((first.folder / "query.json").read_text())
    assert about["query"]["version"] == 1412 and about["timestamp"].startswith(
        "2025-06-11T08:10:00"
    )
    assert about["files"]["synapses.parquet"]["rows"] == len(first.synapses)


def test_miniatures_of_one_name_are_told_apart(make_miniature, miniature, tmp_path):
    """Same datastack, version and seed, but other tissue: the frozen query of one must not be read
    for the other.
    """
    with make_miniature(volume_seed=5) as other, make_miniature() as same:
        assert other.identity != miniature.identity == same.identity
        found = {}
        for name, server in (("one", miniature), ("other", other), ("same", same)):
            made = Connection(
                "miniature",
                version=1412,
                server_address=server.address,
                token=server.token,
                **QUICK,
            )
            query = a_query(served=server.identity)
            assert is_frozen(query, tmp_path) == (name == "same")
            found[name] = query_synapses(made, query, freeze_to=tmp_path, report=silent)
            truth = server.truth.synapses.assign(
                id=server.truth.synapses["id"].astype(str)
            ).set_index("id")
            truth = truth.loc[found[name].synapses["id"]]
            assert np.array_equal(
                Points.from_table(truth).voxel_index((8, 8, 40)),
                Points.from_table(found[name].synapses).voxel_index((8, 8, 40)),
            )
    assert found["same"].from_frozen and not found["other"].from_frozen
    assert found["other"].about["served"] == other.identity
    assert a_query().hash == a_query(served="").hash != a_query(served="x").hash


@pytest.mark.parametrize("name", ["synapses.parquet", "neurons.parquet", "query.json"])
@pytest.mark.parametrize("harm", ["edit", "cut", "remove"])
def test_frozen_files_that_were_changed_are_found(connection, tmp_path, name, harm):
    result = query_synapses(connection, a_query(), freeze_to=tmp_path, report=silent)
    path = result.folder / name
    if harm == "remove":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif name == "query.json":
        path.write_text(path.read_text().replace('"unlabelled": 2', '"unlabelled": 0'))
    else:
        pd.read_parquet(path).assign(label="excitatory").to_parquet(path, index=False)
    if (name, harm) == ("query.json", "remove"):  # never finished, then: it is queried again
        assert not query_synapses(
            connection, a_query(), freeze_to=tmp_path, report=silent
        ).from_frozen
        return
    with pytest.raises(CaveError, match=r"query again"):
        query_synapses(connection, a_query(), freeze_to=tmp_path, report=silent)


# ------------------------------------------------------------------------------------------------
# ids


@pytest.fixture
def odd_ids(make_miniature):
    """A miniature whose root ids no float can hold."""
    with make_miniature() as server:
        for name, column in (
            ("synapses_pni_2", "pre_pt_root_id"),
            ("synapses_pni_2", "post_pt_root_id"),
            ("nucleus_detection_v0", "pt_root_id"),
        ):
            server._tables[name][column] = (server._tables[name][column] + 77).astype("Int64")
        yield server


def bare_tables(monkeypatch):
    """Tables come as CAVE sends them: without what pandas writes into them, so that a null makes
    floats of a column.
    """
    import pyarrow as pa

    from nbhelpers.microns import miniature_server

    send = miniature_server._Handler._send

    def stripped(self, status, body, headers):
        if headers.get("Content-Type") == "data.arrow":
            table = pa.ipc.open_stream(body).read_all().replace_schema_metadata(None)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            body = sink.getvalue().to_pybytes()
        send(self, status, body, headers)

    monkeypatch.setattr(miniature_server._Handler, "_send", stripped)


@pytest.mark.parametrize("bare", [True, False])
def test_a_missing_id_does_not_round_the_others(odd_ids, monkeypatch, tmp_path, bare):
    if bare:
        bare_tables(monkeypatch)
    made = Connection(
        "miniature", version=1412, server_address=odd_ids.address, token=odd_ids.token, **QUICK
    )
    everything = a_query(neurons_per_class=99, synapses_per_neuron=0, min_synapses=1)
    whole = query_synapses(made, everything, freeze_to=tmp_path / "whole", report=silent)
    nuclei = odd_ids._tables["nucleus_detection_v0"]
    synapses = odd_ids._tables["synapses_pni_2"]
    lost = int(np.flatnonzero(odd_ids.truth.neurons["state"] == "labelled")[0])
    lost_cell = nuclei["pt_root_id"].iloc[lost]
    nuclei.loc[nuclei.index[lost], "pt_root_id"] = pd.NA
    unseen = synapses.index[
        (synapses["pre_pt_root_id"] != synapses["post_pt_root_id"]).to_numpy(bool)
    ][::5]
    synapses.loc[unseen, "post_pt_root_id"] = pd.NA
    result = query_synapses(made, everything, freeze_to=tmp_path / "nulls", report=silent)
    kept = whole.synapses[whole.synapses["pre_root_id"] != lost_cell]
    assert (
        result.synapses["id"].tolist() == kept["id"].tolist()
        and len(whole.synapses) > len(kept) > 200
    )
    assert result.synapses["pre_root_id"].tolist() == kept["pre_root_id"].tolist()
    unseen = set(synapses.loc[unseen, "id"].astype(str))
    expected = whole.synapses.set_index("id")["post_root_id"].reindex(result.synapses["id"])
    expected = expected.where(~expected.index.isin(unseen), 0).astype(np.int64)
    assert result.synapses["post_root_id"].tolist() == expected.tolist()
    assert result.counts["without a segment"] > whole.counts["without a segment"] == 0
    assert result.counts["synapses used onto what has no segment"] == (expected == 0).sum() > 20


def without_position(table, rows, column):
    for axis in "xyz":
        name = f"{column}_{axis}"
        table[name] = table[name].astype("Float64")
        table.loc[rows, name] = pd.NA


@pytest.mark.parametrize("bare", [True, False])
def test_rows_without_a_position_are_left_out_and_counted(odd_ids, monkeypatch, tmp_path, bare):
    if bare:
        bare_tables(monkeypatch)
    made = Connection(
        "miniature", version=1412, server_address=odd_ids.address, token=odd_ids.token, **QUICK
    )
    everything = a_query(neurons_per_class=99, synapses_per_neuron=0, min_synapses=1)
    whole = query_synapses(made, everything, freeze_to=tmp_path / "whole", report=silent)
    nuclei = odd_ids._tables["nucleus_detection_v0"]
    synapses = odd_ids._tables["synapses_pni_2"]
    lost = nuclei.index[nuclei["pt_root_id"].isin(whole.neurons["root_id"])][:1]
    lost_cells = nuclei.loc[lost, "pt_root_id"]
    without_position(nuclei, lost, "pt_position")
    used = synapses.index[synapses["id"].astype(str).isin(whole.synapses["id"])]
    for number, column in enumerate(("pre_pt_position", "ctr_pt_position", "post_pt_position")):
        without_position(synapses, used[number::7], column)
    placed = synapses.filter(regex="pt_position").notna().all(axis=1)
    result = query_synapses(made, everything, freeze_to=tmp_path / "nulls", report=silent)
    kept = synapses.loc[placed, "id"].astype(str)
    expected = whole.synapses
    expected = expected[expected["id"].isin(kept) & ~expected["pre_root_id"].isin(lost_cells)]
    pd.testing.assert_frame_equal(result.synapses, expected.reset_index(drop=True))
    assert 100 < len(expected) < len(whole.synapses)
    assert result.counts["without a position"] == 1 + whole.counts["without a position"] == 1
    without = ~synapses["pre_pt_root_id"].isin(lost_cells) & ~placed
    assert result.counts["synapses without a position"] == without.sum() > 20
    assert not result.synapses.isna().any(axis=None)


@pytest.mark.parametrize("form", ["pt_position_{}_ref", "pt_position_ref_{}"])
def test_a_join_may_mark_all_columns_of_the_other_table(odd_ids, monkeypatch, tmp_path, form):
    """CAVE adds _ref only where both tables have a column of the name; other servers to all."""
    import pyarrow as pa

    from nbhelpers.microns import miniature_server

    def answer(folder):
        made = Connection(
            "miniature", version=1412, server_address=odd_ids.address, token=odd_ids.token, **QUICK
        )
        return query_synapses(made, a_query(), freeze_to=tmp_path / folder, report=silent)

    nuclei = odd_ids._tables["nucleus_detection_v0"]
    nuclei.loc[nuclei.index[-1], "pt_root_id"] = pd.NA
    whole = answer("whole")
    other = {f"pt_position_{axis}": form.format(axis) for axis in "xyz"}
    other["pt_root_id"] = "pt_root_id_ref"
    send = miniature_server._Handler._send
    marked = []

    def renamed(self, status, body, headers):
        if headers.get("Content-Type") == "data.arrow":
            table = pa.ipc.open_stream(body).read_all().replace_schema_metadata(None)
            if "target_id" in table.column_names:
                table = table.rename_columns([other.get(one, one) for one in table.column_names])
                marked.append(table)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            body = sink.getvalue().to_pybytes()
        send(self, status, body, headers)

    monkeypatch.setattr(miniature_server._Handler, "_send", renamed)
    found = answer("marked")
    assert {"id_ref", *other.values()} <= set(marked[0].column_names)
    assert marked[0]["pt_root_id_ref"].null_count
    pd.testing.assert_frame_equal(found.synapses, whole.synapses)
    pd.testing.assert_frame_equal(found.neurons, whole.neurons)
    assert found.counts == whole.counts


def test_ids_that_were_rounded_are_refused(connection, miniature, tmp_path, monkeypatch):
    server_column = miniature._tables["synapses_pni_2"]["post_pt_root_id"]
    monkeypatch.setitem(
        miniature._tables,
        "synapses_pni_2",
        miniature._tables["synapses_pni_2"].assign(post_pt_root_id=server_column.astype(float)),
    )
    with pytest.raises(CaveError, match=r"post_pt_root_id.*rounds them"):
        query_synapses(connection, a_query(), freeze_to=tmp_path, report=silent)


def test_what_has_no_segment_is_nobody_s_partner():
    def rows(*pairs):
        return pd.DataFrame(
            [
                {
                    "id": f"{pre}-{post}-{at}",
                    "group": str(pre),
                    "label": "excitatory",
                    "pre_root_id": pre,
                    "post_root_id": post,
                    "size": 10.0 * (at + 1),
                }
                for at, (pre, post) in enumerate(pairs)
            ]
        )

    sent = rows((1, 5), (1, 5), (1, 0), (1, 0), (2, 0))
    features = connectivity_features(sent, sent, rows((0, 1), (0, 1), (5, 1)))
    of = features.set_index("id")
    assert np.isfinite(features.drop(columns=["id", "group", "label"]).to_numpy(float)).all()
    one = of.loc["1-0-2"]
    assert (
        one["pair_synapses"],
        one["post_synapses_received"],
        one["post_mean_size_received"],
    ) == (1, 1, 30)
    assert (
        one["pre_synapses_sent"],
        one["pre_partners_sent"],
        one["pre_synapses_per_partner"],
    ) == (4, 1, 2)
    assert (
        one["pre_synapses_received"],
        one["pre_partners_received"],
        one["pre_fraction_answered"],
    ) == (3, 1, 1)
    assert of.loc["1-5-0", "pair_synapses"] == 2
    assert of.loc["2-0-4", ["pre_partners_sent", "pre_fraction_answered"]].tolist() == [0, 0]


# ------------------------------------------------------------------------------------------------
# faults


@pytest.mark.parametrize(("version", "words"), [(343, "expired"), (999, "never had it")])
def test_versions_that_are_not_live_list_the_live_ones(miniature, version, words):
    with pytest.raises(CaveError, match=rf"version {version}.*{words}.*Live now: 117, 1412"):
        Connection(
            "miniature",
            version=version,
            server_address=miniature.address,
            token=miniature.token,
            **QUICK,
        )


def test_an_older_live_version_is_pinned(miniature):
    made = Connection(
        "miniature", version=117, server_address=miniature.address, token=miniature.token, **QUICK
    )
    assert made.timestamp.startswith("2021") and made.version == 117


def test_no_token_and_wrong_tokens(miniature, tmp_path, monkeypatch):
    with pytest.raises(CaveError, match="there is none.*miniature"):
        Connection("miniature", version=1412, server_address=miniature.address, **QUICK)
    with pytest.raises(CaveError, match="refuses the token"):
        Connection(
            "miniature", version=1412, server_address=miniature.address, token="f" * 32, **QUICK
        )
    with pytest.raises(CaveError, match="characters that no token has") as caught:
        Connection(
            "miniature", version=1412, server_address=miniature.address, token="ab cd\nef", **QUICK
        )
    assert "cd" not in str(caught.value)
    monkeypatch.setenv("HOME", str(tmp_path))
    secrets = tmp_path / ".cloudvolume" / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "cave-secret.json").write_text(json.dumps({"token": miniature.token}))
    assert (
        Connection("miniature", version=1412, server_address=miniature.address, **QUICK).version
        == 1412
    )
    assert [path.name for path in secrets.iterdir()] == [
        "cave-secret.json"
    ]  # caveclient kept no note of the server
    (secrets / "cave-secret.json").write_text('{"token": "' + miniature.token)
    with pytest.raises(CaveError, match="cannot be read"):
        Connection("miniature", version=1412, server_address=miniature.address, **QUICK)


def test_unknown_names(connection, miniature, tmp_path, monkeypatch):
    with pytest.raises(CaveError, match="404.*minature"):
        Connection(
            "minature",
            version=1412,
            server_address=miniature.address,
            token=miniature.token,
            **QUICK,
        )
    with pytest.raises(CaveError, match="Did you mean synapses_pni_2"):
        connection.fetch("synapses_pni2")
    known = CELL_TYPE_TABLES[TABLES[0]]
    monkeypatch.setitem(CELL_TYPE_TABLES, TABLES[0], replace(known, column="cell_typ"))
    unknown = a_query(cell_type_table=TABLES[0])
    with pytest.raises(CaveError, match=r"column cell_typ.*Did you mean cell_type"):
        query_synapses(connection, unknown, freeze_to=tmp_path, report=silent)
    monkeypatch.setitem(CELL_TYPE_TABLES, "other", known)
    with pytest.raises(CaveError, match="table other.*no such table.*There is: "):
        query_synapses(
            connection, a_query(cell_type_table="other"), freeze_to=tmp_path, report=silent
        )
    with pytest.raises(
        CaveError, match="version 1412, but the query is for miniature, version 117"
    ):
        query_synapses(connection, a_query(version=117), freeze_to=tmp_path, report=silent)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "latest"}, "version"),
        ({"neurons_per_class": 0}, "neurons_per_class"),
        ({"sides": "post"}, "sides"),
        ({"min_synapses": 0}, "min_synapses"),
        ({"box_nm": ((0, 0, 0), (1, 0, 1))}, "box_nm"),
    ],
)
def test_queries_out_of_range(changes, words):
    with pytest.raises(ParameterError, match=words):
        a_query(**changes)


def test_a_server_that_is_down(miniature):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(CaveError, match=r"cannot be reached.*2 attempts"):
        Connection(
            "miniature", version=1412, server_address=address, token=miniature.token, **QUICK
        )


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "429"},
        {"kind": "503"},
        {"kind": "500"},
        {"kind": "cut"},
        {"kind": "trim"},
        {"kind": "429", "headers": (("Retry-After", "0"),)},
        {"kind": "hang", "seconds": 1.5},
    ],
    ids=lambda one: one["kind"],
)
def test_what_passes_is_waited_for(connection, through, tmp_path, fault):
    whole = query_synapses(connection, a_query(), freeze_to=tmp_path / "whole", report=silent)
    spoilt, proxy = through(**fault, times=1)
    result = query_synapses(spoilt, a_query(), freeze_to=tmp_path / "spoilt", report=silent)
    assert proxy.faults[0].times == 0
    pd.testing.assert_frame_equal(result.synapses, whole.synapses)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "429"}, r"429.*2 attempts"),
        ({"kind": "503"}, r"503.*2 attempts"),
        ({"kind": "html"}, "as CAVE does"),
        ({"kind": "cut"}, "cut or damaged"),
        ({"kind": "trim"}, "cut or damaged"),
        ({"kind": "hang", "seconds": 20.0}, "in time"),
        ({"kind": "no resolution"}, "unstated resolution"),
        ({"kind": "other resolution"}, "answered in 4, 4, 40"),
        ({"kind": "401"}, "does not accept the token"),
        ({"kind": "trim", "path": "synapses_pni_2/query"}, "cut or damaged"),
    ],
    ids=lambda one: one["kind"] if isinstance(one, dict) else "",
)
def test_what_does_not_pass_is_said_and_never_used(through, tmp_path, fault, words):
    spoilt, _ = through(**fault)
    with pytest.raises(CaveError, match=words):
        query_synapses(spoilt, a_query(), freeze_to=tmp_path, report=silent)
    assert not list(tmp_path.rglob("*.parquet")) and not list(tmp_path.rglob("query.json"))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/info/", "503"),
        ("/materialize/api/versions", "503"),
        ("/materialize/version", "503"),
        ("/versions", "429"),
        ("/tables", "503"),
        ("/version/1412", "cut"),
    ],
)
def test_connecting_is_tried_again(miniature, faulty, path, kind):
    proxy = faulty(kind=kind, path=path, times=1)
    made = Connection(
        "miniature", version=1412, server_address=proxy.address, token=miniature.token, **QUICK
    )
    assert (
        made._client.materialize.api_version == 3
    )  # not the older one that caveclient falls back to in silence
    assert proxy.faults[0].times == 0 and made.tables == sorted(
        ["synapses_pni_2", "nucleus_detection_v0", *TABLES]
    )


def test_a_server_that_hangs_while_connecting(miniature, faulty):
    proxy = faulty(kind="hang", path="/info/", seconds=30.0)
    with pytest.raises(CaveError, match="in time"):
        Connection(
            "miniature",
            version=1412,
            server_address=proxy.address,
            token=miniature.token,
            attempts=1,
            timeout_s=0.3,
        )


def test_a_dead_server_is_given_up_soon(miniature, faulty, monkeypatch):
    from nbhelpers.microns import cave

    monkeypatch.setattr(cave, "DEAD_S", 3.0)
    proxy = faulty(kind="hang", path="/info/", seconds=30.0)
    began = time.monotonic()
    with pytest.raises(CaveError, match=r"in time \(\d attempts in \d s\)"):
        Connection(
            "miniature",
            version=1412,
            server_address=proxy.address,
            token=miniature.token,
            backoff_s=0.01,
        )
    assert time.monotonic() - began < 6


def test_a_login_page_is_named(miniature, faulty):
    proxy = faulty(kind="redirect", path="/info/api")
    with pytest.raises(CaveError, match="asks for a log-in"):
        Connection(
            "miniature", version=1412, server_address=proxy.address, token=miniature.token, **QUICK
        )


# ------------------------------------------------------------------------------------------------
# the token


def test_the_token_appears_nowhere(miniature, faulty, through, tmp_path, caplog, capfd):
    """In nothing that is printed, logged, raised, shown or written: also when the server quotes it
    back.
    """
    secret = miniature.token
    raised = []
    said = []
    caplog.set_level(logging.DEBUG)
    made = Connection(
        "miniature", version=1412, server_address=miniature.address, token=secret, **QUICK
    )
    result = query_synapses(
        made, a_query(sides="pre and post"), freeze_to=tmp_path, report=said.append
    )
    for action in (
        lambda: Connection(
            "miniature", version=343, server_address=miniature.address, token=secret, **QUICK
        ),
        lambda: Connection(
            "other", version=1412, server_address=miniature.address, token=secret, **QUICK
        ),
        lambda: Connection(
            "miniature", version=1412, server_address=miniature.address, token=secret + "x", **QUICK
        ),
        lambda: Connection(
            "miniature",
            version=1412,
            server_address=miniature.address,
            token=secret + "\nx",
            **QUICK,
        ),
        lambda: Connection(
            "miniature",
            version=1412,
            token=secret,
            **QUICK,
            server_address=faulty(kind="echo", path="/info/api").address,
        ),
        lambda: query_synapses(
            through(kind="echo")[0], a_query(seed=3), freeze_to=tmp_path, report=said.append
        ),
        lambda: query_synapses(
            through(kind="503")[0], a_query(seed=3), freeze_to=tmp_path, report=said.append
        ),
        lambda: query_synapses(
            through(kind="cut")[0], a_query(seed=3), freeze_to=tmp_path, report=said.append
        ),
        lambda: pickle.dumps(made),
    ):
        with pytest.raises((CaveError, TypeError)) as caught:
            action()
        error = caught.value
        while error is not None:  # the chain, too, as a traceback shows it
            raised.append(f"{error!r} {error} {vars(error)}")
            error = error.__cause__ or error.__context__
    shown = [
        repr(made),
        str(made),
        str(vars(made)),
        repr(result),
        str(result.about),
        *said,
        *raised,
    ]
    captured = capfd.readouterr()
    everything = "\n".join([*shown, caplog.text, captured.out, captured.err])
    assert len(raised) >= 9 and len(said) > 3
    assert secret not in everything
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert not [
        path.name for path in files if secret.encode() in path.read_bytes() or secret in path.name
    ]


def test_the_search_for_the_token_can_fail(miniature):
    """The injected token is found where it does stand: otherwise the search above would prove
    nothing.
    """
    made = Connection(
        "miniature", version=1412, server_address=miniature.address, token=miniature.token, **QUICK
    )
    assert miniature.token in made._secret.text
    assert miniature.token not in str(made._secret) + repr(made._secret)
