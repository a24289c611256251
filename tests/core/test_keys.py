"""One thing spelled in two ways is one thing; what may be two things is refused in words."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.errors import TableError
from nbhelpers.core.keys import MISSING_WORDS, key_of, one_spelling

FEW = settings(max_examples=40, deadline=None)
WORDS = st.text("abcxyzäéß", min_size=1, max_size=6).filter(
    lambda word: word.casefold() not in MISSING_WORDS
)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("1.0", "1"),
        ("1.", "1"),
        ("+1", "1"),
        ("1.5e3", "1500"),
        ("1E2", "1E2"),
        ("1E+05", "100000"),
        ("1e-05", "0.00001"),
        ("1.50e-3", "0.0015"),
        ("0.00001", "0.00001"),
        ("20230105.101530", "20230105.101530"),
        ("9" * 400, "9" * 400),
        ("1.5e400", "1.5e400"),
        ("1.5e-400", "1.5e-400"),
        ("0.30000000000000004", "0.3"),
        ("0.10", "0.10"),
        (".5", "0.5"),
        ("\u22121", "-1"),
        ("\u0663", "3"),
        ("Alzheimer\u2019s", "Alzheimer's"),
        ("10\u2075", "10\u2075"),
        ("M\u20131", "M-1"),
        ("-0.5", "-0.5"),
        ("864691135012345678.0", "864691135012345678"),
        ("01", "01"),
        ("  N\u00a07 ", "N 7"),
        ("a\u200bb\ufeff", "ab"),
        ("Mu\u0308ller", "Müller"),
        ("\uff11", "1"),
        ("\u00b5m", "\u03bcm"),
        ("1.2.3", "1.2.3"),
        ("", ""),
    ],
)
def test_a_key_has_one_spelling(text, key):
    assert key_of(text) == key
    assert key_of(key) == key


@FEW
@given(WORDS, st.integers(0, 10**9), st.integers(1, 3))
def test_white_space_unicode_forms_and_decimals_never_make_a_second_key(word, number, spaces):
    forms = [f"{word} {number}", f" {word}{' ' * spaces}{number}\t", f"{word}\u00a0{number}"]
    forms += [unicodedata.normalize(form, forms[0]) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    keys, joined = one_spelling(forms, "group", "labels.csv")
    assert len(set(keys)) == 1
    assert joined
    numbers, _ = one_spelling([f"{number}", f"{number}.0", f" {number}.00 "], "group", "x")
    assert set(numbers) == {str(number)}


@FEW
@given(st.lists(st.integers(1, 999), min_size=1, max_size=9, unique=True), WORDS)
def test_keys_that_differ_stay_as_many(numbers, word):
    keys, joined = one_spelling([f"{word}{number}" for number in numbers], "group", "labels.csv")
    assert len(set(keys)) == len(numbers)
    assert joined == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("N1", "n1"),
        ("01", "1"),
        ("m01", "m1"),
        ("mouse-1", "mouse_1"),
        ("mouse 1", "mouse1"),
        ("1-2", "1_2"),
        ("slide.01", "slide.1"),
        ("3.1", "3.10"),
        ("05.01.2023", "5.1.2023"),
        ("WT +", "WT+"),
        ("Straße", "STRASSE"),
    ],
)
def test_keys_that_may_be_one_thing_are_refused_with_the_pair(one, other):
    with pytest.raises(TableError) as refused:
        one_spelling([one, other, "another"], "group", "labels.csv")
    assert repr(one) in str(refused.value)
    assert repr(other) in str(refused.value)


@pytest.mark.parametrize(
    "keys",
    [
        ("1-1", "11"),
        ("CD4+", "CD4-"),
        ("CD4-", "CD4"),
        ("1.5", "15"),
        ("a/b", "ab"),
        ("1E2", "10E1"),
        ("3E11", "2F4"),
        ("+", "*"),
    ],
)
def test_keys_that_are_two_things_pass(keys):
    assert one_spelling(keys, "group", "labels.csv") == (list(keys), [])


@pytest.mark.parametrize(
    "word", ["NA", "nan", "None", "#N/A", "#NV", "#WERT!", "unknown", "-", "\u2014", "?", " NULL "]
)
def test_a_missing_value_written_as_a_word_is_refused(word):
    with pytest.raises(TableError, match="missing value"):
        one_spelling(["N1", word], "group", "labels.csv")


def test_a_word_that_means_something_there_is_allowed():
    assert one_spelling(["none", ""], "compound", "plate.csv", allowed=("none",))[0] == ["none", ""]


@pytest.mark.parametrize(
    "ids",
    [
        ["8.64691E+17", "8.64691E+17"],
        ["8.64691135012345e+17", "3"],
        ["8,64691E+17", "3"],
        ["4.00638E+12", "4.00639E+12"],
        ["864691135012345000", "864691135012346000"],
        [str(int(float(864691135012345678 + 1000 * i))) for i in range(3)],
    ],
)
def test_ids_that_lost_their_digits_are_refused(ids):
    with pytest.raises(TableError, match="lost its digits"):
        one_spelling(ids, "neuron", "labels.csv")


def test_long_ids_with_all_their_digits_pass():
    ids = [str(864691135012345678 + 1001 * i) for i in range(5)]
    assert one_spelling(ids, "neuron", "labels.csv") == (ids, [])


def test_a_joined_spelling_is_told_and_many_pairs_are_counted():
    _, joined = one_spelling(["1", "1.0", " 1"], "group", "labels.csv")
    assert joined == ["group '1' is also written ' 1', '1.0'"]
    with pytest.raises(TableError, match="and 4 more pairs"):
        one_spelling([f"{letter}{n}" for letter in "aA" for n in range(9)], "group", "labels.csv")
