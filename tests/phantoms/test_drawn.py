"""Phantoms are drawn once, and then mapped from where they were kept."""

import numpy as np
import pandas as pd

from nbhelpers.phantoms.drawn import Phantoms, drawn_once


def test_a_set_has_its_table_and_its_arrays(tmp_path):
    table = pd.DataFrame({"id": ["a", "b"], "label": ["x", None]})
    made = Phantoms(np.ones((2, 4, 4), np.uint8), np.zeros((2, 4, 4), bool), table)
    calls = []

    def make(count):
        calls.append(count)
        return made

    for _ in range(2):
        found, arrays = drawn_once(
            tmp_path, "cubes", "spine.py", make, {"count": 2}, ("pixels", "cause")
        )
        pd.testing.assert_frame_equal(found, table)
        assert sorted(arrays) == ["cause", "pixels"]
        assert isinstance(arrays["pixels"], np.memmap)
        assert not arrays["pixels"].flags.writeable
        assert np.array_equal(arrays["pixels"], made.pixels)
    assert calls == [2]
    assert [path.name[:6] for path in (tmp_path / "phantoms").iterdir()] == ["cubes-"]


def test_other_settings_are_another_set(tmp_path):
    for count in (1, 2):
        pixels = np.zeros((count, 1, 2, 2), np.uint8)
        made = Phantoms(pixels, pixels > 0, pd.DataFrame({"id": range(count)}))
        table, arrays = drawn_once(
            tmp_path, "patches", "spine.py", lambda count, made=made: made, {"count": count}
        )
        assert len(table) == count and list(arrays) == ["pixels"]
    assert len(list((tmp_path / "phantoms").iterdir())) == 2
