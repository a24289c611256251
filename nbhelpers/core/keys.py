"""One thing spelled in two ways is one thing: every text key of a table or a folder name goes
through here before it is compared, counted or split by.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable

from nbhelpers.core.errors import TableError

MISSING_WORDS = frozenset(
    "nan na n/a n.a. <na> null none nil nat missing unknown undefined ? - -- . "
    "#n/a #na #null! #ref! #value! #div/0! #name? #num! #error!".split()
)
LARGEST_SHOWN = 1e11  # from here on a spreadsheet shows 8.64691E+17 instead of the digits
KEPT_DIGITS = 15  # that a spreadsheet keeps of a long number
MOST_NAMED = 5  # of pairs in a message
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
_DASH = r"[\s_\-\u2010-\u2015\u2212]+"
_BETWEEN_DIGITS = re.compile(rf"(?<=\d){_DASH}(?=\d)")  # 1-1 is not 11
_BETWEEN_WORDS = re.compile(rf"(?<=[^\W_]){_DASH}(?=[^\W_])|\s|^_+|_+$")  # but CD4- is not CD4
_LEADING_ZEROS = re.compile(r"(?<!\d)(?<!\d\.)0+(?=\d)")


def key_of(text: object) -> str:
    """The one spelling of a key: no white space around it or twice, no invisible characters, one
    Unicode form (NFKC), and a number in its shortest form (``1.0`` is ``1``, and
    ``0.30000000000000004`` is ``0.3``).
    """
    plain = unicodedata.normalize("NFKC", str(text))
    visible = "".join(
        " " if unicodedata.category(sign) == "Cc" else sign
        for sign in plain
        if unicodedata.category(sign) != "Cf"
    )
    key = " ".join(visible.split())
    number = _NUMBER.fullmatch(key)
    if not number:
        return key
    if not number[3] and not (number[2] or "").strip(".0"):
        return number[0].split(".")[0].lstrip("+")  # whole numbers keep all their digits
    return repr(float(f"{float(key):.12g}")).removesuffix(".0")


def bare_key(text: object) -> str:
    """What is left of a key without case, leading zeros, spaces, - and _: two keys with one rest
    may be one thing.
    """
    key = key_of(text)
    if _NUMBER.fullmatch(key):
        return key
    bare = _BETWEEN_WORDS.sub("", _BETWEEN_DIGITS.sub("/", key.casefold()))
    return _LEADING_ZEROS.sub("", bare)


def one_spelling(
    values: Iterable[object], column: str, where: object, *, allowed: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """The keys of one column in one spelling each, and a sentence for each two spellings that were
    joined. Empty texts stay empty.

    ``column`` is what the keys are ("group"), ``where`` the file they are from; ``allowed`` are
    words that mean something there though they often stand for a missing value, in small letters.
    Raises TableError for keys that differ only in case, leading zeros, spaces, - or _, for a
    missing value that is written as a word, and for ids that lost their digits in a spreadsheet.
    """
    written = [str(value) for value in values]
    keys = {text: key_of(text) for text in dict.fromkeys(written)}
    _check_missing(set(keys.values()), column, where, allowed)
    _check_digits(set(keys.values()), column, where)
    _check_alike(sorted(set(keys.values())), column, where)
    spellings: dict[str, list[str]] = {}
    for text, key in keys.items():
        spellings.setdefault(key, []).append(text)
    joined = [
        f"{column} {key!r} is also written {', '.join(sorted(map(repr, set(texts) - {key})))}"
        for key, texts in sorted(spellings.items())
        if len(texts) > 1
    ]
    return [keys[text] for text in written], joined


def _check_missing(
    keys: Collection[str], column: str, where: object, allowed: Collection[str]
) -> None:
    words = sorted(key for key in keys if key.casefold() in MISSING_WORDS - set(allowed))
    if words:
        raise TableError(
            where,
            f"a {column} is {', '.join(map(repr, words))}, a word for a missing value: all that is "
            "missing would count as one thing.",
            f"Leave these rows out, or give each its {column}; if the word is a name, use another.",
        )


def _check_digits(keys: Collection[str], column: str, where: object) -> None:
    """Whether a spreadsheet has cut long ids: their digits cannot be had back."""
    long = [int(key) for key in keys if key.isdecimal() and len(key) > KEPT_DIGITS]
    shown = [key for key in keys if "e" in key.lower() and _NUMBER.fullmatch(key)]
    lost = [key for key in shown if abs(float(key)) >= LARGEST_SHOWN]
    # one id in ten ends in one zero by chance, and every second one in an even number
    ends = sum(len(str(number)) - KEPT_DIGITS for number in long)
    if ends >= 3 and not any(str(number)[KEPT_DIGITS:].strip("0") for number in long):
        lost += map(str, long)
    steps = sum(max(0, number.bit_length() - 53) for number in long)
    if steps >= 14 and all(int(float(number)) == number for number in long):
        lost += map(str, long)
    if lost:
        raise TableError(
            where,
            f"the {column} {lost[0]} has lost its digits, as long numbers do in a spreadsheet: "
            "different ids may have become one.",
            "Export the table again with this column as text.",
        )


def _check_alike(keys: Iterable[str], column: str, where: object) -> None:
    """Whether two keys differ only in what people write in one way and another."""
    first: dict[str, str] = {}
    pairs = []
    for key in keys:
        other = first.setdefault(bare_key(key), key)
        if other != key:
            pairs.append(f"{other!r} and {key!r}")
    if pairs:
        more = f", and {len(pairs) - MOST_NAMED} more pairs" if len(pairs) > MOST_NAMED else ""
        raise TableError(
            where,
            f"the {column} {'; '.join(pairs[:MOST_NAMED])}{more} differ only in case, leading "
            "zeros, spaces, - or _.",
            "Write each in one way; if they are two things, give them names that differ more.",
        )
