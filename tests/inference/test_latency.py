"""Latency and roofline: calls in turn, counted work, a measured peak, and drifted
backends refused."""

import time
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbhelpers.core.errors import InputError
from nbhelpers.inference import backends as inference
from nbhelpers.inference import latency
from nbhelpers.inference.backends import BackendError
from nbhelpers.models.spine_rivals import SpineViT
from nbhelpers.models.tinycnn import TinyCNN
from nbhelpers.training.augment import Transform
from nbhelpers.training.recipe import Augmentation

PREPARATION = Transform(Augmentation(), 0, 3)


@pytest.fixture(scope="module")
def pixels():
    return (np.random.default_rng(0).random((12, 1, 32, 32)) < 0.3).astype(np.uint8) * 255


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return TinyCNN(3, 3).eval()


def test_one_call_of_each_in_turn():
    calls = []
    spent = latency.timed_in_turn(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        latency.Timing(rounds=4),
        warm_up=1,
    )
    assert calls == ["a", "b"] * 5 and {name: len(values) for name, values in spent.items()} == {
        "a": 4,
        "b": 4,
    }


def test_milliseconds_and_the_limit_in_seconds():
    spent = latency.timed_in_turn(
        {"nap": lambda: time.sleep(0.02)}, latency.Timing(rounds=100, seconds=0.01), warm_up=0
    )
    assert len(spent["nap"]) == 3 and (spent["nap"] >= 20).all() and spent["nap"].min() < 200
    with pytest.raises(InputError, match="rounds: 0 is out of range"):
        latency.timed_in_turn({}, latency.Timing(rounds=0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=50), st.integers(1, 32))
def test_a_summary_is_per_image_and_in_order(values, images):
    found = latency.summary(np.asarray(values), images)
    assert found["fastest_ms"] <= found["median_ms"] <= found["p95_ms"] * (1 + 1e-12) and found[
        "rounds"
    ] == len(values)
    assert found["median_ms"] == pytest.approx(np.median(values) / images)


def test_counted_multiply_adds_are_the_ones_on_paper(network):
    assert latency.multiply_adds(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10)) == 8 * 3 * 9 * 100
    assert latency.multiply_adds(TinyCNN(3, 3), (3, 250, 250)) == pytest.approx(908.9e6, rel=1e-3)
    assert latency.multiply_adds(network, (3, 64, 64)) < latency.multiply_adds(network, (3, 65, 65))
    assert not network.training


@pytest.mark.slow
def test_attention_is_counted_too():
    # 12 layers of 12 d^2 per token and two products of tokens with tokens, and the patches: 17.6e9
    # at 224 px
    assert latency.multiply_adds(SpineViT().eval(), (3, 224, 224)) == pytest.approx(
        17.56e9, rel=0.01
    )


def test_a_peak_is_a_rate_and_bounds_every_product():
    product = latency.peak_product("fp32", 256)
    spent = latency.timed_in_turn({"product": product}, latency.Timing(rounds=3))["product"]
    assert 1e8 < latency.peak_rate(spent, 256) < 1e14
    assert latency.peak_rate(np.array([2.0, 1.0, 4.0]), 100) == pytest.approx(1e9)
    assert (
        latency.floor_ms(1_000_000, 1e9) == pytest.approx(1) and latency.floor_ms(5, None) is None
    )
    with pytest.raises(InputError, match="'fp64' is unknown"):
        latency.peak_product("fp64")


