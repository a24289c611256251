"""Kept arrays: made once, whole or absent, found by what they depend on."""

import numpy as np
import pytest

from nbhelpers.core.kept import kept


@pytest.fixture
def calls():
    return []


def make(calls, array):
    def once():
        calls.append(1)
        return array

    return once


def test_an_array_is_made_once_and_mapped(tmp_path, calls):
    array = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    for _ in range(2):
        found = kept(tmp_path, ["a", 1], make(calls, array), name="features-")
        assert isinstance(found, np.memmap) and not found.flags.writeable
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    assert len(calls) == 1
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["features-"]


def test_other_parts_are_another_file(tmp_path, calls):
    for part in (1, 2):
        kept(tmp_path, ["a", part], make(calls, np.zeros(3)))
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64", "bool", "<U4"])
def test_pieces_are_put_one_after_the_other(tmp_path, dtype):
    whole = (np.arange(70) % 2).reshape(10, 7).astype(dtype)
    found = kept(tmp_path, dtype, lambda: (whole[start : start + 3] for start in range(0, 10, 3)))
    assert found.dtype == whole.dtype
    assert np.array_equal(found, whole)


def test_a_damaged_file_is_made_again(tmp_path, calls):
    array = np.arange(100.0)
    kept(tmp_path, "x", make(calls, array))
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:300])
    assert np.array_equal(kept(tmp_path, "x", make(calls, array)), array)
    assert len(calls) == 2


def test_nothing_is_left_after_an_error(tmp_path):
    def broken():
        yield np.zeros((2, 3))
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        kept(tmp_path, "x", broken)
    with pytest.raises(ValueError, match="first one"):
        kept(tmp_path, "x", lambda: iter([np.zeros((2, 3)), np.zeros((2, 4))]))
    with pytest.raises(ValueError, match="no piece"):
        kept(tmp_path, "x", lambda: iter([]))
    assert list(tmp_path.iterdir()) == []
