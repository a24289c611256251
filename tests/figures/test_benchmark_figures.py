"""The benchmark's figures: the front of what no other beats, hollow dots for random features,
floors and refusals.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbhelpers.core.errors import InputError
from nbhelpers.figures.benchmark import on_the_front, pareto, roofline_bars


@given(st.lists(st.tuples(st.floats(0.01, 1e3), st.floats(0, 1)), min_size=1, max_size=20))
def test_the_front_beats_everything_behind_it(points):
    times, scores = (np.asarray(column) for column in zip(*points, strict=True))
    front = on_the_front(times, scores)
    assert front.any()
    for time, score in zip(times[~front], scores[~front], strict=True):
        assert ((times[front] <= time) & (scores[front] >= score)).any()


def results() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": ["TinyCNN", "ViT", "SVM", "majority"],
            "params": pd.array([457_539, 85_800_963, None, None], "Int64"),
            "acc": [0.92, 0.93, 0.8, 0.6],
            "acc_low": [0.88, 0.9, 0.75, None],
            "acc_high": [0.95, 0.96, 0.84, None],
            "infer_ms": [3.0, 90.0, 8.0, None],
            "note": ["", "RANDOM FEATURES, not the published model", "", "floor"],
        }
    )


def test_pareto_draws_what_was_timed_and_marks_random_features():
    figure = pareto(results())
    dots = {dot.get_label(): dot for dot in figure.axes[0].collections}
    assert set(dots) == {"TinyCNN", "ViT (random features)", "SVM"}
    assert dots["ViT (random features)"].get_facecolor()[0][:3].tolist() == [1, 1, 1]
    assert (
        dots["ViT (random features)"].get_sizes()[0]
        > dots["TinyCNN"].get_sizes()[0]
        > dots["SVM"].get_sizes()[0]
    )
    assert figure.axes[0].get_xscale() == "log" and list(figure.axes[0].lines[0].get_ydata()) == [
        0.92,
        0.93,
    ]
    with pytest.raises(InputError, match="nothing to draw"):
        pareto(results().assign(infer_ms=None))


def test_no_two_of_eight_models_look_alike():
    many = pd.DataFrame(
        {
            "model": [f"model {one}" for one in range(8)],
            "params": pd.array([1000] * 8, "Int64"),
            "acc": np.linspace(0.6, 0.9, 8),
            "acc_low": None,
            "acc_high": None,
            "infer_ms": np.arange(1.0, 9),
            "note": "",
        }
    )
    dots = pareto(many).axes[0].collections
    looks = {(tuple(dot.get_facecolor()[0]), dot.get_paths()[0].vertices.tobytes()) for dot in dots}
    assert len(dots) == len(looks) == 8


def test_roofline_shows_floors_refusals_and_reasons():
    lines = pd.DataFrame(
        {
            "model": "TinyCNN",
            "backend": ["eager fp32", "openvino int8", "onnx fp32"],
            "status": ["offered", "refused", "not available"],
            "reason": ["", "it drifts", "ONNX Runtime is not installed"],
            "median_ms": [20.0, 3.0, np.nan],
            "p95_ms": [25.0, 4.0, np.nan],
            "floor_ms": [10.0, np.nan, 10.0],
            "times_floor": [2.0, np.nan, np.nan],
        }
    )
    figure = roofline_bars(lines, "TinyCNN")
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert (
        "20.00 ms, 2.0 times its floor" in words
        and "REFUSED" in words
        and "not available: ONNX Runtime" in words
    )
    assert len(figure.axes[0].patches) == 2
    withdrawn = roofline_bars(lines.assign(times_floor=np.nan), "TinyCNN").axes[0]
    assert "20.00 ms, distance from its floor withdrawn" in withdrawn.texts[0].get_text()
    with pytest.raises(InputError, match="latencies of ViT: there is nothing to draw"):
        roofline_bars(lines, "ViT")