def test_peak_and_program_are_timed_in_turn_and_a_floor_that_is_none_is_withdrawn(
    network, pixels, monkeypatch
):
    asked = []
    spread = {"fp32": [4.0, 4.0, 4.1], "bf16": [2.0, 2.0, 2.1], "eager fp32": [3.0, 3.1, 3.0]}

    def in_turn(runs, _):
        asked.append(list(runs))
        return {name: np.array(spread[name]) for name in runs}

    monkeypatch.setattr(latency, "timed_in_turn", in_turn)
    monkeypatch.setattr(latency, "peak_product", lambda dtype: print)

    def found(work):
        monkeypatch.setattr(latency, "multiply_adds", lambda *_: work)
        about = {"calibration": pixels, "timing": latency.Timing(1, rounds=3)}
        return latency.roofline(network, pixels, PREPARATION, [], **about)[1].iloc[0]

    row = found(latency.PEAK_SIZE**3 // 2)
    assert asked == [["eager fp32", "fp32", "bf16"]]
    assert row["floor_ms"] == pytest.approx(2) and row["times_floor"] == pytest.approx(1.5)
    assert row["withdrawn"] == ""
    row = found(latency.PEAK_SIZE**3)  # 3 ms for what the peak says takes 4
    assert "quicker than its floor" in row["withdrawn"] and np.isnan(row["times_floor"])
    spread["bf16"] = [2.0, 9.0, 9.0]
    row = found(latency.PEAK_SIZE**3 // 2)
    assert "something else had the machine" in row["withdrawn"] and np.isnan(row["times_floor"])


def test_every_backend_gets_a_line_and_a_status(network, pixels, monkeypatch):
    absent = {"onnx fp32": "it is not installed"}
    monkeypatch.setattr(
        latency, "why_not", lambda name: absent.get(name) or inference.why_not(name)
    )
    monkeypatch.setattr(latency, "STEADY", np.inf)  # this machine may be busy
    rates = iter([1e15, 2e15])
    monkeypatch.setattr(latency, "peak_rate", lambda spent: next(rates))
    ready, table = latency.roofline(
        network,
        pixels,
        PREPARATION,
        ["eager bf16", "openvino fp32", "onnx fp32"],
        calibration=pixels,
        timing=latency.Timing(1, rounds=3),
    )
    table = table.set_index("backend")
    assert list(table.index) == ["eager fp32", "eager bf16", "openvino fp32", "onnx fp32"]
    assert (
        table.loc["onnx fp32", "status"] == "not available"
        and table.loc["onnx fp32", "reason"] == "it is not installed"
    )
    assert np.isnan(table.loc["onnx fp32", "median_ms"]) and "onnx fp32" not in ready
    assert table.loc["eager fp32", "drift"] == 0 and table.loc["eager fp32", "speedup"] == 1
    line = table.loc["openvino fp32"]
    assert line["status"] == "offered" and line["n"] == 12
    assert line["floor_ms"] == pytest.approx(latency.multiply_adds(network, (3, 32, 32)) / 1e12)
    assert line["times_floor"] == pytest.approx(line["median_ms"] / line["floor_ms"])
    assert line["times_bf16_floor"] == pytest.approx(2 * line["times_floor"])
    assert latency.fastest(table.reset_index()) in ("eager fp32", "eager bf16", "openvino fp32")


def test_a_backend_that_drifts_is_refused_and_never_the_fastest(network, pixels, monkeypatch):
    monkeypatch.setattr(inference, "MOST_DRIFT", -1)
    monkeypatch.setattr(latency, "peak_product", lambda dtype: None)
    _, table = latency.roofline(
        network,
        pixels,
        PREPARATION,
        ["openvino fp32"],
        calibration=pixels,
        timing=latency.Timing(1, rounds=3),
    )
    assert (
        table["status"].tolist() == ["refused"] * 2
        and "the limits are -1" in table["reason"].iloc[1]
    )
    assert table["floor_ms"].isna().all()
    offered = table.assign(status=["offered", "refused"], median_ms=[5.0, 1.0])
    assert latency.fastest(offered) == "eager fp32"


def test_a_network_whose_probabilities_are_no_numbers_is_refused_in_words(
    network, pixels, monkeypatch
):
    monkeypatch.setattr(latency, "peak_product", lambda dtype: None)
    harmed = deepcopy(network)
    next(harmed.parameters()).data.fill_(float("nan"))
    _, table = latency.roofline(
        harmed,
        pixels,
        PREPARATION,
        [],
        calibration=pixels,
        timing=latency.Timing(rounds=3),
    )
    assert table["status"].tolist() == ["refused"]
    with pytest.raises(InputError, match="no backend is offered.*must be finite"):
        latency.fastest(table)


def test_a_network_that_a_backend_cannot_run_is_named_with_the_reason(network, pixels, monkeypatch):
    def refuse(*_, **__):
        raise BackendError("backend", "TinyCNN cannot be converted.")

    monkeypatch.setattr(latency, "prepared_for", refuse)
    _, table = latency.offered(network, pixels, PREPARATION, ["openvino fp32"], calibration=pixels)
    assert (
        table["status"].tolist() == ["not available"]
        and "cannot be converted" in table["reason"].iloc[0]
    )


def test_the_best_batch_is_one_of_those_that_fit(network, pixels):
    images = PREPARATION.evaluate(torch.from_numpy(pixels)).contiguous()
    found = latency.best_batch(
        latency.Ready("eager fp32", network), images, batches=(1, 8, 32), rounds=3
    )
    assert found["batch"] in (1, 8) and found["images_per_s"] == pytest.approx(
        1e3 / found["batch_ms"]
    )
